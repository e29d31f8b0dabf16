"""Sentences that are true or false of two of easy-VQA's images, in the manner of NLVR2.

Four rows share a sentence: it is true of two pairs and false of two. Each false pair is a true one with another image
in one of its two places, so neither the sentence alone nor one image alone tells.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from vlmo.data.builtin.easy_vqa import COLORS, LICENCE, PACKAGES, SHAPES, SOURCE, Drawn, asked, facts, image_files
from vlmo.data.schema import REASONING_FEATURES, Built, hash_share, make_row

__all__ = ["CLAIMS", "PACKAGES", "Claim", "build", "pair_rows"]

NAME = "easy-vqa-pairs"
NUM_GROUPS = {"train": 6000, "test": 500}
"""Sentences of each split, with four rows each."""

Item = TypeVar("Item")


class Slots(NamedTuple):
    """The words that a sentence speaks of."""

    shape: str
    color: str
    other_shape: str
    other_color: str


class Claim(NamedTuple):
    """One meaning in several wordings, with the names of slots in braces."""

    forms: tuple[str, ...]
    holds: Callable[[Drawn, Drawn, Slots], bool | None]
    """True where it is true of the left and the right shape; None where people could read it either way."""


def _exactly_one(left: bool, right: bool) -> bool | None:  # noqa: FBT001 - two truths, no options
    return None if left and right else left or right


CLAIMS = (
    Claim(
        ("both pictures show a {shape}", "there is a {shape} in each picture"),
        lambda left, right, of: left.shape == right.shape == of.shape,
    ),
    Claim(
        ("both shapes are {color}", "each picture shows a {color} shape"),
        lambda left, right, of: left.color == right.color == of.color,
    ),
    Claim(
        ("one of the pictures shows something {color}", "there is a {color} shape in one picture"),
        lambda left, right, of: _exactly_one(left.color == of.color, right.color == of.color),
    ),
    Claim(
        ("one of the pictures shows a {shape}", "there is a {shape} in one of the pictures"),
        lambda left, right, of: _exactly_one(left.shape == of.shape, right.shape == of.shape),
    ),
    Claim(
        ("neither picture shows a {shape}", "there is no {shape} in the pictures"),
        lambda left, right, of: of.shape not in {left.shape, right.shape},
    ),
    Claim(
        ("no shape is {color}", "neither of the shapes is {color}"),
        lambda left, right, of: of.color not in {left.color, right.color},
    ),
    Claim(
        (
            "the left shape is a {shape} and the right one is {color}",
            "there is a {shape} on the left and something {color} on the right",
        ),
        lambda left, right, of: left.shape == of.shape and right.color == of.color,
    ),
    Claim(
        ("the right shape is a {shape} and the left one is {color}", "the {shape} is right of something {color}"),
        lambda left, right, of: right.shape == of.shape and left.color == of.color,
    ),
    Claim(
        ("one picture shows a {shape} and the other a {other_shape}", "there is a {shape} beside a {other_shape}"),
        lambda left, right, of: {left.shape, right.shape} == {of.shape, of.other_shape},
    ),
    Claim(
        ("a {color} shape is left of a {other_color} one", "the left shape is {color} and the right one {other_color}"),
        lambda left, right, of: (left.color, right.color) == (of.color, of.other_color),
    ),
    Claim(
        ("one of the pictures shows a {color} {shape}", "there is a {color} {shape} in one of the pictures"),
        lambda left, right, of: _exactly_one(left == Drawn(of.shape, of.color), right == Drawn(of.shape, of.color)),
    ),
    Claim(
        ("the two pictures show the same kind of shape", "the shapes are of one kind"),
        lambda left, right, _: left.shape == right.shape,
    ),
    Claim(
        ("the two shapes have different colors", "the color of the left shape is not that of the right one"),
        lambda left, right, _: left.color != right.color,
    ),
)


def build() -> dict[str, Built]:
    """`easy-vqa-pairs`; test pairs are made of the package's test images alone."""
    splits = {
        split: pair_rows(split, shown=facts(asked(split)), files=image_files(split), num_groups=num_groups)
        for split, num_groups in NUM_GROUPS.items()
    }
    return {NAME: (REASONING_FEATURES, splits)}


def pair_rows(
    split: str, *, shown: Mapping[int, Drawn], files: Mapping[int, bytes], num_groups: int
) -> list[dict[str, Any]]:
    """Rows of `num_groups` sentences, a pure function of the arguments.

    Args:
        shown: Shape and colour of each image, by number.
        files: The images' files.
    """
    rows = []
    for group in range(num_groups):
        claim = CLAIMS[group % len(CLAIMS)]
        choices = _Choices(f"{NAME}/{split}/{group}")
        shape, color = choices.one_of(SHAPES), choices.one_of(COLORS)
        other_shape = choices.one_of([other for other in SHAPES if other != shape])
        slots = Slots(shape, color, other_shape, choices.one_of([other for other in COLORS if other != color]))
        sentence = choices.one_of(claim.forms).format_map(slots._asdict())
        pairs = [pair for _ in range(2) for pair in _true_and_false(claim, slots, shown=shown, choices=choices)]
        for number, pair in enumerate(pairs):
            left, right = ({"bytes": files[image], "path": f"{image}.png"} for image in pair)
            row = make_row(
                f"{NAME}/{split}/{group}-{number}", image=left, captions=[sentence], source=SOURCE, licence=LICENCE
            )
            told = {"second_image": right, "label": 1 - number % 2, "sentence_group": f"{NAME}/{split}/{group}"}
            rows.append(row | told)
    return rows


def _true_and_false(
    claim: Claim, slots: Slots, *, shown: Mapping[int, Drawn], choices: _Choices
) -> tuple[tuple[int, int], tuple[int, int]]:
    """A pair of images that the claim is true of, and one that it is false of and that shares an image with it."""
    numbers = list(shown)

    def holds(left: int, right: int) -> bool | None:
        return None if left == right else claim.holds(shown[left], shown[right], slots)

    while True:
        left, right = choices.one_of(numbers), choices.one_of(numbers)
        if not holds(left, right):
            continue
        # Not of every true pair one change makes a false one; then the next true pair is tried.
        for _ in range(100):
            other = choices.one_of(numbers)
            false = choices.one_of([(other, right), (left, other)])
            if holds(*false) is False:
                return (left, right), false


class _Choices:
    """Choices by a hash, the same on every machine."""

    def __init__(self, key: str) -> None:
        self._key, self._count = key, 0

    def one_of(self, items: Sequence[Item]) -> Item:
        self._count += 1
        return items[int(hash_share(f"{self._key}/{self._count}") * len(items))]
