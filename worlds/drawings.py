"""Drawings of emoji in further styles, and keywords, beside Twemoji's of the built-in set `drawings-pairs`.

The files are those of npm packages, as `npm install` lays them out; at least one style must be there.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from vlmo.data.builtin import emoji
from vlmo.data.prepare.preparer import Record, Row, SetOnDisk, find
from worlds.emoji import Drawing, first_names, is_hidden, read_drawings, read_emoji, rows_of, unlike
from worlds.naming import with_article

LICENCE = "Noto Emoji: Apache-2.0; Fluent Emoji and keywords: MIT; Twemoji: CC-BY-4.0; OpenMoji (test): CC-BY-SA-4.0"

NOTO, FLUENT = "noto", "fluent"
_FOLDERS = {
    NOTO: "emoji-datasource-google/img/google/64",
    FLUENT: "@lobehub/fluent-emoji-3d/assets",
}
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
    folders = {
        style: root / folder for style, folder in _FOLDERS.items() if (root / folder).is_dir()
    }
    if not folders:
        raise ValueError(
            f"{root}: neither {' nor '.join(_FOLDERS.values())} is there; --root must be {_LAYOUT}"
        )
    keywords = _read_keywords(root / _KEYWORDS)
    missing = [
        f"{folder} is not there" for style, folder in _FOLDERS.items() if style not in folders
    ]
    missing += [] if keywords else [f"{_KEYWORDS} is not there, so that captions are names alone"]
    rows = list(_rows(folders, keywords))
    return SetOnDisk(lambda: rows, LICENCE, notes=missing)


def _rows(folders: dict[str, Path], keywords: dict[str, list[str]]) -> Iterator[Record]:
    found = read_emoji()
    names, hidden, styles = found.names, found.hidden_names, {emoji.TWEMOJI: found.twemoji}
    for style, folder in folders.items():
        kept = {
            file.name: file.read_bytes()
            for file in sorted(folder.iterdir())
            if file.suffix in _SUFFIXES
        }
        styles[style] = read_drawings(style, kept)
    new = found.of_new(*styles.values(), found.openmoji)
    captions = {}
    for codes, known in names.items():
        known, tags = (
            [each for each in texts if not is_hidden(each, hidden)]
            for texts in (known, keywords[codes])
        )
        if known:
            captions[codes] = with_article([*known, *filter(None, [", ".join(tags)])], key=codes)
    train: list[Drawing] = []
    for drawings in styles.values():
        usable = unlike(drawings, new) & unlike(drawings, found.test, variants=False)
        train += [drawings[codes] for codes in captions if codes in usable]
    plain = first_names(names)
    splits = {
        "train": (train, captions),
        "test": (found.test, plain),
        "concepts": (found.new, plain),
    }
    for split, (drawings, known) in splits.items():
        for row in rows_of(drawings, names=known, licences=_LICENCES):
            yield Row(split, row)


def _read_keywords(file: Path) -> defaultdict[str, list[str]]:
    """Keywords of drawings by code points; none if there is no file."""
    found = defaultdict[str, list[str]](list)
    if not file.is_file():
        return found
    try:
        entries = json.loads(file.read_text(encoding="utf-8"))
        found |= {emoji.plain_codes(entry["hexcode"]): entry.get("tags") or [] for entry in entries}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(
            f"{file}: its keywords cannot be read ({error!r}); get the package again"
        ) from error
    return found
