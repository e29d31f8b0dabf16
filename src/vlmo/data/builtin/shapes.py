"""Scenes of two or three shapes: with captions, with a false caption beside the true one, questions, and statements.

No text alone tells: each caption, question and statement has another scene of which the opposite is true. Pairs of a
color and a shape are held out of training and shown by the split "combinations" (docs/data.md).
"""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from vlmo.data.builtin.scenes import (
    COLORS,
    OPPOSITE,
    SHAPE,
    Choices,
    Phrase,
    Placed,
    Pool,
    Scene,
    Sentence,
    Thing,
    plural,
    shapes,
)
from vlmo.data.compose import SHAPES, UNITS
from vlmo.data.schema import (
    COMPOSITION_FEATURES,
    CONTRAST_FEATURES,
    QUESTION_FEATURES,
    REASONING_FEATURES,
    Built,
    make_row,
)

PACKAGES: tuple[str, ...] = ()
NUM_SCENES = {"train": 50_000, "validation": 1000, "test": 1000, "combinations": 1000}
NUM_BINDING = {"validation": 250, "test": 250, "combinations": 250}
"""Pairs of rows of each kind."""
NUM_QUESTIONS = {"train": 40_000, "validation": 1000, "test": 2000, "combinations": 1000}
NUM_STATEMENTS = {"train": 5000, "validation": 250, "test": 500, "combinations": 250}
"""Sentences, with four rows each."""

BINDING_KINDS = ("object", "color", "relation", "swap")
COUNTS = ("1", "2", "3")
ANSWERS = (*COLORS, *SHAPES, *COUNTS, "no", "yes")
LABELS = {"shapes-questions": ANSWERS}
WORDS = {
    "left of": ("left of", "to the left of"),
    "right of": ("right of", "to the right of"),
    "above": ("above", "above"),
    "below": ("below", "under"),
}

_NAMES, _COLORS = (
    ("circle", "square", "triangle", "star", "ring", "cross"),
    ("red", "yellow", "green", "blue", "pink", "black"),
)
_ALONE = 0.2
"""Share of training scenes of one object, from which its place is learnt first."""
_FORMS = {
    "no verb": ("{}", "{}", "the picture shows {}", "there is {} in the picture"),
    "verb": ("{}", "the picture shows that {}"),
}
"""Wordings of training captions, by whether the caption has a verb. Statements about two scenes use the same words."""

Rows = Iterator[dict[str, Any]]
Edited = tuple[Scene, Sentence, Scene, Sentence]
"""A scene and its caption, and the least change of both: each caption is false of the other scene."""


def pools(totals: tuple[int, ...] = (2,)) -> dict[str, Pool]:
    """Return what the scenes of each split are made of; each scene has one of `totals` things."""
    known, unseen = (shapes(held_out=each, names=_NAMES, colors=_COLORS) for each in (False, True))
    pool = Pool("shapes", known, unseen, totals=totals)
    return dict.fromkeys(("train", "validation", "test"), pool) | {"combinations": replace(pool, first=unseen)}


def rows_by_split(
    numbers: Mapping[str, int], pools: Mapping[str, Pool], rows: Callable[[str, int, Pool], Iterable[dict[str, Any]]]
) -> dict[str, list[dict[str, Any]]]:
    """Return the rows of so many numbers of each split."""
    return {
        split: [row for number in range(total) for row in rows(split, number, pools[split])]
        for split, total in numbers.items()
    }


def scene_row(name: str, scene: Scene, *, others: Sequence[Scene] = (), **columns: Any) -> dict[str, Any]:
    """Return a row with the image of a scene; its licence covers `others`, which further columns show."""
    objects = [each for shown in (scene, *others) for each in shown.objects]
    licence = " and ".join(sorted({each.thing.licence for each in objects if each.thing.licence})) or "CC0-1.0"
    source = re.split("[-/]", name)[0]
    return make_row(name, image=scene.cell(name), source=source, licence=licence, **columns)


def make_scene(split: str, number: int, pool: Pool, *, alone: float = _ALONE) -> tuple[Scene, Choices]:
    """Return scene `number` of a split, in training in a share `alone` of one object, and its captions' choices."""
    choices = Choices(f"scenes/{split}/{number}")
    if split == "train" and choices.random() < alone:
        return pool.place(pool.things(choices)[:1], choices), choices
    return pool.scene(choices), choices


def pair_rows(split: str, pool: Pool) -> Rows:
    """Yield scenes with their captions.

    Those of the splits for evaluation have one, which is true of no other scene there; every second tells relations.
    Training scenes have a false version of each caption.
    """
    gallery, found = Gallery(), 0
    for number in itertools.count():
        if found == NUM_SCENES[split]:
            return
        scene, choices = make_scene(split, number, pool)
        told, false = sentences(scene, choices), []
        if split == "train":
            told = list({str(each): each for each in told}.values())
            false = [str(false_sentence(scene, each, pool, choices)) for each in told]
            forms = [choices.one_of(_FORMS["verb" if " is " in str(each) else "no verb"]) for each in told[:2]]
            forms += ["{}"] * len(told[2:])
            captions, false = (
                [form.format(text) for form, text in zip(forms, texts, strict=True)] for texts in (told, false)
            )
        else:
            told = [each for each in told[:2] if bool(each.relations) == bool(found % 2)] if told[1:] else []
            told = told and [choices.one_of(told)]
            if not told or not gallery.add(scene, told[0], may_be_unclear=True):
                continue
            captions = [str(told[0])]
        found += 1
        yield scene_row(f"{pool.name}/{split}/{number}", scene, captions=captions, false_captions=false)


class Gallery:
    """Scenes with captions that are true of one alone."""

    def __init__(self) -> None:
        self._told: dict[frozenset[Thing], list[tuple[Scene, Sentence]]] = {}

    def add(self, scene: Scene, sentence: Sentence, *, may_be_unclear: bool) -> bool:
        """Add a scene unless its caption is true of another one, or another's of it; return whether it was added.

        Args:
            may_be_unclear: A caption that is neither said nor denied of another scene will do too.
        """
        things = {each.thing for each in scene.objects}
        pairs = [frozenset(pair) for pair in itertools.combinations(things, 2)]
        for other, of_other in (each for pair in pairs for each in self._told.get(pair, [])):
            for truth in (other.truth(sentence), scene.truth(of_other)):
                if truth or (truth is None and not may_be_unclear):
                    return False
        for pair in pairs:
            self._told.setdefault(pair, []).append((scene, sentence))
        return True


def sentences(scene: Scene, choices: Choices) -> list[Sentence]:
    """Return true sentences that tell where two things lie: by places, by their relation if one is clear, and by both.

    Places are told in the order of the colors' names: in any order, the same steps teach a quarter less (docs/log.md).
    """
    listed, related = list_of(scene, choices, placed=True), related_pair(scene, choices)
    placed = Sentence(_by_color(listed.phrases))
    if not related.relations:
        return [placed]
    where = {phrase: each.where for phrase in related.phrases for each in scene.objects if phrase.fits(each)}
    return [
        placed,
        related,
        related._replace(phrases=tuple(each._replace(where=where[each]) for each in related.phrases)),
    ]


def false_sentence(scene: Scene, sentence: Sentence, pool: Pool, choices: Choices) -> Sentence:
    """Return a false version of one of `sentences`: a thing is another, or two have changed places.

    So no word tells true from false: a false caption is a true one of another scene.
    """
    groups = [next(group for group in scene.groups() if phrase.fits(group[0])) for phrase in sentence.phrases]
    while True:
        objects = [group[0] for group in groups]
        things = [each.thing for each in objects]
        number, edit = choices.below(len(things)), choices.one_of(("exchange", "exchange", "color", "object"))
        if edit == "exchange" and len(things) > 1:
            things.reverse()
        elif edit == "exchange":
            edge = choices.one_of(("left", "top"))
            objects[0] = objects[0]._replace(**{edge: UNITS - getattr(objects[0], edge) - objects[0].side})
        else:
            old, same = things[number], (edit == "color", edit == "object")
            alike = [x for x in pool.shapes if (x.name == old.name, x.color == old.color) == same and x not in things]
            if not alike:
                continue
            things[number] = choices.one_of(alike)
        phrases = tuple(
            Phrase(
                thing.name, thing.color, None, phrase.count, each._replace(thing=thing).where if phrase.where else None
            )
            for each, thing, phrase in zip(objects, things, sentence.phrases, strict=True)
        )
        if sentence.relations:
            (_, relation, _), form = sentence.relations[0], "{0} is %s {1}" if " is " in sentence.form else "{0} %s {1}"
            if edit == "exchange" and choices.below(2):  # the same in other words
                phrases, relation = phrases[::-1], OPPOSITE[relation]
            false = Sentence(phrases, ((0, relation, 1),), form % choices.one_of(WORDS[relation]))
        else:
            false = Sentence(_by_color(phrases))
        if scene.truth(false) is False:
            return false


def _by_color(phrases: Iterable[Phrase]) -> tuple[Phrase, ...]:
    return tuple(sorted(phrases, key=lambda phrase: (phrase.color or "", phrase.name)))


def phrase_of(group: Sequence[Placed], *, sized: bool = False, placed: bool = False) -> Phrase:
    """Return words for equal things; size and place are told of one alone."""
    first, one = group[0], len(group) == 1
    size, where = first.size if sized and one else None, first.where if placed and one else None
    return Phrase(first.thing.name, first.thing.color, size, len(group), where)


def relation_of(group: Sequence[Placed], other: Sequence[Placed]) -> str | None:
    """Return the relation of a thing to another one, if there is one of each."""
    return group[0].relation_to(other[0]) if len(group) == len(other) == 1 else None


def list_of(scene: Scene, choices: Choices, *, sized: bool = False, placed: bool = False) -> Sentence:
    """Return a list of up to three things, of two with their places."""
    groups = scene.groups()
    chosen = choices.some_of(groups, min(2 if placed else 3, len(groups)))
    return Sentence(tuple(phrase_of(group, sized=sized, placed=placed) for group in chosen))


def related_pair(scene: Scene, choices: Choices, *, sized: bool = False) -> Sentence:
    """Return the relation of two things, or else a list."""
    groups = scene.groups()
    pairs = [(a, b, told) for a in groups for b in groups if a is not b and (told := relation_of(a, b))]
    if not pairs:
        return list_of(scene, choices, sized=sized)
    *pair, relation = choices.one_of(pairs)
    form = choices.one_of(("{0} %s {1}", "{0} is %s {1}")) % choices.one_of(WORDS[relation])
    return Sentence(tuple(phrase_of(group, sized=sized) for group in pair), ((0, relation, 1),), form)


def binding_rows(split: str, number: int, pool: Pool, *, kind: str) -> Rows:
    """Yield two rows with the same two captions, of which one is true of the first image and one of the second.

    In `kind`, an object, a color or a relation is replaced by another one, or two objects, their colors or sizes are
    swapped.
    """
    first, true, second, false = edited_scene(Choices(f"scenes-binding/{split}/{kind}/{number}"), pool, kind=kind)
    for letter, scene in zip("ab", (first, second), strict=True):
        name = f"{pool.name}-binding/{split}/{kind}-{number}{letter}"
        yield scene_row(name, scene, captions=[str(true)], false_caption=str(false), kind=kind)
        true, false = false, true


def edited_scene(choices: Choices, pool: Pool, *, kind: str) -> Edited:
    """Return two scenes and a sentence about each that is false of the other one."""
    while True:
        scene = pool.scene(choices)
        alone = scene.alone()
        if len(alone) < 2:
            continue
        pair = choices.some_of(alone, 2)
        if kind == "relation":
            edited = _replace_relation(scene, pair, choices)
        elif kind == "swap":
            edited = _swap(scene, pair, pool, choices)
        else:
            edited = _replace_thing(scene, pair, pool, choices, name=kind == "object")
        if edited is not None:
            first, true, second, false = edited
            if [each.truth(told) for each in (first, second) for told in (true, false)] == [True, False, False, True]:
                return edited


def _told(pair: Sequence[Placed], choices: Choices, pool: Pool, *, sized: bool = False) -> Sentence:
    """Return a sentence about two objects: their relation, or a list."""
    relation = pair[0].relation_to(pair[1])
    if relation is None or choices.random() < 0.5:
        return Sentence(tuple(phrase_of([each], sized=sized, placed=not pool.sized) for each in pair))
    phrases = tuple(phrase_of([each], sized=sized) for each in pair)
    return Sentence(phrases, ((0, relation, 1),), f"{{0}} {choices.one_of(WORDS[relation])} {{1}}")


def _replace_thing(scene: Scene, pair: list[Placed], pool: Pool, choices: Choices, *, name: bool) -> Edited | None:
    """Replace the name or the color of the first of two objects."""
    old = pair[0].thing
    others: Sequence[Thing] = [
        each for each in pool.shapes + pool.unseen if (each.color == old.color if name else each.name == old.name)
    ]
    if name and old.kind != SHAPE:
        others = [each for each in pool.drawings if each.kind != old.kind]
    if not others:
        return None
    thing = choices.one_of(others)
    changed, number = scene.replaced({pair[0]: thing}, choices), choices.below(2)
    sentence = _told(pair[::-1] if number else pair, choices, pool)
    phrases = list(sentence.phrases)
    phrases[number] = phrases[number]._replace(name=thing.name, color=thing.color)
    return scene, sentence, changed, sentence._replace(phrases=tuple(phrases))


def _replace_relation(scene: Scene, pair: list[Placed], choices: Choices) -> Edited | None:
    """Say the opposite of the relation of two objects."""
    if (relation := pair[0].relation_to(pair[1])) is None:
        return None
    phrases = tuple(phrase_of([each]) for each in pair)
    form, word = choices.one_of(("{0} %s {1}", "{0} is %s {1}")), choices.below(2)
    sentence, other = (
        Sentence(phrases, ((0, told, 1),), form % WORDS[told][word]) for told in (relation, OPPOSITE[relation])
    )
    return scene, sentence, _exchanged(scene, pair, choices), other


def _swap(scene: Scene, pair: list[Placed], pool: Pool, choices: Choices) -> Edited | None:
    """Swap two objects in their relation, the colors of two shapes, or the sizes of two objects."""
    swapped = choices.one_of(("objects", "colors", "sizes") if pool.sized else ("objects", "colors"))
    sentence = _told(pair, choices, pool, sized=swapped == "sizes")
    first, second = sentence.phrases
    if swapped == "objects":
        return scene, sentence, _exchanged(scene, pair, choices), sentence._replace(phrases=(second, first))
    if swapped == "sizes":
        phrases = (first._replace(size=second.size), second._replace(size=first.size))
        return scene, sentence, _exchanged(scene, pair, choices), sentence._replace(phrases=phrases)
    if not first.color or not second.color:
        return None
    phrases = (first._replace(color=second.color), second._replace(color=first.color))
    recolored = {
        each: each.thing._replace(color=other.thing.color) for each, other in zip(pair, pair[::-1], strict=True)
    }
    return scene, sentence, scene.replaced(recolored, choices), sentence._replace(phrases=phrases)


def _exchanged(scene: Scene, pair: Sequence[Placed], choices: Choices) -> Scene:
    return scene.replaced({pair[0]: pair[1].thing, pair[1]: pair[0].thing}, choices)


Asked = tuple[str, str]


class Case(NamedTuple):
    """A scene to ask about; `turn` counts the questions of one kind."""

    scene: Scene
    pool: Pool
    choices: Choices
    turn: int


def question_rows(split: str, number: int, pool: Pool) -> Rows:
    """Yield a question about a scene of its own; its kind is the next one for each number."""
    kinds = list(QUESTIONS)
    kind = kinds[number % len(kinds)]
    choices = Choices(f"scenes-questions/{split}/{number}")
    while True:
        scene = pool.scene(choices)
        if asked := QUESTIONS[kind](Case(scene, pool, choices, number // len(kinds))):
            break
    question, answer = asked
    yield scene_row(
        f"{pool.name}-questions/{split}/{number}",
        scene,
        question=question,
        question_id=f"{pool.name}-questions/{split}/question-{number}",
        question_type=kind,
        answer_type="yes/no" if answer in {"yes", "no"} else "number" if answer in COUNTS else "other",
        answers=[answer],
        answer_labels=[ANSWERS.index(answer)],
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
    if not (alone := case.scene.alone()):
        return None
    known = case.choices.one_of(alone)
    others = [each for each in case.scene.objects if each is not known and each.thing.kind == SHAPE]
    relation = case.choices.one_of(list(OPPOSITE))
    # A shape that people could think of must not stand beside the one that is asked for.
    near = [each for each in others if each.is_towards(relation, known)]
    if len(near) != 1 or near[0].relation_to(known) != relation:
        return None
    return f"what shape is {relation} the {known.thing.phrase().words()}?", near[0].thing.name


def _count(case: Case) -> Asked | None:
    """Ask how many objects have a name, or a color; each number is asked for as often."""
    answer = case.turn % len(COUNTS) + 1
    found = [each.thing for each in case.scene.objects]
    names = [thing.name for thing in found]
    colors = [thing.color for thing in found if thing.kind == SHAPE]
    asked = {f"how many {plural(name)} are there?" for name in names if names.count(name) == answer}
    asked |= {f"how many {color} shapes are there?" for color in colors if colors.count(color) == answer}
    return (case.choices.one_of(sorted(asked)), str(answer)) if asked else None


def _presence(case: Case) -> Asked | None:
    """Ask whether something is there; of what is not, half are shapes of a color and a name that are there."""
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
    if len(alone := case.scene.alone()) < 2:
        return None
    first, second = case.choices.some_of(alone, 2)
    if (relation := first.relation_to(second)) is None:
        return None
    is_so = case.choices.random() < 0.5
    asked = relation if is_so else OPPOSITE[relation]
    words = [each.thing.phrase().words() for each in (first, second)]
    return f"is the {words[0]} {asked} the {words[1]}?", "yes" if is_so else "no"


QUESTIONS: dict[str, Callable[[Case], Asked | None]] = {
    "what color": _color,
    "what shape": _shape,
    "how many": _count,
    "is there": _presence,
    "is the": _relation,
}
"""By question type."""


CLAIMS = {
    ("both pictures show {}", "there is {} in each picture"): ("11 01", "11 10"),
    ("exactly one of the pictures shows {}", "only one picture shows {}"): ("10 11", "01 11", "10 00", "01 00"),
    ("neither picture shows {}", "no picture shows {}"): ("00 10", "00 01"),
    ("the left picture shows {}", "there is {} in the picture on the left"): ("11 01", "10 00"),
    ("the right picture shows {}", "there is {} in the picture on the right"): ("11 10", "01 00"),
}
"""Wordings of a claim, and pairs of images of which it is true, each with one of which it is false.

1 stands for an image that shows what the sentence speaks of.
"""


def statement_rows(split: str, number: int, pool: Pool) -> Rows:
    """Yield the four rows of a sentence about two scenes, in the manner of NLVR2: true of two pairs and false of two.

    Each false pair is a true one with another scene on one side, so neither the sentence nor one image alone tells.
    """
    group = f"{pool.name}-statements/{split}/{number}"
    choices = Choices(f"scenes-statements/{split}/{number}")
    first, told, second, _ = edited_scene(choices, pool, kind=choices.one_of(BINDING_KINDS))
    named = {phrase.name for phrase in told.phrases}

    def things(scene: Scene, other: Scene) -> list[Thing]:
        """Return the things that the sentence names, and those that stand in their places in the other scene."""
        pairs = zip(scene.objects, other.objects, strict=True)
        return [each.thing for each, instead in pairs if each.thing != instead.thing or each.thing.name in named]

    def scene_for(sign: str) -> Scene:
        """Return a scene of which the sentence is true, or clearly false."""
        wanted = {"1": things(first, second), "0": things(second, first)}[sign]
        while True:
            others = [thing for thing in pool.things(choices) if thing.name not in {each.name for each in wanted}]
            rest = others[: max(0, choices.one_of(pool.totals) - len(wanted))]
            scene = pool.place([*wanted, *rest], choices)
            if scene.truth(told) is (sign == "1"):
                return scene

    wordings = choices.one_of(list(CLAIMS))
    # "Both pictures show a star" and "both pictures show that a star is left of a ring".
    text = str(told)
    sentence = wordings[0].format(f"that {text}") if " is " in text else choices.one_of(wordings).format(text)
    names = (f"{group}-{number}" for number in itertools.count())
    for claim in choices.some_of(CLAIMS[wordings], 2):
        so, not_so = claim.split()
        true = [scene_for(sign) for sign in so]
        changed, false = int(so[0] == not_so[0]), [*true]
        false[changed] = scene_for(not_so[changed])
        for label, (left, right) in ((1, true), (0, false)):
            name = next(names)
            columns = {"captions": [sentence], "label": label, "sentence_group": group}
            yield scene_row(name, left, others=[right], second_image=right.cell(f"{name}-right"), **columns)


def binding_by_split(numbers: Mapping[str, int], pools: Mapping[str, Pool]) -> dict[str, list[dict[str, Any]]]:
    """Return the rows of each split of a set with false captions, kind after kind."""
    kinds = [rows_by_split(numbers, pools, functools.partial(binding_rows, kind=kind)) for kind in BINDING_KINDS]
    return {split: [row for kind in kinds for row in kind[split]] for split in numbers}


SETS: dict[str, Callable[[], Built]] = {
    "shapes": lambda: (CONTRAST_FEATURES, {split: list(pair_rows(split, pool)) for split, pool in pools().items()}),
    "shapes-binding": lambda: (COMPOSITION_FEATURES, binding_by_split(NUM_BINDING, pools())),
    # Of three things there are more to count.
    "shapes-questions": lambda: (QUESTION_FEATURES, rows_by_split(NUM_QUESTIONS, pools((2, 2, 3)), question_rows)),
    "shapes-statements": lambda: (REASONING_FEATURES, rows_by_split(NUM_STATEMENTS, pools(), statement_rows)),
}
"""Builders by the names of the sets."""
