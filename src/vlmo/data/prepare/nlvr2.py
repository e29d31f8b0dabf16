"""NLVR2: sentences that are true or false of two photographs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from vlmo.data.prepare.parts import BadRow, Row, SetOnDisk, chunked, find, first_of, image_at, text_of
from vlmo.data.schema import REASONING_FEATURES, make_row

NAME = "nlvr2"
LICENCE = "sentences CC-BY-4.0 (NLVR2); images of the web under the terms of their owners, for research"
KNOWN_SIZES = {"train": 86_373, "validation": 6_982, "test": 6_967}

_SPLITS = {"train": "train", "dev": "validation", "test1": "test"}
_LABELS = {"none": -1, "true": 1, "false": 0}

_LAYOUT = (
    "train.json, dev.json and test1.json (there, in data/ or in nlvr2/data/), and the images in images/train/, dev/ "
    "and test1/ (or images/dev/ and images/test1/)"
)


def open_set(root: Path) -> SetOnDisk:
    """Find one row a sentence; its images are the left and the right one."""
    found = {
        part: first_of(root, *(f"{folder}{part}.json" for folder in ("", "data/", "nlvr2/data/"))) for part in _SPLITS
    }
    files = {part: file for part, file in found.items() if file is not None}
    if not files:
        find(root, "train.json", "dev.json", "test1.json", layout=_LAYOUT)
    folders = {part: find(root, f"images/{part}", part, layout=_LAYOUT) for part in files}

    def rows() -> Iterator[Row | BadRow]:
        for part, file in files.items():
            for number, line in enumerate(file.read_bytes().splitlines(), start=1):
                if line.strip():
                    yield _row(line, where=f"{file}:{number}", part=part, folder=folders[part])

    return SetOnDisk(
        parts=chunked(rows),
        licence=LICENCE,
        features=REASONING_FEATURES,
        known_sizes={_SPLITS[part]: KNOWN_SIZES[_SPLITS[part]] for part in files},
        notes=[f"{part}.json is not there" for part in _SPLITS if part not in files],
    )


def _row(line: bytes, *, where: str, part: str, folder: Path) -> Row | BadRow:
    try:
        record = json.loads(line)
        identifier, sentence, label = record["identifier"], text_of(record["sentence"]), str(record.get("label"))
        of_part, images, pair, sentence_number = identifier.split("-")
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(
            f"{where}: expected an object with sentence, label and identifier (such as dev-850-0-1): {error!r}"
        ) from error
    split = _SPLITS[part]
    if of_part != part or label.lower() not in _LABELS:
        return BadRow(split, identifier, f"{where}: {of_part!r} with label {label!r}; expected {part!r}, True or False")
    # Only the training images are in folders, by a number that their records have.
    folder = folder / str(record["directory"]) if "directory" in record else folder
    left, right = (image_at(folder / f"{part}-{images}-{pair}-img{side}.png") for side in (0, 1))
    row = make_row(identifier, image=left, captions=[sentence], source=NAME, licence=LICENCE, second_image=right)
    # As the official metric does it: a sentence was written for the four pairs of one set of images.
    group = f"{part}-{images}-{sentence_number}"
    return Row(split, row | {"label": _LABELS[label.lower()], "sentence_group": group})
