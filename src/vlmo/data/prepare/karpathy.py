"""COCO 2014 and Flickr30K with Karpathy's splits: five captions an image."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from vlmo.data.prepare.parts import Row, SetOnDisk, chunked, find, image_at, read_records, text_of
from vlmo.data.schema import make_row

COCO_FILES = ("dataset_coco.json", "karpathy/dataset_coco.json")

_SPLITS = {"train": "train", "restval": "train", "val": "validation", "test": "test"}
"""COCO's `restval` is the part of val2014 that everyone trains on."""


def open_coco(root: Path) -> SetOnDisk:
    """Find one row an image of COCO."""
    layout = "train2014/, val2014/ and dataset_coco.json (or karpathy/dataset_coco.json)"
    file = find(root, *COCO_FILES, layout=layout)
    for folder in ("train2014", "val2014"):
        find(root, folder, layout=layout)
    licence = "captions CC-BY-4.0; images under the Flickr terms of their owners"
    sizes = {"train": 113_287, "validation": 5_000, "test": 5_000}
    return _open("coco", file, root, licence=licence, sizes=sizes, image_id=lambda of: coco_image_id(of["cocoid"]))


def open_flickr30k(root: Path) -> SetOnDisk:
    """Find one row an image of Flickr30K."""
    layout = "flickr30k-images/ and dataset_flickr30k.json (or karpathy/dataset_flickr30k.json)"
    file = find(root, "dataset_flickr30k.json", "karpathy/dataset_flickr30k.json", layout=layout)
    folder = find(root, "flickr30k-images", "flickr30k_images", layout=layout)
    licence = "research and education, not commercial; images under the Flickr terms of their owners"
    sizes = {"train": 29_000, "validation": 1_014, "test": 1_000}
    name = "flickr30k"
    return _open(
        name, file, folder, licence=licence, sizes=sizes, image_id=lambda of: f"{name}/{Path(of['filename']).stem}"
    )


def coco_image_id(number: int) -> str:
    """Return the name of an image of COCO in every set that holds it."""
    return f"coco/{number}"


def _open(
    name: str, file: Path, folder: Path, *, licence: str, sizes: dict[str, int], image_id: Callable[[Any], str]
) -> SetOnDisk:
    """A row an image, with all its sentences. A record's `filepath`, if it has one, is a folder below `folder`."""

    def row(record: dict[str, Any]) -> Row:
        split, image = _SPLITS[record["split"]], Path(record.get("filepath", "")) / record["filename"]
        captions = [text_of(sentence["raw"]) for sentence in record["sentences"]]
        cell = image_at(folder / image)
        return Row(split, make_row(image_id(record), image=cell, captions=captions, source=name, licence=licence))

    needs = f"filename, split ({', '.join(_SPLITS)}), sentences[].raw and in COCO cocoid"
    rows = read_records(file, row, key="images", needs=needs)
    return SetOnDisk(parts=chunked(rows), licence=licence, known_sizes=sizes)
