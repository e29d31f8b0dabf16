"""ADE20K's scene parsing benchmark: photographs with one of 150 classes for each pixel."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from vlmo.data.decoding import decode_image, decode_mask, encode_image
from vlmo.data.prepare.parts import BadRow, Part, Row, SetOnDisk, find, first_of, image_at
from vlmo.data.schema import SEGMENT_FEATURES, make_row

NAME = "ade20k"
LICENCE = "annotations BSD-3-Clause (MIT CSAIL); images for non-commercial research and education"

NUM_CLASSES = 150
IGNORED = 255

_SPLITS = {"training": "train", "validation": "validation"}
_NAMES_FILE = "objectInfo150.txt"
_PART_ROWS = 256
"""Images of a part: their masks are read, numbered anew and packed again."""

_LAYOUT = (
    "images/{training,validation}/*.jpg and annotations/{training,validation}/*.png (there, or in "
    "ADEChallengeData2016/)"
)


def open_set(root: Path) -> SetOnDisk:
    """Find one row an image. Masks are stored with class n as n - 1, and 255 where the annotation has 0 (no class)."""
    base = find(root, "images", "ADEChallengeData2016/images", layout=_LAYOUT).parent
    parts = []
    for folder, split in _SPLITS.items():
        images, masks = (
            {file.stem: file for file in find(base, f"{name}/{folder}", layout=_LAYOUT).glob(f"*.{suffix}")}
            for name, suffix in (("images", "jpg"), ("annotations", "png"))
        )
        names = iter(sorted(images.keys() | masks.keys()))
        while chunk := list(itertools.islice(names, _PART_ROWS)):
            pairs = [(name, images.get(name), masks.get(name)) for name in chunk]
            stamps = [file.stat().st_mtime_ns for pair in pairs for file in pair[1:] if file]
            parts.append(Part(repr((split, pairs, stamps)), functools.partial(_rows, split=split, pairs=pairs)))
    file = first_of(base, _NAMES_FILE) or first_of(base.parent, _NAMES_FILE)
    return SetOnDisk(
        parts=parts,
        licence=LICENCE,
        known_sizes={"train": 20_210, "validation": 2_000},
        features=SEGMENT_FEATURES,
        labels=[str(number) for number in range(1, NUM_CLASSES + 1)] if file is None else _class_names(file),
        needs_caption=False,
        notes=[] if file else [f"{_NAMES_FILE} is not there; classes are called by their numbers"],
    )


def _class_names(file: Path) -> list[str]:
    lines = [line.split("\t") for line in file.read_text(encoding="utf-8").splitlines()[1:]]
    found = {int(cells[0]): cells[-1].strip() for cells in lines if cells[0].strip().isdecimal()}
    if sorted(found) != list(range(1, NUM_CLASSES + 1)) or len(set(found.values())) != NUM_CLASSES:
        raise ValueError(
            f"{file}: {len(found)} classes with {len(set(found.values()))} names; expected a heading, then "
            f"{NUM_CLASSES} lines of fields with tabs between: first the number, last the name"
        )
    return [found[number] for number in range(1, NUM_CLASSES + 1)]


def _rows(*, split: str, pairs: list[tuple[str, Path | None, Path | None]]) -> Iterator[Row | BadRow]:
    for name, image, mask in pairs:
        try:
            if image is None or mask is None:
                raise ValueError(f"{'the image' if image is None else 'the annotation'} is missing")
            numbers = decode_mask(image_at(mask))
            width, height = decode_image(image_at(image)).size
            if numbers.shape != (height, width):
                size = f"{numbers.shape[1]} x {numbers.shape[0]}"
                raise ValueError(f"{mask}: {size} pixels, its image has {width} x {height}")
            if numbers.max() > NUM_CLASSES:
                raise ValueError(f"{mask}: class {numbers.max()}; expected 0 (none) to {NUM_CLASSES}")
        except ValueError as error:
            yield BadRow(split, name, str(error), path=str(image or mask))
            continue
        renumbered = np.where(numbers == 0, IGNORED, numbers - np.uint8(1)).astype(np.uint8)
        cell = encode_image(Image.fromarray(renumbered), mask.name)
        yield Row(split, make_row(name, image=image_at(image), source=NAME, licence=LICENCE, mask=cell))
