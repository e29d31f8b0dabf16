"""COCO 2014 with Karpathy's split: five captions an image."""

from __future__ import annotations

from pathlib import Path

from vlmo.data.prepare.karpathy import open_karpathy
from vlmo.data.prepare.parts import SetOnDisk, find

NAME = "coco"
LICENCE = "captions CC-BY-4.0; images under the Flickr terms of their owners"
KNOWN_SIZES = {"train": 113_287, "validation": 5_000, "test": 5_000}

KARPATHY_FILES = ("dataset_coco.json", "karpathy/dataset_coco.json")

_LAYOUT = "train2014/, val2014/ and dataset_coco.json (or karpathy/dataset_coco.json)"


def open_set(root: Path) -> SetOnDisk:
    """Find one row an image."""
    file = find(root, *KARPATHY_FILES, layout=_LAYOUT)
    for folder in ("train2014", "val2014"):
        find(root, folder, layout=_LAYOUT)
    return open_karpathy(
        file, name=NAME, licence=LICENCE, folder=root, image_id=lambda record: coco_image_id(record["cocoid"])
    )


def coco_image_id(number: int) -> str:
    """Return the name of an image of COCO in every set that holds it."""
    return f"{NAME}/{number}"
