"""Scenes of two or three shapes: with captions, with a false caption beside the true one, questions, and statements.

The truth does not show in a text alone: each caption, question and statement has another scene of which the opposite is
true. Pairs of a color and a shape are held out of training and shown by the split "combinations" (docs/data.md).
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from vlmo.data.builtin.compose import SHAPES, UNITS
from vlmo.data.builtin.pools import BINDING_KINDS, Pool
from vlmo.data.builtin.scenes import (
    COLORS,
    OPPOSITE,
    RELATED,
    WORDS,
    Choices,
    Scene,
    Sentence,
    Thing,
    list_of,
    phrase_of,
    plural,
    relate,
    related_pair,
    shapes,
)
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

COUNTS = ("1", "2", "3")
ANSWERS = (*COLORS, *SHAPES, *COUNTS, "no", "yes")
LABELS = {"shapes-questions": ANSWERS}

_NAMES = ("circle", "square", "triangle", "star", "ring", "cross")
_COLORS = ("red", "yellow", "green", "blue", "pink", "black")
_ALONE = 0.2
"""Share of training scenes of one object, from which its place is learnt first."""
_EDITS = ("exchange",) * 6 + ("color", "object")
"""Changes of a false caption, each as likely: places are learnt last, and from exchanges alone."""
_FORMS = {
    "no verb": ("{}", "{}", "the picture shows {}", "there is {} in the picture"),
    "verb": ("{}", "the picture shows that {}"),
}
"""Wordings of training captions, by whether the caption has a verb. Statements about two scenes use the same words."""

Rows = Iterator[dict[str, Any]]


def pools(totals: tuple[int, ...] = (2,)) -> dict[str, Pool]:
    """Return what the scenes of each split are made of; each scene has one of `totals` things."""
    known, unseen = (shapes(held_out=each, names=_NAMES, colors=_COLORS) for each in (False, True))
    pool = Pool("shapes", known, unseen, totals=totals)
    return dict.fromkeys(("train", "validation", "test"), pool) | {
        "combinations": replace(pool, first=unseen)
    }


def rows_by_split(
    numbers: Mapping[str, int],
    pools: Mapping[str, Pool],
    rows: Callable[[str, int, Pool], Iterable[dict[str, Any]]],
) -> dict[str, list[dict[str, Any]]]:
    """Return the rows of so many numbers of each split."""
    return {
        split: [row for number in range(total) for row in rows(split, number, pools[split])]
        for split, total in numbers.items()
    }


def scene_row(name: str, scene: Scene, **columns: Any) -> dict[str, Any]:
    """Return a row with the image of a scene; the name begins with that of the set."""
    source = name.partition("/")[0].partition("-")[0]
    return make_row(name, image=scene.cell(name), source=source, licence="CC0-1.0", **columns)


# ------------------------------------------------------------------------------------------------------------ captions


def pair_rows(split: str, pool: Pool) -> Rows:
    """Yield scenes with their captions.

    Those of the splits for evaluation have one, which is true of no other scene there; every second one is a relation.
    Training scenes have a false version of each caption.
    """
    gallery = Gallery()
    found = 0
    for number in itertools.count():
        if found == NUM_SCENES[split]:
            return
        scene, choices = make_scene(split, number, pool)
        true = sentences(scene, choices)
        if split == "train":
            true = list({str(each): each for each in true}.values())
            false = [false_sentence(scene, each, pool, choices) for each in true]
            forms = [
                choices.one_of(_FORMS["verb" if " is " in str(each) else "no verb"])
                for each in true[:2]
            ] + ["{}"]
            texts = [
                [form.format(each) for form, each in zip(forms, kind, strict=False)]
                for kind in (true, false)
            ]
        else:
            chosen = (
                [each for each in true[:2] if bool(each.relations) == bool(found % 2)]
                if true[1:]
                else []
            )
            if not chosen or not gallery.add(scene, caption := choices.one_of(chosen)):
                continue
            texts = [[str(caption)], []]
        found += 1
        yield scene_row(
            f"{pool.name}/{split}/{number}", scene, captions=texts[0], false_captions=texts[1]
        )


def make_scene(split: str, number: int, pool: Pool) -> tuple[Scene, Choices]:
    """Return scene `number` of a split, in training at times of one object, and its captions' choices."""
    choices = Choices(f"scenes/{split}/{number}")
    if split == "train" and choices.random() < _ALONE:
        return pool.scene(choices, pool.things(choices)[:1]), choices
    return pool.scene(choices), choices


class Gallery:
    """Scenes with captions that are true of one alone."""

    def __init__(self) -> None:
        self._known: dict[frozenset[Thing], list[tuple[Scene, Sentence]]] = {}

    def add(self, scene: Scene, sentence: Sentence) -> bool:
        """Add a scene unless its caption is true of another one, or another's of it; return whether it was added."""
        things = {each.thing for each in scene.objects}
        pairs = [frozenset(pair) for pair in itertools.combinations(things, 2)]
        for other, of_other in (each for pair in pairs for each in self._known.get(pair, [])):
            if self.mistakes(other, sentence) or self.mistakes(scene, of_other):
                return False
        for pair in pairs:
            self._known.setdefault(pair, []).append((scene, sentence))
        return True

    def mistakes(self, scene: Scene, sentence: Sentence) -> bool:
        """Return True for another scene's caption that is true of this one; one that is unclear will do."""
        return bool(scene.truth(sentence))


def sentences(scene: Scene, choices: Choices) -> list[Sentence]:
    """Return true sentences that say where two things lie: by places, by their relation if one is clear, and by both.

    Places stand in the order of the colors' names: in any order, the same steps teach a quarter less
    (experiments/log.md).
    """
    placed = _by_color(
        list_of(scene, choices, words=functools.partial(phrase_of, placed=True), most=2)
    )
    related = related_pair(scene, choices)
    if not related.relations:
        return [placed]
    where = {
        phrase: each.where
        for phrase in related.phrases
        for each in scene.objects
        if phrase.fits(each)
    }
    both = related._replace(
        phrases=tuple(replace(each, where=where[each]) for each in related.phrases)
    )
    return [placed, related, both]


def false_sentence(scene: Scene, sentence: Sentence, pool: Pool, choices: Choices) -> Sentence:
    """Return a false version of one of `sentences`: a thing is another, or two have changed places.

    No word shows which one is false: a false caption is a true one of another scene.
    """
    known = [
        next(each for each in scene.objects if phrase.fits(each)) for phrase in sentence.phrases
    ]
    while True:
        objects = list(known)
        things = [each.thing for each in known]
        number = choices.below(len(things))
        edit = choices.one_of(_EDITS)
        if edit == "exchange" and len(things) > 1:
            things.reverse()
        elif edit == "exchange":
            edge = choices.one_of(("left", "top"))
            objects[0] = objects[0]._replace(
                **{edge: UNITS - getattr(objects[0], edge) - objects[0].side}
            )
        else:
            old = things[number]
            same = (edit == "color", edit == "object")
            alike = [
                x
                for x in pool.shapes
                if (x.name == old.name, x.color == old.color) == same and x not in things
            ]
            if not alike:
                continue
            things[number] = choices.one_of(alike)
        phrases = [
            replace(phrase, name=thing.name, color=thing.color, where=phrase.where and each.where)
            for each, thing, phrase in zip(objects, things, sentence.phrases, strict=True)
        ]
        if sentence.relations:
            relation = sentence.relations[0][1]
            form = RELATED[" is " in sentence.form]
            if edit == "exchange" and choices.below(2):  # the same in other words
                phrases = phrases[::-1]
                relation = OPPOSITE[relation]
            false = relate(phrases, relation, form % choices.one_of(WORDS[relation]))
        else:
            false = _by_color(Sentence(tuple(phrases)))
        if scene.truth(false) is False:
            return false


def _by_color(sentence: Sentence) -> Sentence:
    return Sentence(
        tuple(sorted(sentence.phrases, key=lambda phrase: (phrase.color or "", phrase.name)))
    )


# ------------------------------------------------------------------------------------------- a true and a false caption


def binding_by_split(
    numbers: Mapping[str, int], pools: Mapping[str, Pool]
) -> dict[str, list[dict[str, Any]]]:
    """Return the rows of each split of a set with false captions, kind after kind."""
    kinds = [
        rows_by_split(numbers, pools, functools.partial(binding_rows, kind=kind))
        for kind in BINDING_KINDS
    ]
    return {split: [row for kind in kinds for row in kind[split]] for split in numbers}


def binding_rows(split: str, number: int, pool: Pool, *, kind: str) -> Rows:
    """Yield two rows with the same two captions, of which one is true of the first image and one of the second.

    In `kind`, an object, a color or a relation is replaced by another one, or two objects or their colors are
    swapped.
    """
    first, true, second, false = pool.edited_scene(
        Choices(f"scenes-binding/{split}/{kind}/{number}"), kind=kind
    )
    for letter, scene, own, other in (("a", first, true, false), ("b", second, false, true)):
        name = f"{pool.name}-binding/{split}/{kind}-{number}{letter}"
        yield scene_row(name, scene, captions=[str(own)], false_caption=str(other), kind=kind)


# ----------------------------------------------------------------------------------------------------------- questions

Asked = tuple[str, str] | None


def question_rows(split: str, number: int, pool: Pool) -> Rows:
    """Yield a question about a scene of its own; its kind is the next one for each number."""
    turn, which = divmod(number, len(QUESTIONS))
    kind, ask = list(QUESTIONS.items())[which]
    choices = Choices(f"scenes-questions/{split}/{number}")
    while (asked := ask(scene := pool.scene(choices), choices, pool, turn)) is None:
        continue
    question, answer = asked
    yield scene_row(
        f"{pool.name}-questions/{split}/{number}",
        scene,
        question=question,
        question_id=f"{pool.name}-questions/{split}/question-{number}",
        question_type=kind,
        answer_type="yes/no"
        if answer in {"yes", "no"}
        else "number"
        if answer in COUNTS
        else "other",
        answers=[answer],
        answer_labels=[ANSWERS.index(answer)],
        answer_scores=[1.0],
    )


def _color(scene: Scene, choices: Choices, *_: object) -> Asked:
    shown = [each.thing for each in scene.objects if each.thing.color]
    names = [thing.name for thing in shown]
    alone = [thing for thing in shown if names.count(thing.name) == 1]
    if not alone:
        return None
    thing = choices.one_of(alone)
    return f"what color is the {thing.name}?", thing.color or ""


def _shape(scene: Scene, choices: Choices, *_: object) -> Asked:
    if not (alone := scene.alone()):
        return None
    known = choices.one_of(alone)
    relation = choices.one_of(list(OPPOSITE))
    # A shape that people could think of must not stand beside the one that is asked for.
    axis = relation in {"above", "below"}
    sign = -1 if relation in {"left of", "above"} else 1
    others = (each for each in scene.objects if each is not known and each.thing.color)
    near = [each for each in others if sign * each.offset(known)[axis] > 0]
    if len(near) != 1 or near[0].relation_to(known) != relation:
        return None
    return f"what shape is {relation} the {known.thing.phrase().words()}?", near[0].thing.name


def _count(scene: Scene, choices: Choices, _: Pool, turn: int) -> Asked:
    answer = turn % len(COUNTS) + 1  # each number is asked for as often
    things = [each.thing for each in scene.objects]
    found = [f"how many {plural(thing.name)} are there?" for thing in things]
    found += [f"how many {thing.color} shapes are there?" for thing in things if thing.color]
    asked = sorted({question for question in found if found.count(question) == answer})
    return (choices.one_of(asked), str(answer)) if asked else None


def _presence(scene: Scene, choices: Choices, pool: Pool, _: int) -> Asked:
    """Ask whether something is there, in seven of ten cases something with a color of its own."""
    is_there = choices.random() < 0.5
    colored = choices.random() < 0.7
    shown = [each.thing for each in scene.objects if bool(each.thing.color) == colored]
    if not shown:
        return None
    thing = choices.one_of(shown if is_there else pool.absent(shown, choices))
    return f"is there {thing.phrase()}?", "yes" if is_there else "no"


def _relation(scene: Scene, choices: Choices, *_: object) -> Asked:
    if len(alone := scene.alone()) < 2:
        return None
    first, second = choices.some_of(alone, 2)
    if (relation := first.relation_to(second)) is None:
        return None
    is_so = choices.random() < 0.5
    one, other = (each.thing.phrase().words() for each in (first, second))
    return (
        f"is the {one} {relation if is_so else OPPOSITE[relation]} the {other}?",
        "yes" if is_so else "no",
    )


QUESTIONS: dict[str, Callable[[Scene, Choices, Pool, int], Asked]] = {
    "what color": _color,
    "what shape": _shape,
    "how many": _count,
    "is there": _presence,
    "is the": _relation,
}
"""Functions that ask about a scene, or give None, by question type; the number counts the questions of one type."""

# ---------------------------------------------------------------------------------------------------------- statements

CLAIMS = {
    ("both pictures show {}", "there is {} in each picture"): ("11 01", "11 10"),
    ("exactly one of the pictures shows {}", "only one picture shows {}"): (
        "10 11",
        "01 11",
        "10 00",
        "01 00",
    ),
    ("neither picture shows {}", "no picture shows {}"): ("00 10", "00 01"),
    ("the left picture shows {}", "there is {} in the picture on the left"): ("11 01", "10 00"),
    ("the right picture shows {}", "there is {} in the picture on the right"): ("11 10", "01 00"),
}
"""Wordings of a claim, and pairs of images of which it is true, each with one of which it is false.

1 stands for an image that shows what the sentence speaks of.
"""


def statement_rows(split: str, number: int, pool: Pool) -> Rows:
    """Yield the four rows of a sentence about two scenes, in the manner of NLVR2: true of two pairs and false of two.

    Each false pair is a true one with another scene on one side, so neither the sentence nor one image alone shows it.
    """
    group = f"{pool.name}-statements/{split}/{number}"
    choices = Choices(f"scenes-statements/{split}/{number}")
    first, shown, second, _ = pool.edited_scene(choices, kind=choices.one_of(BINDING_KINDS))
    named = {phrase.name for phrase in shown.phrases}

    def scene_for(sign: str) -> Scene:
        """Return a scene of what the sentence names or what replaces it, of which it is true, or clearly false."""
        scene, other = (first, second) if sign == "1" else (second, first)
        pairs = zip(scene.objects, other.objects, strict=True)
        wanted = [
            each.thing
            for each, instead in pairs
            if each.thing != instead.thing or each.thing.name in named
        ]
        while True:
            others = [
                thing
                for thing in pool.things(choices)
                if thing.name not in {each.name for each in wanted}
            ]
            rest = others[: max(0, choices.one_of(pool.totals) - len(wanted))]
            found = pool.scene(choices, [*wanted, *rest])
            if found.truth(shown) is (sign == "1"):
                return found

    wordings = choices.one_of(list(CLAIMS))
    # "Both pictures show a star" and "both pictures show that a star is left of a ring".
    text = str(shown)
    sentence = (
        wordings[0].format(f"that {text}")
        if " is " in text
        else choices.one_of(wordings).format(text)
    )
    names = (f"{group}-{number}" for number in itertools.count())
    for claim in choices.some_of(CLAIMS[wordings], 2):
        so, not_so = claim.split()
        true = [scene_for(sign) for sign in so]
        changed = int(so[0] == not_so[0])
        false = [*true]
        false[changed] = scene_for(not_so[changed])
        for label, (left, right) in ((1, true), (0, false)):
            name = next(names)
            columns = {"captions": [sentence], "label": label, "sentence_group": group}
            yield scene_row(name, left, second_image=right.cell(f"{name}-right"), **columns)


SETS: dict[str, Callable[[], Built]] = {
    "shapes": lambda: (
        CONTRAST_FEATURES,
        {split: list(pair_rows(split, pool)) for split, pool in pools().items()},
    ),
    "shapes-binding": lambda: (COMPOSITION_FEATURES, binding_by_split(NUM_BINDING, pools())),
    # Of three things there are more to count.
    "shapes-questions": lambda: (
        QUESTION_FEATURES,
        rows_by_split(NUM_QUESTIONS, pools((2, 2, 3)), question_rows),
    ),
    "shapes-statements": lambda: (
        REASONING_FEATURES,
        rows_by_split(NUM_STATEMENTS, pools(), statement_rows),
    ),
}
"""Builders by the names of the sets."""
