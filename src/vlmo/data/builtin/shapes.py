"""Scenes of two to four shapes: with captions, with a false caption beside the true one, questions, and statements.

The truth does not show in a text alone: each caption, question and statement has another scene of which the opposite is
true. Pairs of a color and a shape are held out of training and shown by the split "combinations" (docs/data.md).
"""

from __future__ import annotations

import functools
import itertools
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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
    Placed,
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
    RowValues,
    make_row,
)

PACKAGES: tuple[str, ...] = ()
NUM_SCENES = {"train": 50_000, "validation": 1000, "test": 1000, "combinations": 1000}
NUM_CROWDED = {"train": 20_000, "validation": 1000, "test": 1000}
NUM_BINDING = {"validation": 250, "test": 250, "combinations": 250}
"""Pairs of rows of a kind."""
NUM_HALF_TRUTHS = {"validation": 500, "test": 1000}
NUM_QUESTIONS = {"train": 40_000, "validation": 1000, "test": 2000, "combinations": 1000}
NUM_STATEMENTS = {"train": 5000, "validation": 250, "test": 500, "combinations": 250}
"""Sentences, of which one has four rows."""

COUNTS = ("1", "2", "3")
ANSWERS = (*COLORS, *SHAPES, *COUNTS, "no", "yes")
LABELS = {"shapes-questions": ANSWERS}

_NAMES = ("circle", "square", "triangle", "star", "ring", "cross")
_COLORS = ("red", "yellow", "green", "blue", "pink", "black")
_ALONE = 0.2
"""Share of training scenes of one object, from which its place is learned first."""
_EDITS = ("exchange",) * 6 + ("name", "color")
"""Changes of a false caption: an exchange of places, or another thing that has the same name or the same color.

Places are learned last, and from exchanges alone, so exchanges are the most likely.
"""
_FORMS = {
    "no verb": ("{}", "{}", "the picture shows {}", "there is {} in the picture"),
    "verb": ("{}", "the picture shows that {}"),
}
"""Wordings of training captions, by whether the caption has a verb. Statements about two scenes use the same words."""

_ANSWER_TYPES = dict.fromkeys(("yes", "no"), "yes/no") | dict.fromkeys(COUNTS, "number")

Row = RowValues
Rows = Iterator[Row]
Splits = dict[str, list[Row]]


def pools(totals: tuple[int, ...] = (2,)) -> dict[str, Pool]:
    """Return what scenes are made of by split; a scene has one of `totals` things."""
    trained = shapes(held_out=False, names=_NAMES, colors=_COLORS)
    unseen = shapes(held_out=True, names=_NAMES, colors=_COLORS)
    pool = Pool("shapes", trained, unseen, totals=totals)
    usual = dict.fromkeys(("train", "validation", "test"), pool)
    return usual | {"combinations": replace(pool, first=unseen)}


def rows_by_split(
    numbers: Mapping[str, int],
    pools: Mapping[str, Pool],
    rows: Callable[[str, int, Pool], Iterable[Row]],
) -> Splits:
    """Return the rows of so many numbers of all splits."""
    splits: Splits = {}
    for split, total in numbers.items():
        made = (rows(split, number, pools[split]) for number in range(total))
        splits[split] = list(itertools.chain.from_iterable(made))
    return splits


def scene_row(name: str, scene: Scene, **columns: Any) -> Row:
    """Return a row with the image of a scene; the name begins with that of the set."""
    source = name.partition("/")[0].partition("-")[0]
    return make_row(name, image=scene.cell(name), source=source, licence="CC0-1.0", **columns)


# ------------------------------------------------------------------------------------------------------------ captions


def pair_rows(split: str, pool: Pool) -> Rows:
    """Return scenes with their captions.

    Those of the splits for evaluation have one, which is true of no other scene there; every second
    one is a relation. Training scenes have a false version of all their captions.
    """
    rows = _training_rows(pool) if split == "train" else _gallery_rows(split, pool)
    return itertools.islice(rows, NUM_SCENES[split])


def _training_rows(pool: Pool) -> Rows:
    for number in itertools.count():
        scene, choices = make_scene("train", number, pool)
        yield _training_row(
            f"{pool.name}/train/{number}", scene, sentences(scene, choices), pool, choices
        )


def _training_row(
    name: str, scene: Scene, true: Sequence[Sentence], pool: Pool, choices: Choices
) -> Row:
    """Return a row with the different texts among `true`, and a false version of all of them."""
    true = list({str(sentence): sentence for sentence in true}.values())
    false = [false_sentence(scene, sentence, pool, choices) for sentence in true]
    kinds = ["verb" if " is " in str(sentence) else "no verb" for sentence in true[:2]]
    # A third sentence, which says the most, stands as it is.
    forms = [*(choices.one_of(_FORMS[kind]) for kind in kinds), "{}"]
    return scene_row(
        name,
        scene,
        captions=list(map(str.format, forms, true)),
        false_captions=list(map(str.format, forms, false)),
    )


def _gallery_rows(split: str, pool: Pool) -> Rows:
    gallery = Gallery()
    is_relation = False
    for number in itertools.count():
        scene, choices = make_scene(split, number, pool)
        listed, *related = sentences(scene, choices)
        if not related:
            continue
        caption = related[0] if is_relation else listed
        if gallery.add(scene, caption):
            is_relation = not is_relation
            yield scene_row(
                f"{pool.name}/{split}/{number}", scene, captions=[str(caption)], false_captions=[]
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
        self._shown: dict[frozenset[Thing], list[tuple[Scene, Sentence]]] = defaultdict(list)

    def fits(self, scene: Scene, sentence: Sentence) -> bool:
        """Return True if the caption is true of no scene here, and no caption here of the scene."""
        return not any(
            self.mistakes(other, sentence) or self.mistakes(scene, caption)
            for pair in _pairs(scene)
            for other, caption in self._shown[pair]
        )

    def add(self, scene: Scene, sentence: Sentence) -> bool:
        """Add a scene if it fits, and return whether it does."""
        if not self.fits(scene, sentence):
            return False
        for pair in _pairs(scene):
            self._shown[pair].append((scene, sentence))
        return True

    def mistakes(self, scene: Scene, sentence: Sentence) -> bool:
        """Return True for another scene's caption that is true of this one; one that is unclear will do."""
        return bool(scene.truth(sentence))


def _pairs(scene: Scene) -> list[frozenset[Thing]]:
    """Return all pairs of things: a caption names two at least, so only scenes that share two can clash."""
    return list(map(frozenset, itertools.combinations(set(scene.things()), 2)))


def sentences(scene: Scene, choices: Choices, *, most: int = 2) -> list[Sentence]:
    """Return true sentences that say where two things lie, or in a list up to `most`.

    One says it by places, and where a relation is clear, one by it and one by both. Places stand in
    the order of the colors' names: in any order, the same steps teach a quarter less
    (experiments/log.md).
    """
    with_place = functools.partial(phrase_of, placed=True)
    listed = _by_color(list_of(scene, choices, words=with_place, most=most))
    related = related_pair(scene, choices)
    if not related.relations:
        return [listed]
    phrases = tuple(with_place(scene.fitting(phrase)) for phrase in related.phrases)
    return [listed, related, related._replace(phrases=phrases)]


def false_sentence(scene: Scene, sentence: Sentence, pool: Pool, choices: Choices) -> Sentence:
    """Return a false version of one of `sentences`: a thing is another, or two have changed places.

    No word shows which one is false: a false caption is a true one of another scene.
    """
    objects = [scene.fitting(phrase)[0] for phrase in sentence.phrases]
    things = [placed.thing for placed in objects]
    while True:
        phrases = list(sentence.phrases)
        number = choices.below(len(phrases))
        edit = choices.one_of(_EDITS)
        if edit != "exchange":
            kept = getattr(things[number], edit)
            others = [shape for shape in pool.shapes if shape not in things]
            alike = [shape for shape in others if getattr(shape, edit) == kept]
            if not alike:
                continue
            thing = choices.one_of(alike)
            phrases[number] = replace(phrases[number], name=thing.name, color=thing.color)
        elif len(phrases) > 1:
            one, two = choices.some_of(range(len(phrases)), 2) if len(phrases) > 2 else (0, 1)
            first = phrases[one]
            second = phrases[two]
            phrases[one] = replace(second, where=first.where)
            phrases[two] = replace(first, where=second.where)
        else:
            phrases = [replace(phrases[0], where=_mirrored(objects[0], choices).where)]
        if sentence.relations:
            relation = sentence.relations[0][1]
            form = RELATED[" is " in sentence.form]
            if edit == "exchange" and choices.below(2):  # the same in other words
                phrases.reverse()
                relation = OPPOSITE[relation]
            false = relate(phrases, relation, form % choices.one_of(WORDS[relation]))
        else:
            false = _by_color(Sentence(tuple(phrases)))
        if scene.truth(false) is False:
            return false


def _mirrored(placed: Placed, choices: Choices) -> Placed:
    """Return a thing on the other side of the image, from left to right or from top to bottom."""
    if choices.one_of(("left", "top")) == "left":
        return placed._replace(left=UNITS - placed.left - placed.side)
    return placed._replace(top=UNITS - placed.top - placed.side)


def _by_color(sentence: Sentence) -> Sentence:
    phrases = sorted(sentence.phrases, key=lambda phrase: (phrase.color or "", phrase.name))
    return Sentence(tuple(phrases))


# ------------------------------------------------------------------------------------------------------ crowded scenes


def crowded_pools() -> dict[str, Pool]:
    """Return what crowded scenes are made of by split: three or four different things."""
    return {
        split: replace(pool, totals=(3, 4), repeated=0.0)
        for split, pool in pools().items()
        if split in NUM_CROWDED
    }


def crowded_rows(split: str, pool: Pool) -> Rows:
    """Return scenes of three and four things with their captions, of two or three of them.

    Those of the splits for evaluation have one caption, and stand in pairs of equal things, of which two have
    changed places: each caption is false of the other scene, and true of none there.
    """
    rows = _crowded_training_rows(pool) if split == "train" else _twin_rows(split, pool)
    return itertools.islice(rows, NUM_CROWDED[split])


def _crowded_training_rows(pool: Pool) -> Rows:
    for number in itertools.count():
        choices = Choices(f"scenes-crowded/train/{number}")
        scene = pool.scene(choices)
        true = sentences(scene, choices, most=2 + choices.below(2))
        yield _training_row(f"{pool.name}-crowded/train/{number}", scene, true, pool, choices)


def _twin_rows(split: str, pool: Pool) -> Rows:
    gallery = Gallery()
    for number in itertools.count():
        choices = Choices(f"scenes-crowded/{split}/{number}")
        first, caption, second, other = pool.edited_scene(choices, kind="swap")
        if not caption.relations:
            is_longer = choices.below(2)
            caption = _listed(first, caption, choices, is_longer=is_longer)
            other = _listed(second, other, choices, is_longer=is_longer)
        if gallery.fits(first, caption) and gallery.fits(second, other):
            for twin, scene, sentence in (("a", first, caption), ("b", second, other)):
                gallery.add(scene, sentence)
                yield scene_row(
                    f"{pool.name}-crowded/{split}/{number}{twin}",
                    scene,
                    captions=[str(sentence)],
                    false_captions=[],
                )


def _listed(scene: Scene, sentence: Sentence, choices: Choices, *, is_longer: int) -> Sentence:
    """Return a list in training's order, perhaps with one more thing of the scene and its place."""
    phrases = list(sentence.phrases)
    if is_longer:
        others = [
            placed
            for placed in scene.objects
            if not any(phrase.fits(placed) for phrase in sentence.phrases)
        ]
        phrases.append(phrase_of([choices.one_of(others)], placed=True))
    return _by_color(Sentence(tuple(phrases)))


# ------------------------------------------------------------------------------------------- a true and a false caption


def binding_by_split(numbers: Mapping[str, int], pools: Mapping[str, Pool]) -> Splits:
    """Return the rows of all splits of a set with false captions, kind after kind."""
    splits: Splits = {split: [] for split in numbers}
    for kind in BINDING_KINDS:
        rows_of_kind = rows_by_split(numbers, pools, functools.partial(binding_rows, kind=kind))
        for split, rows in rows_of_kind.items():
            splits[split] += rows
    return splits


def binding_rows(split: str, number: int, pool: Pool, *, kind: str) -> Rows:
    """Yield two rows with the same two captions, of which one is true of the first image and one of the second.

    In `kind`, an object, a color or a relation is replaced by another one, or two objects or their colors are
    swapped.
    """
    choices = Choices(f"scenes-binding/{split}/{kind}/{number}")
    first, caption, second, other = pool.edited_scene(choices, kind=kind)
    name = f"{pool.name}-binding/{split}/{kind}-{number}"
    yield scene_row(f"{name}a", first, captions=[str(caption)], false_caption=str(other), kind=kind)
    yield scene_row(
        f"{name}b", second, captions=[str(other)], false_caption=str(caption), kind=kind
    )


def half_truth_rows(split: str, number: int, pool: Pool) -> Rows:
    """Yield a scene with a true caption of two things, and a longer one that adds a third with a wrong detail.

    The wrong detail is the place in three of four rows, else the shape or the color.
    """
    choices = Choices(f"scenes-half-truths/{split}/{number}")
    scene = pool.scene(choices)
    *shown, last = choices.some_of(scene.objects, 3)
    phrases = tuple(phrase_of([placed], placed=True) for placed in shown)
    detail = Sentence((phrase_of([last], placed=True),))
    words = {phrase.words() for phrase in phrases}
    while (wrong := false_sentence(scene, detail, pool, choices).phrases[0]).words() in words:
        pass
    yield scene_row(
        f"{pool.name}-half-truths/{split}/{number}",
        scene,
        captions=[str(_by_color(Sentence(phrases)))],
        false_caption=str(_by_color(Sentence((*phrases, wrong)))),
        kind="half-truth",
    )


# ----------------------------------------------------------------------------------------------------------- questions

Asked = tuple[str, str] | None


def question_rows(split: str, number: int, pool: Pool) -> Rows:
    """Yield a question about a scene of its own; its kind is the next one for the next number."""
    turn, position = divmod(number, len(QUESTIONS))
    kind, ask = list(QUESTIONS.items())[position]
    choices = Choices(f"scenes-questions/{split}/{number}")
    scene = pool.scene(choices)
    # A scene may have nothing that this kind of question can ask for without doubt.
    while (asked := ask(scene, choices, pool, turn)) is None:
        scene = pool.scene(choices)
    question, answer = asked
    yield scene_row(
        f"{pool.name}-questions/{split}/{number}",
        scene,
        question=question,
        question_id=f"{pool.name}-questions/{split}/question-{number}",
        question_type=kind,
        answer_type=_ANSWER_TYPES.get(answer, "other"),
        answers=[answer],
        answer_labels=[ANSWERS.index(answer)],
        answer_scores=[1.0],
    )


def _color(scene: Scene, choices: Choices, *_: object) -> Asked:
    shown = [thing for thing in scene.things() if thing.color]
    names = [thing.name for thing in shown]
    alone = [thing for thing in shown if names.count(thing.name) == 1]
    if not alone:
        return None
    thing = choices.one_of(alone)
    return f"what color is the {thing.name}?", thing.color or ""


def _shape(scene: Scene, choices: Choices, *_: object) -> Asked:
    alone = scene.alone()
    if not alone:
        return None
    named = choices.one_of(alone)
    relation = choices.one_of(list(OPPOSITE))
    # A shape that people could think of must not stand beside the one that is asked for.
    axis = relation in {"above", "below"}
    sign = -1 if relation in {"left of", "above"} else 1
    shapes = [placed for placed in scene.objects if placed.thing.color]
    near = [placed for placed in shapes if sign * placed.offset(named)[axis] > 0]
    if len(near) != 1 or near[0].relation_to(named) != relation:
        return None
    return f"what shape is {relation} the {named.thing.phrase().words()}?", near[0].thing.name


def _count(scene: Scene, choices: Choices, _: Pool, turn: int) -> Asked:
    # All numbers are asked for as often.
    answer = turn % len(COUNTS) + 1
    questions = Counter(f"how many {plural(thing.name)} are there?" for thing in scene.things())
    for thing in scene.things():
        if thing.color:
            questions[f"how many {thing.color} shapes are there?"] += 1
    asked = sorted(question for question in questions if questions[question] == answer)
    return (choices.one_of(asked), str(answer)) if asked else None


def _presence(scene: Scene, choices: Choices, pool: Pool, _: int) -> Asked:
    """Ask whether something is there, in seven of ten cases something with a color of its own."""
    # As many "yes" as "no": the answer does not show in the question.
    is_there = choices.random() < 0.5
    is_colored = choices.random() < 0.7
    shown = [thing for thing in scene.things() if bool(thing.color) == is_colored]
    if not shown:
        return None
    thing = choices.one_of(shown if is_there else pool.absent(shown, choices))
    return f"is there {thing.phrase()}?", "yes" if is_there else "no"


def _relation(scene: Scene, choices: Choices, *_: object) -> Asked:
    alone = scene.alone()
    if len(alone) < 2:
        return None
    first, second = choices.some_of(alone, 2)
    relation = first.relation_to(second)
    if relation is None:
        return None
    answer = "yes"
    if choices.random() >= 0.5:
        answer = "no"
        relation = OPPOSITE[relation]
    words = first.thing.phrase().words()
    return f"is the {words} {relation} the {second.thing.phrase().words()}?", answer


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
"""Wordings of a claim, and pairs of images of which it is true, with one of which it is false.

1 stands for an image that shows what the sentence speaks of.
"""


def statement_rows(split: str, number: int, pool: Pool) -> Rows:
    """Yield the four rows of a sentence about two scenes, in the manner of NLVR2: true of two pairs and false of two.

    Each false pair is a true one with another scene on one side, so neither the sentence nor one image alone shows it.
    """
    group = f"{pool.name}-statements/{split}/{number}"
    choices = Choices(f"scenes-statements/{split}/{number}")
    first, claimed, second, _ = pool.edited_scene(choices, kind=choices.one_of(BINDING_KINDS))

    def scene_for(sign: str) -> Scene:
        scene, other = (first, second) if sign == "1" else (second, first)
        return _scene_like(scene, other, claimed, pool, choices, is_true=sign == "1")

    wordings = choices.one_of(list(CLAIMS))
    sentence = _claim_text(claimed, wordings, choices)
    names = (f"{group}-{position}" for position in itertools.count())
    for claim in choices.some_of(CLAIMS[wordings], 2):
        true_signs, false_signs = claim.split()
        true = [scene_for(sign) for sign in true_signs]
        # The side on which the true and the false pair differ.
        changed = int(true_signs[0] == false_signs[0])
        false = [*true]
        false[changed] = scene_for(false_signs[changed])
        for label, (left, right) in ((1, true), (0, false)):
            name = next(names)
            yield scene_row(
                name,
                left,
                second_image=right.cell(f"{name}-right"),
                captions=[sentence],
                label=label,
                sentence_group=group,
            )


def _scene_like(
    scene: Scene,
    other: Scene,
    claimed: Sentence,
    pool: Pool,
    choices: Choices,
    *,
    is_true: bool,
) -> Scene:
    """Return a scene of the things that a sentence names, or of what replaces them in `other`, and perhaps more.

    The sentence is true of it, or clearly false.
    """
    named = {phrase.name for phrase in claimed.phrases}
    pairs = zip(scene.things(), other.things(), strict=True)
    wanted = [thing for thing, replaced in pairs if thing != replaced or thing.name in named]
    names = {thing.name for thing in wanted}
    while True:
        others = [thing for thing in pool.things(choices) if thing.name not in names]
        missing = max(0, choices.one_of(pool.totals) - len(wanted))
        filled = pool.scene(choices, [*wanted, *others[:missing]])
        if filled.truth(claimed) is is_true:
            return filled


def _claim_text(claimed: Sentence, wordings: Sequence[str], choices: Choices) -> str:
    """Return "both pictures show a star", or "both pictures show that a star is left of a ring"."""
    text = str(claimed)
    if " is " in text:
        return wordings[0].format(f"that {text}")
    return choices.one_of(wordings).format(text)


SETS: dict[str, Callable[[], Built]] = {
    "shapes": lambda: (
        CONTRAST_FEATURES,
        {split: list(pair_rows(split, pool)) for split, pool in pools().items()},
    ),
    "shapes-crowded": lambda: (
        CONTRAST_FEATURES,
        {split: list(crowded_rows(split, pool)) for split, pool in crowded_pools().items()},
    ),
    "shapes-binding": lambda: (COMPOSITION_FEATURES, binding_by_split(NUM_BINDING, pools())),
    "shapes-half-truths": lambda: (
        COMPOSITION_FEATURES,
        rows_by_split(NUM_HALF_TRUTHS, crowded_pools(), half_truth_rows),
    ),
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
