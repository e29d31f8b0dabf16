"""Vectors of images or texts for other tools, as a parquet file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console

from vlmo.data.rows import Bad
from vlmo.folder.atomic import atomic_file
from vlmo.progress import Progress
from vlmo.retrieval.embedding import Work, embed_works
from vlmo.retrieval.encoder import BATCH, Encoder
from vlmo.retrieval.sources import Reader, as_origin, find


def write_vectors(
    encoder: Encoder,
    out: str | Path,
    *,
    images: Sequence[str | Path] = (),
    texts: Sequence[str] = (),
    console: Console | None = None,
) -> tuple[int, list[Bad]]:
    """Write a parquet file with the columns `path` (or `text`) and `vector`; return its rows, and images without one.

    Args:
        out: New .parquet file.
        images: Inputs as `build_index` takes them, or else
        texts: Texts.

    Raises:
        ValueError: Nothing to embed, another kind of file, or one that exists.
    """
    out = Path(out).expanduser()
    bad = list[Bad]()
    written = 0
    if out.suffix.lower() != ".parquet" or out.exists():
        raise ValueError(f"{out} exists, or is no .parquet file; name a new one")
    found = list(
        {each.path: each for given in images for each in find(as_origin(str(given)))}.values()
    )
    if not found and not texts:
        raise ValueError("there is nothing to embed; give images or texts")

    def rows() -> Iterator[tuple[list[str], np.ndarray]]:
        for start in range(0, len(texts), BATCH):
            part = list(texts[start : start + BATCH])
            yield part, encoder.embed_texts(part)
        files = [each for each in found if each.kind == "file"]
        works = [
            Work(part)
            for part in (files, *([each] for each in found if each.kind != "file"))
            if part
        ]
        for batch in embed_works(works, encoder, reader=Reader(), batch=BATCH):
            bad.extend(batch.bad)
            progress.update("embedding", written + len(bad), None)
            if batch.rows:
                yield (
                    [row["path"] for row in batch.rows],
                    np.stack([row["vector"] for row in batch.rows]),
                )

    schema = pa.schema(
        {"path" if found else "text": pa.string(), "vector": pa.list_(pa.float32(), encoder.dim)}
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    with (
        Progress(console) as progress,
        atomic_file(out) as aside,
        pq.ParquetWriter(aside, schema) as table,
    ):
        for names, vectors in rows():
            column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), encoder.dim)
            table.write_table(pa.table([pa.array(names), column], schema=schema))
            written += len(names)
    return written, bad
