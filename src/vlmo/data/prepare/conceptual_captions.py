"""Conceptual Captions 3M and 12M, as img2dataset downloads them; sets such as LAION have the same form."""

from __future__ import annotations

from pathlib import Path

from vlmo.data.prepare.image_text_shards import open_shards
from vlmo.data.prepare.parts import SetOnDisk

NAME = "conceptual_captions"
LICENCE = "captions free to use, naming Google LLC as their source; pictures belong to their owners"
# Links die, so everyone has another number of pictures.
KNOWN_SIZES: dict[str, int] = {}


def open_set(root: Path) -> SetOnDisk:
    """A row a pair."""
    return open_shards(root, name=NAME, licence=LICENCE)
