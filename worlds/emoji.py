"""Every named drawing of the two built-in styles of emoji but those of new concepts, which are kept for testing.

Of `NUM_NEW` concepts beside those that `emoji-pairs` tests, training shows no drawing in any style, no variant and
nothing that looks like one.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import NamedTuple

from vlmo.data.builtin import emoji
from vlmo.data.builtin.emoji import OPENMOJI, TWEMOJI, Concepts, Drawing, Names, first_names, rows_of, unlike
from vlmo.data.schema import FEATURES, Built

PACKAGES = emoji.PACKAGES
NUM_NEW = 150


class Emoji(NamedTuple):
    """The drawings of both styles by code points, with their names and concepts."""

    names: Names
    twemoji: dict[str, Drawing]
    openmoji: dict[str, Drawing]
    concepts: Concepts

    @property
    def test(self) -> list[Drawing]:
        """OpenMoji's drawings that are kept for testing."""
        return [self.openmoji[codes] for codes in self.concepts.distinct[: emoji.NUM_TEST]]

    @property
    def new(self) -> list[Drawing]:
        """Twemoji's drawings of the new concepts."""
        return [self.twemoji[codes] for codes in self.concepts.distinct[emoji.NUM_TEST : emoji.NUM_TEST + NUM_NEW]]

    def of_new(self, *styles: Mapping[str, Drawing]) -> list[Drawing]:
        """Return the drawings of the new concepts in all styles."""
        return [drawings[new.codes] for drawings in styles for new in self.new if new.codes in drawings]


def read_emoji() -> Emoji:
    """Return all that is installed."""
    names, twemoji, openmoji = emoji.english_names(), emoji.read_style(TWEMOJI), emoji.read_style(OPENMOJI)
    return Emoji(names, twemoji, openmoji, emoji.choose_concepts(names, twemoji=twemoji, openmoji=openmoji))


_installed = functools.lru_cache(maxsize=1)(read_emoji)  # both sets are often built one after the other


def drawings_pairs() -> Built:
    """Return the drawings without those of new concepts, and the drawings that `emoji-pairs` tests."""
    names, twemoji, openmoji, concepts = found = _installed()
    named = [*concepts.codes, *(codes for codes in names if codes not in set(concepts.codes))]
    new = found.of_new(twemoji, openmoji)
    train = []
    for drawings, usable in ((twemoji, unlike(twemoji, new)), (openmoji, unlike(openmoji, new) & concepts.trainable)):
        train += [drawings[codes] for codes in named if codes in usable]
    return FEATURES, {"train": rows_of(train, names=names), "test": rows_of(found.test, names=first_names(names))}


def drawings_concepts() -> Built:
    """Return the new concepts in Twemoji's style."""
    found = _installed()
    return FEATURES, {"test": rows_of(found.new, names=first_names(found.names))}


SETS = {"drawings-pairs": drawings_pairs, "drawings-concepts": drawings_concepts}
