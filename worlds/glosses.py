"""Glosses of WordNet, as its database files hold them (Debian's package wordnet-base)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from vlmo.data.prepare.preparer import BadRow, Record, Row, SetOnDisk, find
from vlmo.data.schema import hash_share, make_row

LICENCE = "WordNet 3.0: free to use, copy and modify with Princeton University's notice"

TEST_SHARE = 0.01
"""Share of glosses, chosen by a hash, that are kept for testing."""

_FILES = ("data.noun", "data.verb", "data.adj", "data.adv")
_CHUNK = 16_384
_ROW_LICENCE = "WordNet-3.0"
_NOTICE = "  "
"""Lines of the licence, at the head of each file, begin so."""
_PLACE_OF_ADJECTIVE = re.compile(r"\((a|p|ip)\)$")


def open_set(root: Path) -> SetOnDisk:
    """A row a meaning: its words, a colon, and the gloss."""
    layout = f"{', '.join(_FILES)} (Debian: /usr/share/wordnet)"
    files = [find(root, name, layout=layout) for name in _FILES]
    return SetOnDisk(
        lambda: (record for file in files for record in _rows(file)),
        LICENCE,
        chunk=_CHUNK,
        needs_image=False,
    )


def _rows(file: Path) -> Iterator[Record]:
    with file.open(encoding="utf-8", errors="replace") as opened:
        for number, line in enumerate(opened, start=1):
            if line.startswith(_NOTICE):
                continue
            image_id = f"{file.name}:{number}"
            try:
                text = _text(line)
            except (ValueError, IndexError) as error:
                yield BadRow(
                    "train",
                    image_id,
                    f"{file}:{number}: no line of WordNet's ({error!r})",
                    path=str(file),
                )
                continue
            split = "test" if hash_share(text) < TEST_SHARE else "train"
            yield Row(
                split, make_row(image_id, captions=[text], source="wordnet", licence=_ROW_LICENCE)
            )


def _text(line: str) -> str:
    """The format is that of wndb(5WN): the fourth field is the number of words, in hexadecimal; an id follows each."""
    fields, gloss = line.split(" | ", maxsplit=1)
    parts = fields.split()
    words = [parts[4 + 2 * place] for place in range(int(parts[3], 16))]
    plain = [_PLACE_OF_ADJECTIVE.sub("", word).replace("_", " ") for word in words]
    return f"{', '.join(plain)}: {gloss.strip()}"
