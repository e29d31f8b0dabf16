"""Vectors for other tools, as a parquet file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple, TypeAlias, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float32
from rich.console import Console

from vlmo.data.rows import Bad, to_lines
from vlmo.folder.atomic import atomic_file
from vlmo.progress import Progress
from vlmo.retrieval.embedding import Encoded, Work, embed_works
from vlmo.retrieval.encoder import BATCH, Encoder
from vlmo.retrieval.sources import Reader, as_origin, find

_Rows: TypeAlias = Iterator[tuple[Sequence[str], Float32[np.ndarray, "row dim"]]]
"""Names and their vectors."""


class Written(NamedTuple):
    """Number of vectors; number of images that have none, each with a line in `OUT.quarantine.jsonl`; all files."""

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
        inputs: Folders, image files, videos, shards, saved data sets, or patterns and URIs of these.
        out: New .parquet file with the columns `path` and `vector`; an image that two inputs lead to is written once.
        batch: Images that go through the model at a time.

    Raises:
        ValueError: Nothing to embed, another kind of file, one that exists, or a batch below 1.
    """
    if batch < 1:
        raise ValueError(f"batch is {batch}; give a number from 1 up")
    out, bad = Path(out).expanduser(), list[Bad]()

    def rows() -> _Rows:
        found = list({each.place: each for given in inputs for each in find(as_origin(str(given)))}.values())
        if not found:
            raise ValueError(f"there is no image in {', '.join(map(str, inputs)) or 'nothing'}")
        files = [each for each in found if each.kind == "file"]
        works = ([Work(files)] if files else []) + [Work([each]) for each in found if each.kind != "file"]
        size, read, number = sum(each.size for each in found), 0, 0
        with Progress(console, in_bytes=True) as progress:
            for part in embed_works(works, encoder, reader=Reader(), lookup=lambda _: {}, batch=batch):
                bad.extend(part.bad)
                read, number = read + part.size, number + len(part.records)
                progress.update("embedding", read, size, note=f"{number} images")
                if part.records:
                    vectors = np.stack([cast("Encoded", each).vector for each in part.encoded])
                    yield [record.place for record in part.records], vectors

    number = _write(out, rows(), name="path", dim=encoder.dim)
    quarantine = out.with_name(f"{out.name}.quarantine.jsonl")
    quarantine.unlink(missing_ok=True)  # of vectors that are gone
    if bad:
        quarantine.write_text(to_lines([each.line() for each in bad]), encoding="utf-8")
    return Written(number, len(bad), (out, quarantine) if bad else (out,))


def embed_texts(encoder: Encoder, texts: Iterable[str], *, out: str | Path) -> Written:
    """Write vectors of texts, as `embed_images` writes those of images; the column is `text`.

    Raises:
        ValueError: There is no text, another kind of file, or one that exists.
    """

    def rows() -> _Rows:
        remaining = iter(texts)
        if not (part := list(islice(remaining, BATCH))):
            raise ValueError("there is no text to embed: every line is empty")
        while part:
            yield part, encoder.embed_texts(part)
            part = list(islice(remaining, BATCH))

    out = Path(out).expanduser()
    return Written(_write(out, rows(), name="text", dim=encoder.dim), 0, (out,))


def _write(out: Path, rows: _Rows, *, name: str, dim: int) -> int:
    """Write a file once there are all rows; return their number."""
    if out.suffix.lower() != ".parquet":
        raise ValueError(f"{out}: vectors are written to a file that ends with .parquet")
    if out.exists():
        raise ValueError(f"{out} exists already; name a new file, or remove it")
    out.parent.mkdir(parents=True, exist_ok=True)
    schema, number = pa.schema([(name, pa.string()), ("vector", pa.list_(pa.float32(), dim))]), 0
    with atomic_file(out) as aside, pq.ParquetWriter(aside, schema) as table:
        for titles, vectors in rows:
            column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), dim)
            table.write_table(pa.table([pa.array(titles), column], schema=schema))
            number += len(titles)
    return number
