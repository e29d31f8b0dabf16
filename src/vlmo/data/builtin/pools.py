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
"""A scene and its caption, and the least change of both: a caption is false of the other scene."""


@dataclass(frozen=True)
class Pool:
    """Shapes that scenes are made of.

    Attributes:
        name: First part of the ids of rows, by which joined sources know equal images.
        shapes: Shapes of training.
        unseen: Shapes that no training scene shows.
        first: Things of which a scene must show one, if there are any.
        totals: Numbers of things, one of which is taken.
        repeated: Share of the scenes of three and more things in which some may be equal.
    """

    name: str
    shapes: tuple[Thing, ...]
    unseen: tuple[Thing, ...]
    first: tuple[Thing, ...] = ()
    totals: tuple[int, ...] = (2,)
    repeated: float = 0.4

    def scene(self, choices: Choices, things: Sequence[Thing] | None = None) -> Scene:
        """Return a scene of these or other things."""
        things = self.things(choices) if things is None else things
        return Scene(tuple(self.place(things, choices)), background(choices))

    def things(self, choices: Choices) -> list[Thing]:
        """Return things of which some may be there more than once."""
        total = choices.one_of(self.totals)
        chosen = [choices.one_of(self.first)] if self.first else []
        repeats = choices.below(total - 1) if choices.random() < self.repeated else 0
        while len(chosen) < total - repeats:
            thing = self.another(chosen, choices)
            if thing not in chosen:
                chosen.append(thing)
        return chosen + [chosen[0]] * repeats

    def another(self, chosen: Sequence[Thing], choices: Choices) -> Thing:
        """Return a shape, often one with the name or the color of a chosen one: they must be bound."""
        share = choices.random()
        if chosen and share < 0.35:
            # Equal in one of both alone: only together do name and color tell the two apart.
            like = choices.one_of(chosen)
            return choices.one_of(
                [x for x in self.shapes if (x.name == like.name) != (x.color == like.color)]
            )
        return choices.one_of(self.shapes)

    def place(self, things: Sequence[Thing], choices: Choices) -> Iterator[Placed]:
        """Yield up to four things, in quarters of the image: none covers another."""
        for thing, quarter in zip(things, choices.some_of(range(4), len(things)), strict=True):
            side = choices.one_of(_SIDES)
            row, column = divmod(quarter, 2)
            # A margin of one unit: things in neighboring quarters never touch.
            space = _QUARTER - side - 1
            left = _QUARTER * column + 1 + choices.below(space)
            top = _QUARTER * row + 1 + choices.below(space)
            yield Placed(thing, left, top, side, paint(thing.color, choices))

    def alike(self, thing: Thing, *, kind: str) -> Sequence[Thing]:
        """Return shapes of the color of a thing ("object"), or those of its name ("color")."""
        same = "color" if kind == "object" else "name"
        shapes = self.shapes + self.unseen
        return [shape for shape in shapes if getattr(shape, same) == getattr(thing, same)]

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
            edited = edit(scene, choices.some_of(alone, 2), choices) if len(alone) > 1 else None
            if edited is None:
                continue
            first, caption, second, other = edited
            if (first.truth(caption), second.truth(other)) != (True, True):
                continue
            # Clearly false: None would be open to two readings.
            if (first.truth(other), second.truth(caption)) == (False, False):
                return edited

    def sentence(self, pair: Sequence[Placed], choices: Choices) -> Sentence:
        """Return the relation of two objects, or a list of them with their places."""
        first, second = pair
        relation = first.relation_to(second)
        if relation is None or choices.random() < 0.5:
            return Sentence((phrase_of([first], placed=True), phrase_of([second], placed=True)))
        form = RELATED[0] % choices.one_of(WORDS[relation])
        return relate((phrase_of([first]), phrase_of([second])), relation, form)

    def swapped(self, scene: Scene, pair: Sequence[Placed], choices: Choices) -> Edited | None:
        """Exchange two objects or their colors."""
        is_of_colors = choices.below(2)
        sentence = self.sentence(pair, choices)
        one, two = pair
        first, second = sentence.phrases
        things = {one: two.thing, two: one.thing}
        phrases = (second, first)
        if is_of_colors:
            for placed, thing in things.items():
                things[placed] = placed.thing._replace(color=thing.color)
            phrases = (replace(first, color=second.color), replace(second, color=first.color))
        return scene, sentence, scene.replaced(things, choices), sentence._replace(phrases=phrases)

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
    first, second = pair
    relation = first.relation_to(second)
    if relation is None:
        return None
    opposite = OPPOSITE[relation]
    phrases = (phrase_of([first]), phrase_of([second]))
    # Both captions in the same words, but for the relation.
    form = choices.one_of(RELATED)
    word = choices.below(2)
    caption = relate(phrases, relation, form % WORDS[relation][word])
    other = relate(phrases, opposite, form % WORDS[opposite][word])
    changed = scene.replaced({first: second.thing, second: first.thing}, choices)
    return scene, caption, changed, other
