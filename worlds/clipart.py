"""Clip art with titles and keywords, as Debian's package `openclipart-svg` holds it."""

from __future__ import annotations

import functools
import itertools
import re
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image, ImageOps

from vlmo.data.builtin.icons import draw_svg
from vlmo.data.decoding import encode_image
from vlmo.data.listing import walk
from vlmo.data.prepare.preparer import BadRow, Record, Row, SetOnDisk, find, first_of, stamped
from vlmo.data.schema import hash_share, make_row
from worlds.emoji import is_hidden, read_emoji
from worlds.naming import with_article
from worlds.svg import Looks, record_of

LICENCE = "public domain, by the dedication of each author"
TEST_SHARE = 0.1
"""Share of authors, chosen by a hash, whose images are for testing; of files without an author, of folders."""
PIXELS = 96

_ROW_LICENCE = "public domain"
_LAYOUT = "the files of openclipart-svg (Debian: /usr/share/openclipart/svg)"
_UNUSED = re.compile(
    r"shapes/(stars|jigsaw)|special|logos|unsorted|games/cards|computer/(icons/.*-theme|buttons)"
)
"""Folders of polygons, patterns, signs of companies, and icons of desktops with the names of programs."""
_MOST_TITLES = 3
"""Files that may share a title; one that more share is that of a collection."""
_COLLECTION = re.compile(r"clipart by|part of|collection", re.IGNORECASE)
_OTHER_LANGUAGE = re.compile(r"rollandin|guillou", re.IGNORECASE)
"""Authors whose titles are Italian or French; their keywords are English."""
_NO_KEYWORD = re.compile(
    r"hash.*|0x.*|\d.*|.*theme.*|icons?|.*icon|symbols?|signs?|signs and symbols|.*sym|map symbol|unsorted|mime.*|misc|"
    r"united nations member"
)
_CHUNK = 256
_FOLDERS = ("usr/share/openclipart/svg", "svg")
_MOST_KEYWORDS = 5
_WORD = re.compile(r"[^\W\d]{3}")
_DC = "{http://purl.org/dc/elements/1.1/}"
_ITEM = "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}li"


class Work(NamedTuple):
    """Facts in the RDF of a file."""

    title: str
    author: str
    keywords: tuple[str, ...]
    is_free: bool


@dataclass(frozen=True)
class ClipArt:
    """A file, and what its RDF says; `captions` are the title, in training also with keywords and with an article."""

    file: Path
    name: str
    captions: tuple[str, ...]
    split: str


def open_set(root: Path) -> SetOnDisk:
    """A row a file: `train`, and `test` by other authors, where each title occurs once; ValueError without a file.

    What has a name of `drawings-concepts` as its title, or in its keywords, is left out of `train`.
    """
    find(root, ".", layout=_LAYOUT)
    folder = first_of(root, *_FOLDERS) or root
    bad: list[Record] = []
    works = []
    for file in walk(folder):
        name = file.relative_to(folder).with_suffix("").as_posix()
        if file.suffix == ".svg" and not _UNUSED.search(name):
            try:
                works.append((file, name, _read_work(file)))
            except ET.ParseError as error:
                bad.append(BadRow("train", name, f"{file}: no XML ({error})", path=str(file)))
    if not works:
        raise ValueError(f"{root}: no .svg file; --root must be {_LAYOUT}")
    hidden = read_emoji().hidden_names
    art = [
        each
        for each in _describe(works)
        if each.split == "test" or not any(is_hidden(text, hidden) for text in each.captions)
    ]
    tests = [each for each in art if each.split == "test"]
    looks = Looks.of(functools.partial(_draw, each.file) for each in tests)
    items = [*(each for each in art if each.split == "train"), *tests]
    return SetOnDisk(
        lambda: itertools.chain(((each, stamped(each.file)) for each in items), bad),
        LICENCE,
        read=functools.partial(_records, tested=looks),
        chunk=_CHUNK,
        key=looks.digest,
    )


def _read_work(file: Path) -> Work:
    """Return the title, author and keywords of a file, as far as it has them; ParseError if it is no XML."""
    found = ET.parse(file).find(".//{*}Work")
    if found is None:
        return Work("", "", (), is_free=True)
    creator, licence = found.find(f"{_DC}creator"), found.find("{*}license")
    keywords = (
        " ".join((item.text or "").replace("_", " ").split()).lower() for item in found.iter(_ITEM)
    )
    return Work(
        title=found.findtext(f"{_DC}title") or "",
        author="" if creator is None else " ".join("".join(creator.itertext()).split()),
        keywords=tuple(
            dict.fromkeys(word for word in keywords if word and not _NO_KEYWORD.fullmatch(word))
        ),
        is_free=licence is None or not any("GPL" in value for value in licence.attrib.values()),
    )


def _describe(works: Sequence[tuple[Path, str, Work]]) -> list[ClipArt]:
    """Return the files that have words and are free, with their captions and split."""
    uses = Counter(_plain(work.title) for _, _, work in works)
    described, tested = [], set()
    for file, name, work in works:
        title = _plain(work.title)
        if uses[title] > _MOST_TITLES or _COLLECTION.search(work.title):
            title = _plain(_without_author(Path(name).name, work.author))
        if not _WORD.search(title) or _OTHER_LANGUAGE.search(work.author):
            title = " ".join(work.keywords[:1])
        if not title or not work.is_free:
            continue
        split = (
            "test" if hash_share(work.author or str(Path(name).parent)) < TEST_SHARE else "train"
        )
        words = [word for word in work.keywords if word not in title][:_MOST_KEYWORDS]
        captions = (title, *([", ".join([title, *words])] if words and split == "train" else []))
        captions = with_article(captions, key=name) if split == "train" else captions
        if split == "train" or title not in tested:
            tested.update([title] if split == "test" else [])
            described.append(ClipArt(file, name, captions, split))
    return described


def _plain(title: str) -> str:
    """Return a title in lower case, without underscores and the number at its end."""
    return re.sub(
        r"[\s\d]+$", "", " ".join(re.sub(r"[_()-]+|(?i:^aiga)", " ", title).split())
    ).lower()


def _without_author(name: str, author: str) -> str:
    """Return the name of a file without the author's names, which it may hold cut off."""
    names = [word for word in re.split(r"\W+", author.lower()) if len(word) > 1]
    parts = name.lower().replace("-", "_").split("_")
    return " ".join(
        part
        for part in parts
        if not (len(part) > 2 and any(word.startswith(part) for word in names))
    )


def _draw(file: Path) -> Image.Image:
    """Return a drawing without its margin, in the middle of a square; ValueError where it cannot be drawn."""
    image = draw_svg(file.read_text(encoding="utf-8", errors="replace"), pixels=2 * PIXELS)
    box = image.getchannel("A").getbbox()
    return ImageOps.pad(
        image if box is None else image.crop(box), (PIXELS, PIXELS), color=(0, 0, 0, 0)
    )


def _records(items: Sequence[Any], *, tested: Looks) -> Iterator[Record]:
    for item in items:
        if isinstance(item, BadRow):
            yield item
            continue
        each: ClipArt = item[0]
        record = record_of(
            functools.partial(_draw, each.file),
            functools.partial(_row, each),
            split=each.split,
            image_id=each.name,
            path=str(each.file),
            tested=tested,
        )
        if record is not None:
            yield record


def _row(art: ClipArt, image: Image.Image) -> Row:
    cell = encode_image(image, f"{art.name}.png")
    row = make_row(
        art.name, image=cell, captions=art.captions, source="openclipart", licence=_ROW_LICENCE
    )
    return Row(art.split, row)
