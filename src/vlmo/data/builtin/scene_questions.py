"""Questions about scenes, with one answer each, such that no question alone tells its answer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from vlmo.data.builtin import scenes
from vlmo.data.builtin.world import COLORS, OPPOSITE, SHAPE, Choices, Pool, Scene, plural
from vlmo.data.compose import SHAPES
from vlmo.data.schema import QUESTION_FEATURES, Built

PACKAGES, SOURCE_SET = scenes.PACKAGES, scenes.SOURCE_SET
SOURCE = "scenes-questions"
NUM_QUESTIONS = {"train": 40_000, "validation": 1000, "test": 2000, "artist": 1000, "combinations": 1000}
COUNTS = ("1", "2", "3")
LABELS = (*COLORS, *SHAPES, *COUNTS, "no", "yes")
"""Every answer; an answer's number is its place here."""

Asked = tuple[str, str]
"""A question and its answer."""


class Case(NamedTuple):
    """A scene to ask about; `turn` counts the questions of one kind."""

    scene: Scene
    pool: Pool
    choices: Choices
    turn: int


def build(
    drawn: dict[str, list[dict[str, Any]]], *, icons: Path | None = None, only_shapes: bool = False
) -> dict[str, Built]:
    """`scenes-questions`: a row a question, each about a scene of its own; arguments as in `scenes.build`."""
    pools = scenes.pools_of(drawn, icons=icons, only_shapes=only_shapes)
    if only_shapes:  # there are more to count
        pools = {split: replace(pool, totals=(2, 2, 3)) for split, pool in pools.items()}
    rows = {
        split: [question_row(split, number, pools[split]) for number in range(total)]
        for split, total in NUM_QUESTIONS.items()
        if split in pools
    }
    return {SOURCE: (QUESTION_FEATURES, rows)}


def question_row(split: str, number: int, pool: Pool) -> dict[str, Any]:
    """Return a question; its kind is the next one for each number."""
    kinds = list(_QUESTIONS)
    kind = kinds[number % len(kinds)]
    choices = Choices(f"{SOURCE}/{split}/{number}")
    while True:
        scene = pool.scene(choices)
        if asked := _QUESTIONS[kind](Case(scene, pool, choices, number // len(kinds))):
            break
    question, answer = asked
    return scenes.scene_row(
        f"{pool.name}-questions/{split}/{number}",
        scene,
        question=question,
        question_id=f"{pool.name}-questions/{split}/question-{number}",
        question_type=kind,
        answer_type="yes/no" if answer in {"yes", "no"} else "number" if answer in COUNTS else "other",
        answers=[answer],
        answer_labels=[LABELS.index(answer)],
        answer_scores=[1.0],
    )


def _color(case: Case) -> Asked | None:
    groups = [group for group in case.scene.groups() if group[0].thing.kind == SHAPE]
    names = [group[0].thing.name for group in groups]
    alone = [group[0].thing for group in groups if len(group) == 1 and names.count(group[0].thing.name) == 1]
    if not alone:
        return None
    thing = case.choices.one_of(alone)
    return f"what color is the {thing.name}?", thing.color or ""


def _shape(case: Case) -> Asked | None:
    """Ask for the only shape that lies on one side of an object."""
    known = case.choices.one_of(alone) if (alone := case.scene.alone()) else None
    if known is None:
        return None
    others = [each for each in case.scene.objects if each is not known and each.thing.kind == SHAPE]
    relation = case.choices.one_of(list(OPPOSITE))
    # A shape that people could think of must not stand beside the one that is asked for.
    near = [each for each in others if each.is_towards(relation, known)]
    if len(near) != 1 or near[0].relation_to(known) != relation:
        return None
    return f"what shape is {relation} the {known.thing.phrase().words()}?", near[0].thing.name


def _count(case: Case) -> Asked | None:
    """Ask how many objects have a name, or a colour; each number is asked for as often."""
    answer = case.turn % len(COUNTS) + 1
    found = [each.thing for each in case.scene.objects]
    names = [thing.name for thing in found]
    colors = [thing.color for thing in found if thing.kind == SHAPE]
    asked = {f"how many {plural(name)} are there?" for name in names if names.count(name) == answer}
    asked |= {f"how many {color} shapes are there?" for color in colors if colors.count(color) == answer}
    return (case.choices.one_of(sorted(asked)), str(answer)) if asked else None


def _presence(case: Case) -> Asked | None:
    """Ask whether something is there; of what is not, half are shapes of a colour and a name that are there."""
    is_there, of_shapes = case.choices.random() < 0.5, case.choices.random() < 0.7
    found = [each.thing for each in case.scene.objects if (each.thing.kind == SHAPE) == of_shapes]
    if not found:
        return None
    if is_there:
        return f"is there {case.choices.one_of(found).phrase()}?", "yes"
    kinds, known = {thing.kind for thing in found}, set(found)
    others = [thing for thing in case.pool.drawings if thing.kind not in kinds]
    if of_shapes:
        others = [thing for thing in case.pool.shapes if thing not in known]
        unseen = [thing for thing in case.pool.first if thing.kind == SHAPE and thing not in known]
        others = unseen if unseen and case.choices.random() < 0.5 else others  # not only for a yes
        names, colors = {thing.name for thing in found}, {thing.color for thing in found}
        mixed = [thing for thing in others if thing.name in names and thing.color in colors]
        others = mixed if mixed and case.choices.random() < 0.5 else others
    return f"is there {case.choices.one_of(others).phrase()}?", "no"


def _relation(case: Case) -> Asked | None:
    """Ask for the relation of two objects or its opposite."""
    alone = case.scene.alone()
    if len(alone) < 2:
        return None
    first, second = case.choices.some_of(alone, 2)
    relation = first.relation_to(second)
    if relation is None:
        return None
    is_so = case.choices.random() < 0.5
    told = relation if is_so else OPPOSITE[relation]
    words = [each.thing.phrase().words() for each in (first, second)]
    return f"is the {words[0]} {told} the {words[1]}?", "yes" if is_so else "no"


_QUESTIONS: dict[str, Callable[[Case], Asked | None]] = {
    "what color": _color,
    "what shape": _shape,
    "how many": _count,
    "is there": _presence,
    "is the": _relation,
}
"""By question type."""
