"""Scenes: objects with names, colors and places, and sentences that are true or false of them.

Everything is a pure function of a key, such as a split's name and a number. `vlmo.data.builtin.compose` makes the
images.
"""

from __future__ import annotations

import functools
import itertools
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

from vlmo.data.builtin.compose import PREFIX, SHAPES, UNITS
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
HELD_OUT_SHARE = 0.15
"""Share of the pairs of a color and a shape that no training scene shows."""
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
WORDS = {
    "left of": ("left of", "to the left of"),
    "right of": ("right of", "to the right of"),
    "above": ("above", "above"),
    "below": ("below", "under"),
}
PLURALS: dict[str, str] = {}
"""Irregular plurals; a set with further things adds theirs."""
RELATED = ("{0} %s {1}", "{0} is %s {1}")
"""Forms of a relation, without a verb and with one."""

_JITTER = 6
_APART = 16
_COUNTS = {2: "two", 3: "three", 4: "four"}

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


class Thing(NamedTuple):
    """All of an object but its place; `image` is a name for `compose`, and a thing without a color has one there."""

    name: str
    color: str | None
    image: str

    def phrase(self) -> Phrase:
        """Return words for one such object."""
        return Phrase(self.name, self.color)


@dataclass(frozen=True)
class Phrase:
    """Words for one object, or for several of one name and color: "a star at the top left", "three red stars"."""

    name: str
    color: str | None = None
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
        return f"{self.color} {self.name}" if self.color else self.name

    def fits(self, placed: Placed) -> bool:
        """Return True for an object that these words are true of."""
        return (
            placed.thing.name == self.name
            and self.color in {None, placed.thing.color}
            and (self.where is None or self.where == placed.where)
        )


def plural(words: str) -> str:
    """Return words for several of a thing."""
    if words.endswith(("s", "x", "ch", "sh")):
        return f"{words}es"
    if words.endswith("y") and words[-2] not in "aeiou":
        return f"{words[:-1]}ies"
    return PLURALS.get(words, f"{words}s")


class Placed(NamedTuple):
    """A thing in a scene; the corner and the side of its square are in units of `compose`."""

    thing: Thing
    left: int
    top: int
    side: int
    paint: str

    @property
    def where(self) -> str:
        """The words for its place in the scene."""
        row = self._side_of_middle(self.top, "top", "bottom")
        column = self._side_of_middle(self.left, "left", "right")
        if row:
            return f"at the {row} {column}".strip()
        return f"on the {column}" if column else "in the middle"

    def _side_of_middle(self, edge: int, before: str, after: str) -> str:
        offset = 2 * edge + self.side - UNITS
        if abs(offset) < _APART:
            return ""
        return before if offset < 0 else after

    def offset(self, other: Placed) -> tuple[int, int]:
        """Return how far the center lies to the right of and below another one, in half units."""
        sides = self.side - other.side
        return 2 * (self.left - other.left) + sides, 2 * (self.top - other.top) + sides

    def relation_to(self, other: Placed) -> str | None:
        """Return the relation of this object to another one; None where it lies in between two."""
        x, y = self.offset(other)
        # Clear of the diagonal, and far enough apart for people to agree.
        near, far = sorted((abs(x), abs(y)))
        if far < 2 * _APART or 3 * near > 2 * far:
            return None
        if abs(x) > abs(y):
            return "left of" if x < 0 else "right of"
        return "above" if y < 0 else "below"


class Sentence(NamedTuple):
    """Phrases, relations between two of them (by number), and a text with fields for the phrases; else a list."""

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
        for thing, *values in self.objects:
            parts.append(",".join(map(str, (thing.image, *values))).rstrip(","))
        return {"bytes": PREFIX + "|".join(parts).encode(), "path": name}

    def things(self) -> list[Thing]:
        """Return all things, equal ones too."""
        return [placed.thing for placed in self.objects]

    def groups(self) -> list[list[Placed]]:
        """Return the objects, equal things together."""
        groups: dict[Thing, list[Placed]] = {}
        for placed in self.objects:
            groups.setdefault(placed.thing, []).append(placed)
        return list(groups.values())

    def fitting(self, phrase: Phrase) -> list[Placed]:
        """Return the objects that the words of a phrase are true of."""
        return [placed for placed in self.objects if phrase.fits(placed)]

    def alone(self) -> list[Placed]:
        """Return the objects that have no equal here."""
        return [group[0] for group in self.groups() if len(group) == 1]

    def replaced(self, changed: dict[Placed, Thing], choices: Choices) -> Scene:
        """Return the scene with other things in the places of some objects."""
        objects = []
        for placed in self.objects:
            thing = changed.get(placed, placed.thing)
            if thing.color != placed.thing.color:
                placed = placed._replace(paint=paint(thing.color, choices))
            objects.append(placed._replace(thing=thing))
        return Scene(tuple(objects), self.background)

    def truth(self, sentence: Sentence) -> bool | None:
        """Return whether a sentence is true; None where people could read it either way."""
        fitting = [self.fitting(phrase) for phrase in sentence.phrases]
        if not all(fitting):
            return False
        # Three stars and "two stars": people disagree whether it is true.
        if list(map(len, fitting)) != [phrase.count for phrase in sentence.phrases]:
            return None
        truth: bool | None = True
        for first, relation, second in sentence.relations:
            actual = fitting[first][0].relation_to(fitting[second][0])
            if actual == OPPOSITE[relation]:
                return False
            if actual != relation:
                truth = None
        return truth


def phrase_of(group: Sequence[Placed], *, placed: bool = False) -> Phrase:
    """Return words for equal things, with the place if asked for."""
    first = group[0]
    return Phrase(first.thing.name, first.thing.color, len(group), first.where if placed else None)


def relation_of(group: Sequence[Placed], other: Sequence[Placed]) -> str | None:
    """Return the relation of a thing to another one, if there is one of each."""
    return group[0].relation_to(other[0]) if len(group) == len(other) == 1 else None


def relate(phrases: Iterable[Phrase], relation: str, form: str) -> Sentence:
    """Return a sentence about the relation of the first of two things to the second one."""
    return Sentence(tuple(phrases), ((0, relation, 1),), form)


def list_of(
    scene: Scene,
    choices: Choices,
    *,
    words: Callable[[Sequence[Placed]], Phrase] = phrase_of,
    most: int = 3,
) -> Sentence:
    """Return a list of up to so many things."""
    groups = scene.groups()
    return Sentence(tuple(map(words, choices.some_of(groups, min(most, len(groups))))))


def related_pair(
    scene: Scene, choices: Choices, *, words: Callable[[Sequence[Placed]], Phrase] = phrase_of
) -> Sentence:
    """Return the relation of two things, or else a list."""
    pairs = []
    for first, second in itertools.permutations(scene.groups(), 2):
        if relation := relation_of(first, second):
            pairs.append((first, second, relation))
    if not pairs:
        return list_of(scene, choices, words=words)
    first, second, relation = choices.one_of(pairs)
    form = choices.one_of(RELATED) % choices.one_of(WORDS[relation])
    return relate((words(first), words(second)), relation, form)


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


def paint(color: str | None, choices: Choices) -> str:
    """Return six digits near to a named color; "" without one."""
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
