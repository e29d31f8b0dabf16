"""Things that scenes are made of, and the least changes of a scene that make a sentence about it false."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from vlmo.data.builtin.compose import UNITS
from vlmo.data.builtin.scenes import (
    OPPOSITE,
    RELATED,
    WORDS,
    Choices,
    Placed,
    Scene,
    Sentence,
    Thing,
    background,
    paint,
    phrase_of,
    relate,
)

BINDING_KINDS = ("object", "color", "relation", "swap")
"""Changes: another shape, another color, the opposite relation, or two objects or their colors exchanged."""

_QUARTER = UNITS // 2
_SIDES = range(32, 45, 2)

Edited = tuple[Scene, Sentence, Scene, Sentence]
"""A scene and its caption, and the least change of both: each caption is false of the other scene."""


@dataclass(frozen=True)
class Pool:
    """Shapes that scenes are made of.

    Attributes:
        name: First part of the ids of rows, by which joined sources know equal images.
        shapes: Shapes of training.
        unseen: Shapes that no training scene shows.
        first: Things of which each scene shows one; none, and any will do.
        totals: Numbers of things, one of which is taken.
    """

    name: str
    shapes: tuple[Thing, ...]
    unseen: tuple[Thing, ...]
    first: tuple[Thing, ...] = ()
    totals: tuple[int, ...] = (2,)

    def scene(self, choices: Choices, things: Sequence[Thing] | None = None) -> Scene:
        """Return a scene of these or other things."""
        things = self.things(choices) if things is None else things
        return Scene(tuple(self.place(things, choices)), background(choices))

    def things(self, choices: Choices) -> list[Thing]:
        """Return things of which some may be there more than once."""
        total = choices.one_of(self.totals)
        chosen = [choices.one_of(self.first)] if self.first else []
        repeats = choices.below(total - 1) if choices.random() < 0.4 else 0
        while len(chosen) < total - repeats:
            thing = self.another(chosen, choices)
            if thing not in chosen:
                chosen.append(thing)
        return chosen + [chosen[0]] * repeats

    def another(self, chosen: Sequence[Thing], choices: Choices) -> Thing:
        """Return a shape, often one with the name or the color of a chosen one: they must be bound."""
        share = choices.random()
        if chosen and share < 0.35:
            like = choices.one_of(chosen)
            return choices.one_of(
                [x for x in self.shapes if (x.name == like.name) != (x.color == like.color)]
            )
        return choices.one_of(self.shapes)

    def place(self, things: Sequence[Thing], choices: Choices) -> Iterator[Placed]:
        """Yield up to four things, each somewhere in a quarter of the image: none covers another."""
        for thing, quarter in zip(things, choices.some_of(range(4), len(things)), strict=True):
            side = choices.one_of(_SIDES)
            row, column = divmod(quarter, 2)
            left, top = (
                _QUARTER * half + 1 + choices.below(_QUARTER - side - 1) for half in (column, row)
            )
            yield Placed(thing, left, top, side, paint(thing.color, choices))

    def alike(self, thing: Thing, *, kind: str) -> Sequence[Thing]:
        """Return shapes of the color of a thing ("object"), or those of its name ("color")."""
        same = "color" if kind == "object" else "name"
        return [
            each
            for each in self.shapes + self.unseen
            if getattr(each, same) == getattr(thing, same)
        ]

    def absent(self, shown: Sequence[Thing], choices: Choices) -> Sequence[Thing]:
        """Return shapes that are not there, half of the times of a color and a name that are."""
        others = [thing for thing in self.shapes if thing not in shown]
        unseen = [thing for thing in self.first if thing.color and thing not in shown]
        others = unseen if unseen and choices.random() < 0.5 else others  # not only for a yes
        names = {thing.name for thing in shown}
        colors = {thing.color for thing in shown}
        mixed = [thing for thing in others if thing.name in names and thing.color in colors]
        return mixed if mixed and choices.random() < 0.5 else others

    def edited_scene(self, choices: Choices, *, kind: str) -> Edited:
        """Return two scenes and a sentence about each that is false of the other one."""
        edits = {"relation": _opposite, "swap": self.swapped}
        edit = edits.get(kind) or functools.partial(self._replaced, kind=kind)
        while True:
            scene = self.scene(choices)
            alone = scene.alone()
            if (
                len(alone) > 1
                and (edited := edit(scene, choices.some_of(alone, 2), choices)) is not None
            ):
                first, true, second, false = edited
                truths = [
                    each.truth(sentence) for each in (first, second) for sentence in (true, false)
                ]
                if truths == [True, False, False, True]:
                    return edited

    def sentence(self, pair: Sequence[Placed], choices: Choices) -> Sentence:
        """Return the relation of two objects, or a list of them with their places."""
        relation = pair[0].relation_to(pair[1])
        if relation is None or choices.random() < 0.5:
            return Sentence(tuple(phrase_of([each], placed=True) for each in pair))
        return relate(
            (phrase_of([each]) for each in pair),
            relation,
            RELATED[0] % choices.one_of(WORDS[relation]),
        )

    def swapped(self, scene: Scene, pair: Sequence[Placed], choices: Choices) -> Edited | None:
        """Exchange two objects or their colors."""
        of_colors = choices.below(2)
        sentence = self.sentence(pair, choices)
        first, second = sentence.phrases
        things = {each: other.thing for each, other in (pair, pair[::-1])}
        false = (second, first)
        if of_colors:
            things = {
                each: each.thing._replace(color=thing.color) for each, thing in things.items()
            }
            false = (replace(first, color=second.color), replace(second, color=first.color))
        return scene, sentence, scene.replaced(things, choices), sentence._replace(phrases=false)

    def _replaced(
        self, scene: Scene, pair: Sequence[Placed], choices: Choices, *, kind: str
    ) -> Edited | None:
        if not (alike := self.alike(pair[0].thing, kind=kind)):
            return None
        thing = choices.one_of(alike)
        changed = scene.replaced({pair[0]: thing}, choices)
        number = choices.below(2)
        sentence = self.sentence(pair[::-1] if number else pair, choices)
        phrases = list(sentence.phrases)
        phrases[number] = replace(phrases[number], name=thing.name, color=thing.color)
        return scene, sentence, changed, sentence._replace(phrases=tuple(phrases))


def _opposite(scene: Scene, pair: Sequence[Placed], choices: Choices) -> Edited | None:
    if (relation := pair[0].relation_to(pair[1])) is None:
        return None
    phrases = [phrase_of([each]) for each in pair]
    form = choices.one_of(RELATED)
    word = choices.below(2)
    true, false = (
        relate(phrases, each, form % WORDS[each][word]) for each in (relation, OPPOSITE[relation])
    )
    return (
        scene,
        true,
        scene.replaced({each: other.thing for each, other in (pair, pair[::-1])}, choices),
        false,
    )
