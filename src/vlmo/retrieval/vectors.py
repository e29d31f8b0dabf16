"""Vectors of images or texts for other tools, as a parquet file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float32
from rich.console import Console

from vlmo.data.rows import Bad
from vlmo.folder.atomic import atomic_file
from vlmo.progress import Progress
from vlmo.retrieval.embedding import Work, embed_works
from vlmo.retrieval.encoder import BATCH, Encoder
from vlmo.retrieval.sources import Found, Reader, as_origin, find

NamedVectors: TypeAlias = tuple[list[str], Float32[np.ndarray, "row dim"]]


def write_vectors(
    encoder: Encoder,
    out: str | Path,
    *,
    images: Sequence[str | Path] = (),
    texts: Sequence[str] = (),
    console: Console | None = None,
) -> tuple[int, list[Bad]]:
    """Write a new parquet file with the columns `path` (or `text`) and `vector`, of images or else of texts.

    Images are inputs as `build_index` takes them. Return the number of rows, and the images without one.

    Raises:
        ValueError: Nothing to embed, another kind of file, or one that exists.
    """
    out = Path(out).expanduser()
    if out.suffix.lower() != ".parquet" or out.exists():
        raise ValueError(f"{out} exists, or is no .parquet file; name a new one")
    # By path: two inputs may lead to one file.
    files = {file.path: file for path in images for file in find(as_origin(str(path)))}
    if not files and not texts:
        raise ValueError("there is nothing to embed; give images or texts")
    name = "path" if files else "text"
    schema = pa.schema({name: pa.string(), "vector": pa.list_(pa.float32(), encoder.dim)})
    bad: list[Bad] = []
    num_written = 0
    out.parent.mkdir(parents=True, exist_ok=True)
    with (
        Progress(console) as progress,
        atomic_file(out) as aside,
        pq.ParquetWriter(aside, schema) as table,
    ):
        embedded = _embed_texts(encoder, texts)
        if files:
            embedded = _embed_files(encoder, [*files.values()], bad=bad)
        for names, vectors in embedded:
            table.write_table(pa.table([names, list(vectors)], schema=schema))
            num_written += len(names)
            progress.update("embedding", num_written + len(bad), None)
    return num_written, bad


def _embed_texts(encoder: Encoder, texts: Sequence[str]) -> Iterator[NamedVectors]:
    for start in range(0, len(texts), BATCH):
        batch = list(texts[start : start + BATCH])
        yield batch, encoder.embed_texts(batch)


def _embed_files(
    encoder: Encoder, files: Sequence[Found], *, bad: list[Bad]
) -> Iterator[NamedVectors]:
    """Yield paths and vectors of images in files and shards; those that cannot be used go to `bad`."""
    image_files = [file for file in files if file.kind == "file"]
    works = [Work([shard]) for shard in files if shard.kind != "file"]
    if image_files:
        works.insert(0, Work(image_files))
    for batch in embed_works(works, encoder, reader=Reader(), batch=BATCH):
        bad += batch.bad
        if batch.rows:
            paths = [row["path"] for row in batch.rows]
            yield paths, np.stack([row["vector"] for row in batch.rows])
