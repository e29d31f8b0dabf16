"""Vectors for other people's tools, as a parquet or npy file."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float32
from rich.console import Console

from vlmo.data.stream.records import Bad
from vlmo.retrieval.embedding import LocalEngine
from vlmo.retrieval.encoder import BATCH, Encoder
from vlmo.retrieval.pictures import THUMBNAIL, Looks
from vlmo.retrieval.places import Found, as_origin, find
from vlmo.retrieval.progress import ByteProgress
from vlmo.retrieval.reading import Reader
from vlmo.retrieval.tasks import Group, Task

_FILES = 2048
_NAMES = ".ids.txt"
_QUARANTINE = ".quarantine.jsonl"


@dataclass(frozen=True)
class Written:
    """What was written.

    Attributes:
        rows: Number of vectors.
        bad: Number of pictures that have none; each has a line in `quarantine`.
        files: Every file that was written.
    """

    rows: int
    bad: int
    files: tuple[Path, ...]


class _Writer(Protocol):
    def add(self, names: Sequence[str], vectors: Float32[np.ndarray, "row dim"]) -> None:
        """Appends rows."""
        ...

    def close(self) -> tuple[Path, ...]:
        """Gives the files their names."""
        ...

    def release(self) -> None:
        """Lets go of the files, finished or not."""
        ...


def embed_pictures(
    encoder: Encoder,
    inputs: Sequence[str | Path],
    *,
    out: str | Path,
    batch: int = BATCH,
    console: Console | None = None,
) -> Written:
    """Vectors of all pictures in `inputs`, which are what `build_index` takes; bad ones go to a quarantine file.

    Args:
        out: .parquet, with the columns `place` and `vector`; or .npy, with the places beside it in `OUT.ids.txt`, one a
            line. Rows stand in the order of the pictures' places within each input, but pictures with the same bytes
            may stand next to each other.

    Raises:
        ValueError: Nothing to embed, another kind of file, or one that is there.
    """
    out = Path(out).expanduser()
    with _writing(out, name="place", dim=encoder.dim) as writer:
        # A picture that two inputs lead to is written once.
        found = list({each.place: each for given in inputs for each in find(as_origin(str(given)))}.values())
        if not found:
            raise ValueError(f"there is no picture in {', '.join(map(str, inputs)) or 'nothing'}")
        engine = LocalEngine(encoder, batch=batch, thumbnail=THUMBNAIL)
        with ByteProgress(console, total=sum(each.size for each in found)) as bar:
            sink = _Sink(writer, bar=bar)
            engine.run(_tasks(found), reader=Reader(), sink=sink)
        files = writer.close()
    quarantine = out.with_name(out.name + _QUARANTINE)
    quarantine.unlink(missing_ok=True)  # of vectors that are gone
    if sink.bad:
        quarantine.write_text("".join(json.dumps(bad.line(), ensure_ascii=False) + "\n" for bad in sink.bad))
        files = (*files, quarantine)
    return Written(sink.rows, len(sink.bad), files)


def embed_texts(encoder: Encoder, texts: Iterable[str], *, out: str | Path) -> Written:
    """Vectors of texts, as `embed_pictures` writes those of pictures; the column is `text`.

    Raises:
        ValueError: There is no text, another kind of file, or one that is there.
    """
    rows, waiting = 0, []
    with _writing(Path(out).expanduser(), name="text", dim=encoder.dim) as writer:
        for text in texts:
            waiting.append(text)
            if len(waiting) >= BATCH:
                writer.add(waiting, encoder.embed_texts(waiting))
                rows, waiting = rows + len(waiting), []
        writer.add(waiting, encoder.embed_texts(waiting))
        rows += len(waiting)
        if not rows:
            raise ValueError("there is no text to embed: every line is empty")
        return Written(rows, 0, writer.close())


def _tasks(found: Sequence[Found]) -> Iterator[Task]:
    files = [each for each in found if each.kind == "file"]
    for start in range(0, len(files), _FILES):
        yield Task(files[start : start + _FILES])
    for each in found:
        if each.kind != "file":
            yield Task([each])


class _Sink:
    """Writes vectors, and keeps what is bad."""

    def __init__(self, writer: _Writer, *, bar: ByteProgress) -> None:
        self._writer, self._bar = writer, bar
        self.rows = 0
        self.bad: list[Bad] = []

    def looks(self, hashes: Sequence[str]) -> dict[str, Looks]:
        """Nothing is known before."""
        del hashes
        return {}

    def take(self, group: Group) -> None:
        """Keeps what cannot be read."""
        self.bad += group.bad
        self._bar.advance(group.size, text=f"{self.rows} pictures")

    def refuse(self, bad: Bad) -> None:
        """Keeps what cannot be decoded."""
        self.bad.append(bad)

    def write(self, rows: pa.Table, *, looks: Sequence[Looks], encoded: int, fresh: bool) -> None:
        """Writes vectors."""
        del encoded, fresh
        self._writer.add(rows["place"].to_pylist(), np.stack([each.vector for each in looks]))
        self.rows += len(rows)

    def finish(self, task: Task, *, whole: bool) -> None:
        """Nothing is kept of where the work stands."""


@contextmanager
def _writing(out: Path, *, name: str, dim: int) -> Iterator[_Writer]:
    kinds = {".parquet": _ParquetWriter, ".npy": _NpyWriter}
    if out.suffix not in kinds:
        raise ValueError(f"{out}: vectors are written to a file that ends with {' or '.join(kinds)}")
    if out.exists():
        raise ValueError(f"{out} is there already; name a new file, or remove it")
    out.parent.mkdir(parents=True, exist_ok=True)
    aside = out.with_name(f".{out.name}.aside")
    writer: _Writer = kinds[out.suffix](out, aside=aside, name=name, dim=dim)
    try:
        yield writer
    finally:
        writer.release()
        aside.unlink(missing_ok=True)
        aside.with_name(aside.name + _NAMES).unlink(missing_ok=True)


class _ParquetWriter:
    def __init__(self, out: Path, *, aside: Path, name: str, dim: int) -> None:
        self._out, self._aside, self._dim = out, aside, dim
        self._schema = pa.schema([(name, pa.string()), ("vector", pa.list_(pa.float32(), dim))])
        self._file = pq.ParquetWriter(aside, self._schema)

    def add(self, names: Sequence[str], vectors: Float32[np.ndarray, "row dim"]) -> None:
        if names:
            column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), self._dim)
            self._file.write_table(pa.table([pa.array(names), column], schema=self._schema))

    def close(self) -> tuple[Path, ...]:
        self.release()
        self._aside.replace(self._out)
        return (self._out,)

    def release(self) -> None:
        self._file.close()


class _NpyWriter:
    """Rows behind a header that is written anew, at the same length, when their number is known."""

    def __init__(self, out: Path, *, aside: Path, name: str, dim: int) -> None:
        del name
        self._out, self._aside, self._dim, self._rows = out, aside, dim, 0
        self._file = aside.open("wb")
        self._names = aside.with_name(aside.name + _NAMES).open("w", encoding="utf-8")
        self._header()

    def _header(self) -> None:
        self._file.seek(0)
        described = {"descr": "<f4", "fortran_order": False, "shape": (self._rows, self._dim)}
        np.lib.format.write_array_header_1_0(self._file, described)

    def add(self, names: Sequence[str], vectors: Float32[np.ndarray, "row dim"]) -> None:
        self._file.write(np.ascontiguousarray(vectors, dtype="<f4").tobytes())
        self._names.writelines(name.replace("\n", " ") + "\n" for name in names)
        self._rows += len(names)

    def close(self) -> tuple[Path, ...]:
        self._header()
        self.release()
        names = self._out.with_name(self._out.name + _NAMES)
        self._aside.with_name(self._aside.name + _NAMES).replace(names)
        self._aside.replace(self._out)
        return self._out, names

    def release(self) -> None:
        self._file.close()
        self._names.close()
