"""Scenes: objects with names, colors, sizes and places, and sentences that are true or false of them.

Everything is a pure function of a key, such as a split's name and a number. `vlmo.data.compose` makes the images.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

from vlmo.data.compose import PREFIX, SHAPES, UNITS
from vlmo.data.decoding import ImageCell
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
SHAPE = "shape"
HELD_OUT_SHARE = 0.15
"""Share of the pairs of a color and a shape that no training scene shows."""
SIZES = {"small": (24, 28), "large": (38, 44)}
"""Sides of objects, in units of `compose`."""
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}

_JITTER = 6
_APART = 16
_QUARTER, _QUARTER_SIDES = UNITS // 2, (32, 44)
_COUNTS = {2: "two", 3: "three", 4: "four"}
_PLURALS = {"mouse": "mice", "knife": "knives", "leaf": "leaves", "wolf": "wolves"}

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
    """Words for one object, or for several of one name and color: "a cat at the top left", "three small dogs"."""

    name: str
    color: str | None = None
    size: str | None = None
    count: int = 1
    where: str | None = None

    def __str__(self) -> str:
        """Return the words with an article or a number, and the place."""
        words = self.words()
        if self.count > 1:
            return f"{_COUNTS[self.count]} {plural(words)}"
        article = "an" if words[0] in "aeiou" and not words.startswith("uni") else "a"
        return f"{article} {words} {self.where or ''}".rstrip()

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


def plural(words: str) -> str:
    """Return words for several of a thing."""
    if words.endswith(("s", "x", "ch", "sh")):
        return f"{words}es"
    if words.endswith("y") and words[-2] not in "aeiou":
        return f"{words[:-1]}ies"
    return _PLURALS.get(words, f"{words}s")


class Thing(NamedTuple):
    """A shape of a color, or a drawing, which has no color of its own: all of an object but its place.

    Attributes:
        image: Name for `compose`.
        kind: `SHAPE`, or a kind of drawings.
        licence: Of a drawing.
    """

    name: str
    color: str | None
    image: str
    kind: str = SHAPE
    licence: str = ""

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

    def offset(self, other: Placed) -> tuple[int, int]:
        """Return how far the center lies to the right of and below another one, in half units."""
        sides = self.side - other.side
        return 2 * (self.left - other.left) + sides, 2 * (self.top - other.top) + sides

    def relation_to(self, other: Placed) -> str | None:
        """Return the relation of this object to another one; None where it lies in between two."""
        x, y = self.offset(other)
        near, far = sorted((abs(x), abs(y)))
        if far < 2 * _APART or 3 * near > 2 * far:
            return None
        if abs(x) > abs(y):
            return "left of" if x < 0 else "right of"
        return "above" if y < 0 else "below"


class Sentence(NamedTuple):
    """Phrases, relations between two of them (by number), and a text with a field for each phrase; else a list."""

    phrases: tuple[Phrase, ...]
    relations: tuple[tuple[int, str, int], ...] = ()
    form: str = ""

    def __str__(self) -> str:
        """Return the text."""
        if self.form:
            return self.form.format(*self.phrases)
        *first, last = map(str, self.phrases)
        return f"{', '.join(first)} and {last}" if first else last


@dataclass(frozen=True)
class Scene:
    """Objects on a background."""

    objects: tuple[Placed, ...]
    background: str

    def cell(self, name: str, size: int = UNITS) -> ImageCell:
        """Return the image, a square of `size` pixels; `name` stands in messages about it."""
        parts = [str(size), self.background]
        for each in self.objects:
            values = (each.thing.image, each.left, each.top, each.side, *([each.paint] if each.paint else []))
            parts.append(",".join(map(str, values)))
        return {"bytes": PREFIX + "|".join(parts).encode(), "path": name}

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


@functools.cache
def shapes(
    *, held_out: bool, names: Sequence[str] = SHAPES, colors: Sequence[str] = tuple(COLORS)
) -> tuple[Thing, ...]:
    """Return shapes in every color: those of training, or those that only the split "combinations" shows."""
    return tuple(
        Thing(shape, color, shape)
        for shape in names
        for color in colors
        if (hash_share(f"scenes/{color} {shape}") < HELD_OUT_SHARE) == held_out
    )


def in_quarters(things: Sequence[Thing], choices: Choices) -> Iterator[Placed]:
    """Yield up to four things, each somewhere in a quarter of the image."""
    for thing, quarter in zip(things, choices.some_of(range(4), len(things)), strict=True):
        side = choices.one_of(range(_QUARTER_SIDES[0], _QUARTER_SIDES[1] + 1, 2))
        row, column = divmod(quarter, 2)
        left, top = (_QUARTER * half + 1 + choices.below(_QUARTER - side - 1) for half in (column, row))
        yield Placed(thing, left, top, side, paint(thing.color, choices))


@dataclass(frozen=True)
class Pool:
    """Things that scenes are made of.

    Attributes:
        name: First part of the ids of rows, by which joined sources know equal images.
        shapes: Shapes of training.
        unseen: Shapes that no training scene shows.
        drawings: Drawings; none, and scenes show shapes alone.
        first: Things of which each scene shows one; none, and any will do.
        fewest: Least number of different things.
        totals: Numbers of things, one of which is taken.
        layout: Gives things places in which none covers another.
        sized: Captions tell sizes (`SIZES`) rather than places.
    """

    name: str
    shapes: tuple[Thing, ...]
    unseen: tuple[Thing, ...]
    drawings: tuple[Thing, ...] = ()
    first: tuple[Thing, ...] = ()
    fewest: int = 2
    totals: tuple[int, ...] = (2,)
    layout: Callable[[Sequence[Thing], Choices], Iterator[Placed]] = in_quarters
    sized: bool = False

    def scene(self, choices: Choices, things: Sequence[Thing] | None = None) -> Scene:
        """Return a scene of these or other things."""
        things = self.things(choices) if things is None else things
        return Scene(tuple(self.layout(things, choices)), background(choices))

    def things(self, choices: Choices) -> list[Thing]:
        """Return things of which some may be there more than once."""
        total = max(self.fewest, choices.one_of(self.totals))
        chosen = [choices.one_of(self.first)] if self.first else []
        repeats = choices.below(min(3, total - self.fewest + 1)) if choices.random() < 0.4 else 0
        while len(chosen) < total - repeats:
            thing = self._another(chosen, choices)
            if thing not in chosen:
                chosen.append(thing)
        return chosen + [chosen[0]] * repeats

    def _another(self, chosen: Sequence[Thing], choices: Choices) -> Thing:
        """Return a drawing or a shape, often one with the name or the color of a chosen one: they must be bound."""
        known, share = [thing for thing in chosen if thing.kind == SHAPE], choices.random()
        if known and share < 0.35:
            like = choices.one_of(known)
            alike = [each for each in self.shapes if (each.name == like.name) != (each.color == like.color)]
            return choices.one_of(alike)
        return choices.one_of(self.shapes if share < 0.65 or not self.drawings else self.drawings)


def paint(color: str | None, choices: Choices) -> str:
    """Return six digits near to a named color; "" for a drawing."""
    if color is None:
        return ""
    shades = (value + choices.below(2 * _JITTER + 1) - _JITTER for value in COLORS[color])
    return "".join(f"{min(255, max(0, shade)):02x}" for shade in shades)


def background(choices: Choices) -> str:
    """Return white, a pale color, or two of them."""

    def pale() -> str:
        return "".join(f"{220 + choices.below(36):02x}" for _ in "rgb")

    share = choices.random()
    if share < 0.2:
        return "ffffff"
    return pale() if share < 0.75 else choices.one_of("/>").join([pale(), pale()])
