"""Flickr30K with Karpathy's split: five captions a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vlmo.data.prepare.karpathy import open_karpathy
from vlmo.data.prepare.parts import SetOnDisk, find

NAME = "flickr30k"
LICENCE = "research and education, not commercial; pictures under the Flickr terms of their owners"
KNOWN_SIZES = {"train": 29_000, "validation": 1_014, "test": 1_000}

_LAYOUT = "flickr30k-images/ and dataset_flickr30k.json (or karpathy/dataset_flickr30k.json)"


def open_set(root: Path) -> SetOnDisk:
    """A row a picture."""
    file = find(root, "dataset_flickr30k.json", "karpathy/dataset_flickr30k.json", layout=_LAYOUT)
    folder = find(root, "flickr30k-images", "flickr30k_images", layout=_LAYOUT)
    return open_karpathy(file, name=NAME, licence=LICENCE, folder=folder, image_id=_image_id)


def _image_id(record: dict[str, Any]) -> str:
    return f"{NAME}/{Path(record['filename']).stem}"
