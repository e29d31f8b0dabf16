"""Flickr30K with Karpathy's split: five captions an image."""

from __future__ import annotations

from pathlib import Path

from vlmo.data.prepare.karpathy import open_karpathy
from vlmo.data.prepare.parts import SetOnDisk, find

NAME = "flickr30k"
LICENCE = "research and education, not commercial; images under the Flickr terms of their owners"
KNOWN_SIZES = {"train": 29_000, "validation": 1_014, "test": 1_000}

_LAYOUT = "flickr30k-images/ and dataset_flickr30k.json (or karpathy/dataset_flickr30k.json)"


def open_set(root: Path) -> SetOnDisk:
    """Find one row an image."""
    return open_karpathy(
        find(root, "dataset_flickr30k.json", "karpathy/dataset_flickr30k.json", layout=_LAYOUT),
        name=NAME,
        licence=LICENCE,
        folder=find(root, "flickr30k-images", "flickr30k_images", layout=_LAYOUT),
        image_id=lambda record: f"{NAME}/{Path(record['filename']).stem}",
    )
