"""Vectors for other tools, as a parquet or npy file."""

from __future__ import annotations

import tempfile
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

from vlmo.data.quarantine import Bad, to_lines
from vlmo.folder.atomic import atomic_file
from vlmo.progress import Progress
from vlmo.retrieval.encoder import BATCH, Encoder
from vlmo.retrieval.executor import Group, Rows, Task, local_executor
from vlmo.retrieval.sources import Reader, as_origin, find

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
        inputs: Folders, image files, videos, shards, saved data sets, or patterns and URIs of these.
        out: .parquet, with the columns `path` and `vector`; or .npy, with the paths beside it in `OUT.ids.txt`, one a
            line. Rows stand in the order of the images' places within each input, but images with the same bytes may
            stand next to each other.
        batch: Images that go through the model at a time.
        console: Console for progress.

    Raises:
        ValueError: Nothing to embed, another kind of file, one that exists, or a batch below 1.
    """
    if batch < 1:
        raise ValueError(f"batch is {batch}; give a number from 1 up")
    out = Path(out).expanduser()
    bad: list[Bad] = []
    with _writing(out, name="path", dim=encoder.dim) as writer:
        # An image that two inputs lead to is written once.
        found = list({each.place: each for given in inputs for each in find(as_origin(str(given)))}.values())
        if not found:
            raise ValueError(f"there is no image in {', '.join(map(str, inputs)) or 'nothing'}")
        files = [each for each in found if each.kind == "file"]
        tasks = [Task(files[start : start + _FILES]) for start in range(0, len(files), _FILES)]
        tasks += [Task([each]) for each in found if each.kind != "file"]
        size, read = sum(each.size for each in found), 0
        with Progress(console, in_bytes=True) as progress:
            for step in local_executor(encoder, batch=batch)(tasks, Reader(), lambda _: {}):
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
        quarantine.write_text(to_lines([each.line() for each in bad]), encoding="utf-8")
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


class _Writer:
    """Appends rows to a parquet file under a hidden name."""

    def __init__(self, file: pq.ParquetWriter) -> None:
        self._file, self.rows = file, 0
        self.files: tuple[Path, ...] = ()

    def add(self, names: Sequence[str], vectors: Float32[np.ndarray, "row dim"]) -> None:
        column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), vectors.shape[1])
        self._file.write_table(pa.table([pa.array(names), column], schema=self._file.schema))
        self.rows += len(names)


@contextmanager
def _writing(out: Path, *, name: str, dim: int) -> Iterator[_Writer]:
    """A writer whose files get their names when everything has been written, and are removed if something fails."""
    if out.suffix.lower() not in {".parquet", ".npy"}:
        raise ValueError(f"{out}: vectors are written to a file that ends with .parquet or .npy")
    if out.exists():
        raise ValueError(f"{out} exists already; name a new file, or remove it")
    out.parent.mkdir(parents=True, exist_ok=True)
    schema = pa.schema([(name, pa.string()), ("vector", pa.list_(pa.float32(), dim))])
    with atomic_file(out) as aside, tempfile.TemporaryDirectory(dir=out.parent, prefix=".vectors-") as folder:
        rows = Path(folder) / "rows.parquet"
        with pq.ParquetWriter(rows, schema) as file:
            writer = _Writer(file)
            yield writer
        if out.suffix.lower() == ".parquet":
            writer.files = (out,)
            rows.replace(aside)
            return
        names = out.with_name(out.name + _NAMES)
        writer.files = (out, names)
        array, start = np.lib.format.open_memmap(aside, "w+", dtype="<f4", shape=(writer.rows, dim)), 0
        with pq.ParquetFile(rows) as written, atomic_file(names) as listed, listed.open("w", encoding="utf-8") as lines:
            for batch in written.iter_batches():
                array[start : start + len(batch)] = batch["vector"].flatten().to_numpy().reshape(-1, dim)
                lines.writelines(each.replace("\n", " ") + "\n" for each in batch[name].to_pylist())
                start += len(batch)
        array.flush()
