"""Vectors for other tools, as a parquet or npy file."""

from __future__ import annotations

import contextlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float32
from rich.console import Console

from vlmo.data.stream.records import Bad
from vlmo.progress import Progress
from vlmo.retrieval.encoder import BATCH, Encoder
from vlmo.retrieval.engine import Group, LocalEngine, Rows, Task
from vlmo.retrieval.sources import Found, Reader, as_origin, find

_FILES = 2048
_NAMES = ".ids.txt"
_QUARANTINE = ".quarantine.jsonl"


@dataclass(frozen=True)
class Written:
    """Files of vectors.

    Attributes:
        rows: Number of vectors.
        bad: Number of images that have none; each has a line in `OUT.quarantine.jsonl`.
        files: Every file that was written.
    """

    rows: int
    bad: int
    files: tuple[Path, ...]


def embed_images(
    encoder: Encoder,
    inputs: Sequence[str | Path],
    *,
    out: str | Path,
    batch: int = BATCH,
    console: Console | None = None,
) -> Written:
    """Write vectors of all images in `inputs`, which are as for `build_index`; bad ones go to a quarantine file.

    Args:
        encoder: The model.
        inputs: Folders, image files, shards, saved data sets, or patterns and URIs of these.
        out: .parquet, with the columns `place` and `vector`; or .npy, with the places beside it in `OUT.ids.txt`, one a
            line. Rows stand in the order of the images' places within each input, but images with the same bytes may
            stand next to each other.
        batch: Images that go through the model at a time.
        console: Console for progress.

    Raises:
        ValueError: Nothing to embed, another kind of file, or one that exists.
    """
    out = Path(out).expanduser()
    bad: list[Bad] = []
    with _writing(out, name="place", dim=encoder.dim) as writer:
        # An image that two inputs lead to is written once.
        found = list({each.place: each for given in inputs for each in find(as_origin(str(given)))}.values())
        if not found:
            raise ValueError(f"there is no image in {', '.join(map(str, inputs)) or 'nothing'}")
        engine = LocalEngine(encoder, batch=batch)
        size, read = sum(each.size for each in found), 0
        with Progress(console, in_bytes=True) as progress:
            for step in engine.run(_tasks(found), reader=Reader(), lookup=lambda _: {}):
                if isinstance(step, Rows):
                    vectors = np.stack([each.vector for each in step.encoded])
                    writer.add([record.place for record in step.records], vectors)
                elif isinstance(step, Group):
                    bad += step.bad
                    read += step.size
                    progress.update("embedding", read, size, note=f"{writer.rows} images")
    quarantine = out.with_name(out.name + _QUARANTINE)
    quarantine.unlink(missing_ok=True)  # of vectors that are gone
    if bad:
        quarantine.write_text("".join(json.dumps(each.line(), ensure_ascii=False) + "\n" for each in bad))
    return Written(writer.rows, len(bad), (*writer.files, *([quarantine] if bad else [])))


def embed_texts(encoder: Encoder, texts: Iterable[str], *, out: str | Path) -> Written:
    """Write vectors of texts, as `embed_images` writes those of images; the column is `text`.

    Raises:
        ValueError: There is no text, another kind of file, or one that exists.
    """
    with _writing(Path(out).expanduser(), name="text", dim=encoder.dim) as writer:
        remaining = iter(texts)
        while part := list(islice(remaining, BATCH)):
            writer.add(part, encoder.embed_texts(part))
        if not writer.rows:
            raise ValueError("there is no text to embed: every line is empty")
    return Written(writer.rows, 0, writer.files)


def _tasks(found: Sequence[Found]) -> Iterator[Task]:
    files = [each for each in found if each.kind == "file"]
    for start in range(0, len(files), _FILES):
        yield Task(files[start : start + _FILES])
    for each in found:
        if each.kind != "file":
            yield Task([each])


@contextmanager
def _writing(out: Path, *, name: str, dim: int) -> Iterator[_Writer]:
    """A writer whose files get their names when everything has been written, and are removed if something fails."""
    kinds = {".parquet": _ParquetWriter, ".npy": _NpyWriter}
    if out.suffix not in kinds:
        raise ValueError(f"{out}: vectors are written to a file that ends with {' or '.join(kinds)}")
    if out.exists():
        raise ValueError(f"{out} exists already; name a new file, or remove it")
    out.parent.mkdir(parents=True, exist_ok=True)
    writer = kinds[out.suffix](out, name=name, dim=dim)
    try:
        with contextlib.closing(writer):
            yield writer
        for file in reversed(writer.files):
            writer.aside(file).replace(file)
    finally:
        for file in writer.files:
            writer.aside(file).unlink(missing_ok=True)


class _Writer(ABC):
    """Appends rows to files under hidden names."""

    def __init__(self, *files: Path) -> None:
        self.files, self.rows = files, 0

    def aside(self, file: Path) -> Path:
        """Name of a file while it is written."""
        return file.with_name(f".{file.name}.aside")

    @abstractmethod
    def add(self, names: Sequence[str], vectors: Float32[np.ndarray, "row dim"]) -> None:
        """Append rows."""

    @abstractmethod
    def close(self) -> None:
        """Complete the files, and let go of them."""


class _ParquetWriter(_Writer):
    def __init__(self, out: Path, *, name: str, dim: int) -> None:
        super().__init__(out)
        self._dim = dim
        self._schema = pa.schema([(name, pa.string()), ("vector", pa.list_(pa.float32(), dim))])
        self._file = pq.ParquetWriter(self.aside(out), self._schema)

    def add(self, names: Sequence[str], vectors: Float32[np.ndarray, "row dim"]) -> None:
        column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), self._dim)
        self._file.write_table(pa.table([pa.array(names), column], schema=self._schema))
        self.rows += len(names)

    def close(self) -> None:
        self._file.close()


class _NpyWriter(_Writer):
    """Rows behind a header that is written anew, at the same length, when their number is known."""

    def __init__(self, out: Path, *, name: str, dim: int) -> None:
        del name
        super().__init__(out, out.with_name(out.name + _NAMES))
        self._dim = dim
        self._file = self.aside(out).open("wb")
        self._names = self.aside(self.files[1]).open("w", encoding="utf-8")
        self._write_header()

    def _write_header(self) -> None:
        self._file.seek(0)
        described = {"descr": "<f4", "fortran_order": False, "shape": (self.rows, self._dim)}
        np.lib.format.write_array_header_1_0(self._file, described)

    def add(self, names: Sequence[str], vectors: Float32[np.ndarray, "row dim"]) -> None:
        self._file.write(np.ascontiguousarray(vectors, dtype="<f4").tobytes())
        self._names.writelines(name.replace("\n", " ") + "\n" for name in names)
        self.rows += len(names)

    def close(self) -> None:
        self._write_header()
        self._file.close()
        self._names.close()
