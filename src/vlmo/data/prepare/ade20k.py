"""ADE20K's scene parsing benchmark: photographs with one of 150 classes for each pixel."""

from __future__ import annotations

import functools
import hashlib
import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from vlmo.data.decoding import decode_image, decode_mask, encode_image
from vlmo.data.prepare.parts import BadRow, Part, Row, SetOnDisk, file_key, find, image_at
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
    for name in ("images", "annotations"):
        for folder in _SPLITS:
            find(base, f"{name}/{folder}", layout=_LAYOUT)
    file = next((place / _NAMES_FILE for place in (base, base.parent) if (place / _NAMES_FILE).is_file()), None)
    return SetOnDisk(
        parts=list(_parts(base)),
        licence=LICENCE,
        known_sizes={"train": 20_210, "validation": 2_000},
        features=SEGMENT_FEATURES,
        labels=[str(number) for number in range(1, NUM_CLASSES + 1)] if file is None else _class_names(file),
        needs_caption=False,
        notes=(f"{_NAMES_FILE} is not there; classes are called by their numbers",) if file is None else (),
    )


def _class_names(file: Path) -> list[str]:
    found: dict[int, str] = {}
    for line in file.read_text(encoding="utf-8").splitlines()[1:]:
        cells = [cell.strip() for cell in line.split("\t")]
        if cells[0].isdecimal():
            found[int(cells[0])] = cells[-1]
    if sorted(found) != list(range(1, NUM_CLASSES + 1)) or len(set(found.values())) != NUM_CLASSES:
        raise ValueError(
            f"{file}: {len(found)} classes with {len(set(found.values()))} names; expected a heading, then "
            f"{NUM_CLASSES} lines of fields with tabs between: first the number, last the name"
        )
    return [found[number] for number in range(1, NUM_CLASSES + 1)]


def _parts(base: Path) -> Iterator[Part]:
    for folder, split in _SPLITS.items():
        images = {file.stem: file for file in sorted((base / "images" / folder).glob("*.jpg"))}
        masks = {file.stem: file for file in sorted((base / "annotations" / folder).glob("*.png"))}
        names = iter(sorted(images.keys() | masks.keys()))
        while chunk := list(itertools.islice(names, _PART_ROWS)):
            pairs = [(name, images.get(name), masks.get(name)) for name in chunk]
            files = [file_key(file) for pair in pairs for file in pair[1:] if file is not None]
            key = hashlib.sha256(repr((split, pairs, files)).encode()).hexdigest()
            yield Part(key=key, rows=functools.partial(_rows, split=split, pairs=pairs))


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
