"""Kinds of drawings, and scenes with the kind of each pixel: a drawing's transparency is its exact mask."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vlmo.data.builtin import scenes
from vlmo.data.builtin.world import KINDS, SHAPE, UNITS, Choices, Placed, Pool, Scene, background
from vlmo.data.schema import SEGMENT_FEATURES, Built, class_features

PACKAGES, SOURCE_SET = scenes.PACKAGES, scenes.SOURCE_SET
LABELS = ("background", SHAPE, *KINDS)
"""Classes of the pixels of a scene; a class's number is its place here."""
NUM_SCENES = {"train": 5000, "validation": 500, "test": 500, "artist": 500}

_SIDES = (40, 88)


def build(drawn: dict[str, list[dict[str, Any]]], *, icons: Path | None = None) -> dict[str, Built]:
    """`scenes-masks`, and `scenes-kinds` with one drawing an image; arguments as in `scenes.build`."""
    pools = scenes.pools_of(drawn, icons=icons, only_shapes=False)

    def rows(row: Any) -> dict[str, list[dict[str, Any]]]:
        return {
            split: [row(split, number, pools[split]) for number in range(total)] for split, total in NUM_SCENES.items()
        }

    return {
        "scenes-masks": (SEGMENT_FEATURES, rows(mask_row)),
        "scenes-kinds": (class_features(list(KINDS)), rows(kind_row)),
    }


def mask_row(split: str, number: int, pool: Pool) -> dict[str, Any]:
    """Return a scene with its mask."""
    name = f"scenes-masks/{split}/{number}"
    scene = pool.scene(Choices(name))
    numbers = {kind: number for number, kind in enumerate(LABELS)}
    return scenes.scene_row(name, scene, mask=scene.mask(f"{name}-mask", numbers))


def kind_row(split: str, number: int, pool: Pool) -> dict[str, Any]:
    """Return one drawing at some place, with its kind; each kind is shown as often as any other."""
    name, kinds = f"scenes-kinds/{split}/{number}", list(KINDS)
    choices = Choices(name)
    label = number % len(kinds)
    side = _SIDES[0] + choices.below(_SIDES[1] - _SIDES[0] + 1)
    thing = choices.one_of([each for each in pool.drawings if each.kind == kinds[label]])
    shown = Placed(thing, choices.below(UNITS - side + 1), choices.below(UNITS - side + 1), side, "")
    return scenes.scene_row(name, Scene((shown,), background(choices)), label=label)
