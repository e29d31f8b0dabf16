"""Drawings of emoji in further styles, and keywords, beside those of the built-in set `drawings-pairs`.

The files are those of npm packages, as `npm install` lays them out; at least one style must be there.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from vlmo.data.builtin import emoji
from vlmo.data.prepare.preparer import Record, Row, SetOnDisk, find
from worlds.emoji import Drawing, first_names, read_drawings, read_emoji, rows_of, unlike
from worlds.naming import with_article

LICENCE = "Noto Emoji: Apache-2.0; Fluent Emoji and keywords: MIT; Twemoji: CC-BY-4.0; OpenMoji: CC-BY-SA-4.0"

NOTO, FLUENT = "noto", "fluent"
_FOLDERS = {NOTO: "emoji-datasource-google/img/google/64", FLUENT: "@lobehub/fluent-emoji-3d/assets"}
_LICENCES = {**emoji.LICENCES, NOTO: "Apache-2.0", FLUENT: "MIT"}
_KEYWORDS = "emojibase-data/en/data.json"
_LAYOUT = (
    "what `npm install emoji-datasource-google @lobehub/fluent-emoji-3d emojibase-data` leaves under node_modules "
    f"({', '.join(_FOLDERS.values())}, {_KEYWORDS})"
)
_SUFFIXES = (".png", ".webp")


def open_set(root: Path) -> SetOnDisk:
    """A row a drawing: `train`; `test`, as in every emoji set; `concepts`, new ones. ValueError without a style."""
    find(root, ".", layout=_LAYOUT)
    folders = {style: root / folder for style, folder in _FOLDERS.items() if (root / folder).is_dir()}
    if not folders:
        raise ValueError(f"{root}: neither {' nor '.join(_FOLDERS.values())} is there; --root must be {_LAYOUT}")
    keywords = _read_keywords(root / _KEYWORDS)
    missing = [f"{folder} is not there" for style, folder in _FOLDERS.items() if style not in folders]
    missing += [] if keywords else [f"{_KEYWORDS} is not there, so that captions are names alone"]
    rows = list(_rows(folders, keywords))
    return SetOnDisk(lambda: rows, LICENCE, notes=missing)


def _rows(folders: dict[str, Path], keywords: dict[str, str]) -> Iterator[Record]:
    names, twemoji, openmoji, concepts = found = read_emoji()
    styles = {emoji.TWEMOJI: twemoji, emoji.OPENMOJI: openmoji}
    for style, folder in folders.items():
        kept = {file.name: file.read_bytes() for file in sorted(folder.iterdir()) if file.suffix in _SUFFIXES}
        styles[style] = read_drawings(style, kept)
    new = found.of_new(*styles.values())
    captions = {
        codes: with_article((*known, keywords[codes]) if codes in keywords else known, key=codes)
        for codes, known in names.items()
    }
    train: list[Drawing] = []
    for style, drawings in styles.items():
        usable = unlike(drawings, new)
        if style == emoji.OPENMOJI:
            usable &= concepts.trainable
        elif style != emoji.TWEMOJI:
            usable &= unlike(drawings, found.test, variants=False)
        train += [drawings[codes] for codes in names if codes in usable]
    plain = first_names(names)
    splits = {"train": (train, captions), "test": (found.test, plain), "concepts": (found.new, plain)}
    for split, (drawings, known) in splits.items():
        for row in rows_of(drawings, names=known, licences=_LICENCES):
            yield Row(split, row)


def _read_keywords(file: Path) -> dict[str, str]:
    """Keywords of a drawing as one text, by code points; nothing if there is no file."""
    if not file.is_file():
        return {}
    try:
        entries = json.loads(file.read_text(encoding="utf-8"))
        return {emoji.plain_codes(entry["hexcode"]): ", ".join(entry["tags"]) for entry in entries if entry.get("tags")}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{file}: its keywords cannot be read ({error!r}); get the package again") from error
