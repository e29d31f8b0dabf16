"""Icons of open sets with their names, as npm's package `@iconify/json` holds them.

A set is one JSON file; sets of one artist in several styles are a family. The sets in `HELD_OUT` are kept for testing,
and no training image looks like one of their images that are tested, here or in the built-in `lucide-icons`.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vlmo.data.builtin.icons import draw_svg
from vlmo.data.decoding import encode_image
from vlmo.data.prepare.preparer import Record, Row, SetOnDisk, find, stamped
from vlmo.data.schema import hash_share, make_row
from worlds.emoji import Drawing, is_hidden, read_emoji
from worlds.naming import TYPED, Naming, caption_of, category_of, is_brand, is_sign, with_article
from worlds.svg import Looks, open_png, record_of

LICENCE = (
    "that of each icon's set; sets under the GPL, and for non-commercial use alone, are left out"
)

HELD_OUT = frozenset(("lucide", "lucide-lab", "game-icons", "icon-park"))
"""Sets for testing: lines, silhouettes, and drawings in color."""
_BUILT_IN = "lucide"
"""Set of which the built-in `lucide-icons` tests every icon."""
NUM_TEST = 1000
"""Images of "test", and of "new_names"."""
KNOWN_FROM = 3
"""Training images that must have a name before it counts as known."""
VARIANTS = 2
"""Images of one name that a family may give."""
PIXELS = 64

PLAIN, CLEAR, GROUND = "plain", "clear", "ground"
PAINT = ((0.5, PLAIN), (0.75, CLEAR), (1.0, GROUND))
"""Shares of the icons in `currentColor`, added up: black, colored, or colored on a plain background."""
COLORS = {
    "black": (0, 0, 0),
    "white": (255, 255, 255),
    "gray": (140, 140, 140),
    "red": (222, 32, 38),
    "orange": (245, 130, 20),
    "yellow": (250, 214, 30),
    "green": (40, 160, 60),
    "blue": (30, 90, 220),
    "purple": (132, 44, 190),
    "pink": (248, 130, 185),
    "brown": (130, 82, 45),
}
_PAINTED = frozenset((*COLORS, "on"))
"""Words that the names of colored icons stand between."""
_LEAST_CONTRAST = 125
"""Distance between the colors of an icon and its background."""

_FAMILIES = {
    "bx": "boxicons",
    "bxs": "boxicons",
    "emojione": "emojione",
    "fa7": "fa7",
    "fluent-emoji": "fluent-emoji",
    "fluent": "fluent",
    "glyphs": "glyphs",
    "ic": "material",
    "lucide": "lucide",
    "material-symbols": "material",
    "mdi": "material",
    "noto": "noto",
    "pepicons": "pepicons",
    "streamline": "streamline",
    "uil": "unicons",
    "uim": "unicons",
    "uis": "unicons",
    "uit": "unicons",
}
"""Names of sets, up to a hyphen, that belong to a family."""
_UNUSED_CATEGORIES = frozenset(("Logos", "Archive / Unmaintained", "Programming", ""))
_USED = frozenset(("codicon",))
"""A set of a category that is not used otherwise."""
_UNUSED = frozenset(
    (
        *("circle-flags", "flag", "flagpack", "cif"),  # named by the codes of countries
        *("fxemoji", "picon"),  # namedwithoutspaces
        *("academicons", "svg-spinners"),  # signs of services; animations
        *(
            "icon-park-outline",
            "icon-park-solid",
            "icon-park-twotone",
            "feather",
        ),  # of families that are held out
        *("openmoji", "twemoji"),  # one is kept for testing, the other built in
    )
)

_FILE = "collections.json"
_FOLDERS = (".", "package", "@iconify/json", "node_modules/@iconify/json")
_LAYOUT = "what `npm pack @iconify/json`, unpacked, or `npm install @iconify/json` leaves"
_MOVES = frozenset(("rotate", "hFlip", "vFlip"))
_XLINK = 'xmlns:xlink="http://www.w3.org/1999/xlink"'


@dataclass(frozen=True)
class IconSet:
    """A set, as `collections.json` describes it."""

    name: str
    licence: str
    category: str
    file: Path

    @property
    def family(self) -> str:
        """Name of the family, or the set's own."""
        words = self.name.split("-")
        starts = ("-".join(words[:length]) for length in range(len(words), 0, -1))
        return next((_FAMILIES[start] for start in starts if start in _FAMILIES), self.name)

    @property
    def is_used(self) -> bool:
        """False for terms or contents that are left out."""
        is_free = self.licence and not self.licence.startswith("GPL") and "-NC" not in self.licence
        is_kind = self.name in _USED or self.category not in _UNUSED_CATEGORIES
        return bool(is_free and is_kind and self.name not in _UNUSED)


@dataclass(frozen=True)
class Icon:
    """An image.

    Attributes:
        key: Name in the set.
        captions: The name in words, then its synonyms.
        category: Of the set's categories, one that describes the image.
        digest: Of the drawing.
        split: Where it goes.
    """

    icon_set: IconSet
    key: str
    captions: tuple[str, ...]
    category: str | None
    digest: bytes = field(repr=False)
    split: str = "train"

    @property
    def image_id(self) -> str:
        """Set and name, as Iconify writes them."""
        return f"{self.icon_set.name}:{self.key}"

    @property
    def is_held_out(self) -> bool:
        """True for an icon that no training sees."""
        return self.icon_set.name in HELD_OUT


def open_set(root: Path) -> SetOnDisk:
    """A row an image: `train`; `test` and `new_names`, images of held-out sets whose names train has and has not."""
    folder = find(root, *(f"{place}/{_FILE}" for place in _FOLDERS), layout=_LAYOUT).parent
    sets = _read_sets(folder)
    hidden, drawings = _held_out_emoji()
    icons = _distinct(icon for each in sets for icon in _read_icons(each, hidden=hidden))
    train = _few_variants([icon for icon in icons if not icon.is_held_out])
    tests = _choose_tests([icon for icon in icons if icon.is_held_out], train=train)
    tested = (
        functools.partial(_draw, _read_json(icon.icon_set.file), icon.key)
        for icon in (*tests, *(icon for icon in icons if icon.icon_set.name == _BUILT_IN))
    )
    looks = Looks.of([*tested, *(functools.partial(open_png, drawing.png) for drawing in drawings)])
    return SetOnDisk(
        lambda: itertools.chain(train, tests),
        LICENCE,
        read=functools.partial(_records, tested=looks),
        key=(looks.digest, [stamped(each.file) for each in sets], PAINT, COLORS, TYPED),
    )


# ------------------------------------------------------------------------------------------------------------- reading


def _read_sets(folder: Path) -> list[IconSet]:
    try:
        facts = json.loads((folder / _FILE).read_text(encoding="utf-8"))
        sets = [
            IconSet(
                name,
                entry["license"].get("spdx", ""),
                entry.get("category", ""),
                folder / "json" / f"{name}.json",
            )
            for name, entry in facts.items()
            if not entry.get("hidden")
        ]
    except (ValueError, LookupError, AttributeError) as error:
        raise ValueError(
            f"{folder / _FILE} cannot be read ({error!r}); get the package again"
        ) from error
    used = [each for each in sets if each.is_used]
    if missing := [each.file for each in used if not each.file.is_file()]:
        raise ValueError(
            f"{len(missing)} sets are missing, such as {missing[0]}; get the package again"
        )
    return used


@functools.lru_cache(maxsize=1)
def _read_json(file: Path) -> dict[str, Any]:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} cannot be read ({error}); get the package again") from error


def _read_icons(icon_set: IconSet, *, hidden: frozenset[str]) -> Iterator[Icon]:
    """Yield the icons of a set that have words; none of them a name in `hidden`, but where a set is held out."""
    found = _read_json(icon_set.file)
    categories: dict[str, list[str]] = defaultdict(list)
    for category, keys in found.get("categories", {}).items():
        for key in keys:
            categories[key].append(category)
    names: dict[str, list[str]] = {
        key: [key] for key, icon in found["icons"].items() if not icon.get("hidden")
    }
    for alias, entry in found.get("aliases", {}).items():
        is_shown = entry["parent"] in names and not entry.get("hidden") and _MOVES.isdisjoint(entry)
        if is_shown and not is_brand(alias):
            names[entry["parent"]].append(alias)
    naming = Naming.of(found, categories)
    for key, known in names.items():
        own = categories.get(key, [])
        captions = dict.fromkeys(
            filter(None, (caption_of(naming.bare(name, own)) for name in known))
        )
        is_left_out = icon_set.name not in HELD_OUT and any(
            is_hidden(caption, hidden) for caption in captions
        )
        if captions and not is_left_out and not is_sign(key, own):
            digest = hashlib.sha256(_svg(found, key).encode()).digest()
            yield Icon(icon_set, key, tuple(captions), category_of(own), digest)


def _held_out_emoji() -> tuple[frozenset[str], list[Drawing]]:
    """Return the names of the concepts in `drawings-concepts`, and the drawings kept for testing."""
    found = read_emoji()
    return found.hidden_names, found.test + found.of_new(found.twemoji, found.openmoji)


# ------------------------------------------------------------------------------------------------------------ choosing


def _distinct(icons: Iterable[Icon]) -> list[Icon]:
    """Return one icon for each drawing, with the captions of all that are equal; held-out sets stay apart."""
    first: dict[tuple[bool, bytes], Icon] = {}
    for icon in icons:
        known = first.setdefault((icon.is_held_out, icon.digest), icon)
        captions = tuple(dict.fromkeys((*known.captions, *icon.captions)))
        first[icon.is_held_out, icon.digest] = replace(known, captions=captions)
    return list(first.values())


def _few_variants(icons: Sequence[Icon]) -> list[Icon]:
    """Return `VARIANTS` icons of each name in a family, chosen by a hash."""
    groups: dict[tuple[str, str], list[Icon]] = defaultdict(list)
    for icon in icons:
        groups[icon.icon_set.family, icon.captions[0]].append(icon)
    chosen = {
        icon.image_id
        for group in groups.values()
        for icon in sorted(group, key=lambda icon: hash_share(icon.image_id))[:VARIANTS]
    }
    return [icon for icon in icons if icon.image_id in chosen]


def _choose_tests(icons: Sequence[Icon], *, train: Sequence[Icon]) -> list[Icon]:
    """Return the images of both test splits, each name once, families in turn, in the order of sets."""
    uses = Counter(caption for icon in train for caption in icon.captions)
    used = {*uses, *(icon.category for icon in train if icon.category is not None)}
    inside = {part for text in used for part in _word_sequences(text)}
    queues: dict[str, dict[str, list[Icon]]] = {
        "test": defaultdict(list),
        "new_names": defaultdict(list),
    }
    named: set[str] = set()
    for icon in sorted(icons, key=lambda icon: hash_share(icon.image_id)):
        text = icon.captions[0]
        split = "test" if uses[text] >= KNOWN_FROM else "new_names"
        is_new = text not in inside and _PAINTED.isdisjoint((text.split()[0], text.split()[-1]))
        if text not in named and (split == "test" or is_new):
            named.add(text)
            queues[split][icon.icon_set.family].append(replace(icon, captions=(text,), split=split))
    chosen = []
    for families in queues.values():
        in_turn = itertools.chain.from_iterable(itertools.zip_longest(*families.values()))
        chosen += list(itertools.islice(filter(None, in_turn), NUM_TEST))
    return sorted(chosen, key=lambda icon: (icon.icon_set.name, icon.key))


def _word_sequences(text: str) -> Iterator[str]:
    words = text.split()
    return (" ".join(words[i:j]) for i, j in itertools.combinations(range(len(words) + 1), 2))


# ------------------------------------------------------------------------------------------------------------- drawing


def _records(icons: Sequence[Icon], *, tested: Looks) -> Iterator[Record]:
    for icon in icons:
        found = _read_json(icon.icon_set.file)
        may_paint = "currentColor" in found["icons"][icon.key]["body"]
        record = record_of(
            functools.partial(_draw, found, icon.key),
            functools.partial(_row, icon, may_paint=may_paint),
            split=icon.split,
            image_id=icon.image_id,
            path=str(icon.icon_set.file),
            tested=tested,
        )
        if record is not None:
            yield record


def _row(icon: Icon, image: Image.Image, *, may_paint: bool) -> Row:
    captions = list(icon.captions)
    if icon.split == "train":
        captions += [] if icon.category is None else [f"{captions[0]}, {icon.category}"]
        if may_paint:
            image, words = paint(image, key=icon.image_id)
            captions += [] if words is None else [words.format(captions[0])]
        captions = list(with_article(captions, key=icon.image_id))
    cell = encode_image(image, f"{icon.icon_set.name}/{icon.key}.png")
    licence, source = icon.icon_set.licence, icon.icon_set.name
    return Row(
        icon.split,
        make_row(icon.image_id, image=cell, captions=captions, source=source, licence=licence),
    )


def paint(image: Image.Image, *, key: str) -> tuple[Image.Image, str | None]:
    """Color a black drawing on nothing, as a hash of `key` says; also return words such as "a red {} on yellow"."""
    kind = next(kind for limit, kind in PAINT if hash_share(f"{key}/paint") < limit)
    if kind == PLAIN:
        return image, None
    grounds = list(COLORS) if kind == GROUND else ["white"]
    ground = grounds[int(hash_share(f"{key}/ground") * len(grounds))]
    far = [
        name
        for name, rgb in COLORS.items()
        if np.linalg.norm(np.subtract(rgb, COLORS[ground])) >= _LEAST_CONTRAST
    ]
    color = far[int(hash_share(f"{key}/color") * len(far))]
    painted = Image.new("RGBA", image.size, COLORS[color])
    painted.putalpha(image.getchannel("A"))
    words = f"{'an' if color == 'orange' else 'a'} {color} {{}}"
    if kind == CLEAR:
        return painted, words
    canvas = Image.new("RGB", image.size, COLORS[ground])
    canvas.paste(painted, mask=painted.getchannel("A"))
    return canvas, f"{words} on {ground}"


def _draw(found: Mapping[str, Any], key: str) -> Image.Image:
    return draw_svg(_svg(found, key), pixels=PIXELS)


def _svg(found: Mapping[str, Any], key: str) -> str:
    """Return an icon in a square, black where it leaves the color open."""
    icon = found["icons"][key]
    places = (("left", 0), ("top", 0), ("width", 16), ("height", 16))
    left, top, width, height = (
        icon.get(name, found.get(name, default)) for name, default in places
    )
    side = max(width, height)
    box = f"{left - (side - width) / 2} {top - (side - height) / 2} {side} {side}"
    return f'<svg xmlns="http://www.w3.org/2000/svg" {_XLINK} viewBox="{box}">{icon["body"]}</svg>'
