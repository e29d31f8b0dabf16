"""SugarCrepe: images with a true and a false caption."""

from __future__ import annotations

import functools
from pathlib import Path

from vlmo.data.decoding import image_at
from vlmo.data.prepare.preparer import Row, SetOnDisk, find, read_records, text_of
from vlmo.data.schema import COMPOSITION_FEATURES, make_row

_LAYOUT = "add_obj.json, swap_att.json, ... (there or in data/), and COCO's val2017/"


def open_sugarcrepe(root: Path) -> SetOnDisk:
    """Find one row a record; its category is the `kind`. ValueError where files are missing."""
    images = find(root, "val2017", layout=_LAYOUT)
    files = sorted([*root.glob("*.json"), *root.glob("data/*.json")])
    if not files:
        raise ValueError(f"{root}: no .json file; --root must be a folder with {_LAYOUT}")

    def row(pair: tuple[str, dict[str, str]], *, kind: str) -> Row:
        image, true, false = (text_of(pair[1][name]) for name in ("filename", "caption", "negative_caption"))
        values = make_row(
            f"sugarcrepe/{kind}/{pair[0]}",
            image=image_at(images / image),
            captions=[true],
            false_caption=false,
            kind=kind,
            source="sugarcrepe",
            licence="MIT; image of COCO",
        )
        return Row("test", values)

    rows = [each for file in files for each in read_records(file, functools.partial(row, kind=file.stem))]
    terms = "captions MIT (SugarCrepe); images under the terms of their owners (COCO)"
    return SetOnDisk(lambda: rows, terms, features=COMPOSITION_FEATURES)
