"""NLVR2: sentences that are true or false of two photographs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vlmo.data.prepare.parts import BadRow, Row, SetOnDisk, chunked, find, image_at, text_of
from vlmo.data.schema import REASONING_FEATURES

NAME = "nlvr2"
LICENCE = "sentences CC-BY-4.0 (NLVR2); pictures of the web under the terms of their owners, for research"
KNOWN_SIZES = {"train": 86_373, "validation": 6_982, "test": 6_967}

_SPLITS = {"train": "train", "dev": "validation", "test1": "test"}
_LABELS = {"true": 1, "false": 0}

_LAYOUT = (
    "train.json, dev.json and test1.json (there, in data/ or in nlvr2/data/), and the pictures in images/train/, dev/ "
    "and test1/ (or images/dev/ and images/test1/)"
)


def open_set(root: Path) -> SetOnDisk:
    """A row a sentence; its pictures are the left and the right one."""
    files = {part: file for part in _SPLITS if (file := _find_file(root, part)) is not None}
    if not files:
        find(root, "train.json", "dev.json", "test1.json", layout=_LAYOUT)
    folders = {part: _image_folder(root, part) for part in files}
    return SetOnDisk(
        parts=list(
            chunked(row for part, file in files.items() for row in _rows(file, part=part, folder=folders[part]))
        ),
        features=REASONING_FEATURES,
        known_sizes={_SPLITS[part]: KNOWN_SIZES[_SPLITS[part]] for part in files},
        notes=tuple(f"{part}.json is not there" for part in _SPLITS if part not in files),
    )


def _find_file(root: Path, part: str) -> Path | None:
    places = (root / folder / f"{part}.json" for folder in ("", "data", "nlvr2/data"))
    return next((place for place in places if place.is_file()), None)


def _image_folder(root: Path, part: str) -> Path:
    return find(root, f"images/{part}", part, layout=_LAYOUT)


def _rows(file: Path, *, part: str, folder: Path) -> Iterator[Row | BadRow]:
    with file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield _row(line, where=f"{file}:{number}", part=part, folder=folder)


def _row(line: bytes, *, where: str, part: str, folder: Path) -> Row | BadRow:
    try:
        record = json.loads(line)
        identifier, sentence, label = record["identifier"], text_of(record["sentence"]), record.get("label")
        of_part, pictures, pair, sentence_number = identifier.split("-")
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(
            f"{where}: expected an object with sentence, label and identifier (such as dev-850-0-1): {error!r}"
        ) from error
    split = _SPLITS[part]
    if of_part != part:
        return BadRow(split, identifier, f"{where}: split {of_part!r} in a file of {part!r}")
    number = -1 if label is None else _LABELS.get(str(label).lower())
    if number is None:
        return BadRow(split, identifier, f"{where}: label {label!r}; expected True or False")
    # Only the training pictures are in folders, by a number that their records have.
    folder = folder / str(record["directory"]) if "directory" in record else folder
    left, right = (folder / f"{part}-{pictures}-{pair}-img{side}.png" for side in (0, 1))
    return Row(split, _values(identifier, sentence, label=number, left=left, right=right, group=sentence_number))


def _values(identifier: str, sentence: str, *, label: int, left: Path, right: Path, group: str) -> dict[str, Any]:
    part, pictures, _, _ = identifier.split("-")
    return {
        "image": image_at(left),
        "captions": [sentence],
        "image_id": identifier,
        "source": NAME,
        "licence": LICENCE,
        "second_image": image_at(right),
        "label": label,
        # As the official metric does it: a sentence was written for the four pairs of one set of pictures.
        "sentence_group": f"{part}-{pictures}-{group}",
    }
