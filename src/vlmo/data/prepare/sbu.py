"""SBU Captions, as img2dataset downloads them."""

from __future__ import annotations

from pathlib import Path

from vlmo.data.prepare.image_text_shards import open_shards
from vlmo.data.prepare.parts import SetOnDisk

NAME = "sbu"
LICENCE = "captions for research; pictures under the Flickr terms of their owners"
# Links die, so everyone has another number of pictures.
KNOWN_SIZES: dict[str, int] = {}


def open_set(root: Path) -> SetOnDisk:
    """A row a pair."""
    return open_shards(root, name=NAME, licence=LICENCE)
