"""Drawings with their names, and drawn shapes with theirs, in one set: pairs for ablations of stage 3.

Shapes are learnt in minutes, colours first. What stage 3 learns of them shows in questions about other shapes.
"""

from typing import Any

from vlmo.data.builtin import easy_vqa, emoji
from vlmo.data.schema import FEATURES, Built, hash_share, make_row

PACKAGES = (*emoji.PACKAGES, *easy_vqa.PACKAGES)
SOURCE_SET = "emoji-pairs"
NAME = "drawings-and-shapes"
NUM_SHAPES = 1500
"""Images of shapes, chosen by a hash among easy-VQA's training images."""


def build(drawings: dict[str, list[dict[str, Any]]]) -> dict[str, Built]:
    """The training rows of `emoji-pairs` and captioned shapes; the test rows are those of `emoji-pairs`."""
    shown, files = easy_vqa.facts(easy_vqa.asked("train")), easy_vqa.image_files("train")
    shapes = [
        make_row(
            f"{easy_vqa.SOURCE}/train/{number}",
            image={"bytes": files[number], "path": f"{number}.png"},
            captions=[f"{shown[number].color} {shown[number].shape}"],
            source=easy_vqa.SOURCE,
            licence=easy_vqa.LICENCE,
        )
        for number in sorted(shown, key=lambda number: hash_share(f"{NAME}/{number}"))[:NUM_SHAPES]
    ]
    return {NAME: (FEATURES, {**drawings, "train": [*drawings["train"], *shapes]})}
