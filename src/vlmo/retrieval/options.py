"""Options of an index that is built or brought up to date."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Suppress, arg

APPROXIMATE_FROM = 50_000
"""Images from which on an approximate index is built beside the exact search."""


@dataclass(frozen=True, kw_only=True)
class IndexOptions:
    """Options of an index, the same in Python and of `vlmo index`; ValueError for a number below 1."""

    metadata: Path | None = None
    """Table (.csv, .tsv, .jsonl) of captions and columns by the names of image files; later runs go by it too. Without
    one, captions.csv and the like in the folders themselves."""
    store_bytes: Suppress[bool | None] = None
    """Keep the bytes of image files in the index; those of shards are kept in any case. None: as in the last run, and
    not in the first one."""
    ocr: Suppress[bool | None] = None
    """Read text in the images too, into the column "ocr_text" and the full-text index. None: as in the last run, and
    not in the first one."""
    batch: Annotated[int, arg(name="batch-size")] = 64  # `encoder.BATCH`
    """Images that go through the model at a time."""
    approximate_from: Annotated[int, arg(name="ann-threshold")] = APPROXIMATE_FROM
    """Number of images from which on an approximate index is built beside the exact search."""
    remove: tuple[str, ...] = ()
    """Inputs of earlier runs whose images leave the index, or their table of metadata."""
    executor: Literal["local", "ray"] = "local"
    """Embed in this process, or in actors of Ray Data."""
    workers: int = 2
    """ray: models that work side by side."""

    def __post_init__(self) -> None:
        for name in ("batch", "approximate_from", "workers"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; give a number from 1 up")
