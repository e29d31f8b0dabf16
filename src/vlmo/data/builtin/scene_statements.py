"""Sentences that are true or false of two scenes, in the manner of NLVR2.

Four rows share a sentence: it is true of two pairs and false of two. Each false pair is a true one with another scene
in one of its places, so neither the sentence alone nor one image alone tells.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vlmo.data.builtin import scenes
from vlmo.data.builtin.scenes import BINDING_KINDS, edited_scene, pools_of
from vlmo.data.builtin.world import Choices, Pool, Scene, Sentence, Thing
from vlmo.data.schema import REASONING_FEATURES, Built

PACKAGES, SOURCE_SET = scenes.PACKAGES, scenes.SOURCE_SET
SOURCE = "scenes-statements"
NUM_GROUPS = {"train": 5000, "validation": 250, "test": 500, "artist": 250, "combinations": 250}
"""Sentences of each split, with four rows each."""

Pair = tuple[bool, bool]
"""True for the left and for the right image if it shows what a sentence speaks of."""

CLAIMS: dict[tuple[str, ...], tuple[tuple[Pair, Pair], ...]] = {
    ("both pictures show {}", "there is {} in each picture"): (
        ((True, True), (False, True)),
        ((True, True), (True, False)),
    ),
    ("exactly one of the pictures shows {}", "only one picture shows {}"): (
        ((True, False), (True, True)),
        ((False, True), (True, True)),
        ((True, False), (False, False)),
        ((False, True), (False, False)),
    ),
    ("neither picture shows {}", "no picture shows {}"): (
        ((False, False), (True, False)),
        ((False, False), (False, True)),
    ),
    ("the left picture shows {}", "there is {} in the picture on the left"): (
        ((True, True), (False, True)),
        ((True, False), (False, False)),
    ),
    ("the right picture shows {}", "there is {} in the picture on the right"): (
        ((True, True), (True, False)),
        ((False, True), (False, False)),
    ),
}
"""Wordings of a claim, and pairs of which it is true, each with one of which it is false."""


def build(
    drawn: dict[str, list[dict[str, Any]]], *, icons: Path | None = None, only_shapes: bool = False
) -> dict[str, Built]:
    """`scenes-statements`; arguments as in `scenes.build`."""
    pools = pools_of(drawn, icons=icons, only_shapes=only_shapes)
    rows = {
        split: [row for number in range(total) for row in statement_rows(split, number, pools[split])]
        for split, total in NUM_GROUPS.items()
        if split in pools
    }
    return {SOURCE: (REASONING_FEATURES, rows)}


def statement_rows(split: str, number: int, pool: Pool) -> list[dict[str, Any]]:
    """Return the four rows of a sentence."""
    group = f"{pool.name}-statements/{split}/{number}"
    choices = Choices(f"{SOURCE}/{split}/{number}")
    first, told, second, _ = edited_scene(choices, pool, kind=choices.one_of(BINDING_KINDS))
    things = {True: _things(first, told, second), False: _things(second, told, first)}
    wordings = choices.one_of(list(CLAIMS))
    # "Both pictures show a star" and "both pictures show that a star is left of a ring".
    text = str(told)
    sentence = wordings[0].format(f"that {text}") if " is " in text else choices.one_of(wordings).format(text)
    rows = []
    for so, not_so in choices.some_of(CLAIMS[wordings], 2):
        shown = [_scene(told, things[each], pool, choices, is_so=each) for each in so]
        changed = 0 if so[0] != not_so[0] else 1
        other = [*shown]
        other[changed] = _scene(told, things[not_so[changed]], pool, choices, is_so=not_so[changed])
        for label, (left, right) in ((1, shown), (0, other)):
            name = f"{group}-{len(rows)}"
            second_image = right.cell(f"{name}-right")
            columns = {"captions": [sentence], "second_image": second_image, "label": label, "sentence_group": group}
            rows.append(scenes.scene_row(name, left, others=[right], **columns))
    return rows


def _things(scene: Scene, told: Sentence, other: Scene) -> list[Thing]:
    """Return the things of a scene that the sentence names, and those that stand in their places in the other."""
    pairs = zip(scene.objects, other.objects, strict=True)
    named = {phrase.name for phrase in told.phrases}
    return [each.thing for each, instead in pairs if each.thing != instead.thing or each.thing.name in named]


def _scene(told: Sentence, things: Sequence[Thing], pool: Pool, choices: Choices, *, is_so: bool) -> Scene:
    """Return a scene with these and other things of which the sentence is true, or clearly false."""
    while True:
        others = [thing for thing in pool.things(choices) if thing.name not in {each.name for each in things}]
        scene = pool.place([*things, *others[: max(0, choices.one_of(pool.totals) - len(things))]], choices)
        if scene.truth(told) is is_so:
            return scene
