"""A small world for experiments/findings.py: two colored shapes, each in a quarter of the image, and true captions."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict, Features

from vlmo.data.builtin.scenes import Choices, Placed, Scene, Thing, background, paint
from vlmo.data.schema import COMPOSITION_FEATURES, FEATURES, make_row

SHAPES = ("circle", "square", "triangle", "star", "ring", "cross")
COLORS = ("red", "yellow", "green", "blue", "pink", "black")
PIXELS = 48
PLACE_WORDS = ("left", "right", "top", "bottom")
KINDS = ("color", "shape", "swap", "place")
"""Changes of a caption: one color or one shape replaced, two colors swapped, two objects in each other's place."""
SIZES = {
    "train": 40_000,
    "few": 1000,
    "fewest": 200,
    "unpaired": 20_000,
    "validation": 2000,
    "test": 2000,
}
"""Scenes of each part; those of `few` are the first of `train`, those of `unpaired` are others."""
BINDING = 250
"""Pairs of scenes of each kind in a split of `binding`."""

SMALLEST = 128
"""Fewest scenes of a part."""

_ALONE = 0.2  # of training scenes: one object, from which places are learnt first
_QUARTER, _SIDES = 48, (32, 36, 40, 44)


def make_scene(choices: Choices, *, alone: float = 0.0) -> Scene:
    """Return a scene of two objects of different shapes and colors; in a share `alone` of the cases of one."""
    number = 1 if choices.random() < alone else 2
    colors, shapes, quarters = (
        choices.some_of(each, number) for each in (COLORS, SHAPES, range(4))
    )
    objects = []
    for color, shape, quarter in zip(colors, shapes, quarters, strict=True):
        side = choices.one_of(_SIDES)
        left, top = (
            _QUARTER * half + 1 + choices.below(_QUARTER - side - 1)
            for half in (quarter % 2, quarter // 2)
        )
        objects.append(Placed(Thing(shape, color, shape), left, top, side, paint(color, choices)))
    return Scene(tuple(objects), background(choices))


def caption_of(scene: Scene) -> str:
    """Return "blue circle bottom right and red star top left", in the order of the colors' names.

    Scenes that look alike thus have one caption, and pairs that are true are never taken for negatives.
    """
    objects = sorted(scene.objects, key=lambda each: str(each.thing.color))
    return " and ".join(
        f"{each.thing.color} {each.thing.name} {each.where.removeprefix('at the ')}"
        for each in objects
    )


def changed(scene: Scene, choices: Choices, *, kind: str) -> Scene:
    """Return the scene with the least change of a kind."""
    first, second = scene.objects
    one, two = first.thing, second.thing
    if kind == "place":
        return scene.replaced({first: two, second: one}, choices)
    if kind == "swap":
        new = {first: one._replace(color=two.color), second: two._replace(color=one.color)}
        return scene.replaced(new, choices)
    if kind == "color":
        color = choices.one_of([each for each in COLORS if each not in (one.color, two.color)])
        return scene.replaced({first: one._replace(color=color)}, choices)
    shape = choices.one_of([each for each in SHAPES if each not in (one.name, two.name)])
    return scene.replaced({first: one._replace(name=shape, image=shape)}, choices)


def _row(name: str, scene: Scene, caption: str, **columns: Any) -> dict[str, Any]:
    image = scene.cell(name, PIXELS)
    return make_row(
        name, image=image, captions=[caption], source="shapes", licence="CC0-1.0", **columns
    )


def _pairs(part: str, number: int) -> list[dict[str, Any]]:
    """Return training scenes."""
    keys = [f"shapes/{part}/{index}" for index in range(number)]
    scenes = [make_scene(Choices(key), alone=_ALONE) for key in keys]
    return [_row(key, scene, caption_of(scene)) for key, scene in zip(keys, scenes, strict=True)]


def _gallery(part: str, number: int) -> list[dict[str, Any]]:
    """Return scenes with captions that are true of no other scene."""
    found: dict[str, dict[str, Any]] = {}
    keys = (f"shapes/{part}/{index}" for index in itertools.count())
    while len(found) < number:
        scene = make_scene(Choices(key := next(keys)))
        found.setdefault(caption_of(scene), _row(key, scene, caption_of(scene)))
    return list(found.values())


def _binding(part: str, number: int) -> Iterator[dict[str, Any]]:
    """Yield two scenes a change, with the same two captions; each is true of one of them."""
    for kind, index in itertools.product(KINDS, range(number)):
        key = f"shapes/binding/{part}/{kind}/{index}"
        choices = Choices(key)
        scene = make_scene(choices)
        other = changed(scene, choices, kind=kind)
        yield _row(f"{key}a", scene, caption_of(scene), false_caption=caption_of(other), kind=kind)
        yield _row(f"{key}b", other, caption_of(other), false_caption=caption_of(scene), kind=kind)


def write(folder: Path, *, scale: float = 1.0) -> None:
    """Write `pairs`, `few`, `fewest`, `images`, `texts` and `binding` into a folder, with a share of their rows."""
    size = {part: max(SMALLEST, round(number * scale)) for part, number in SIZES.items()}
    train, unpaired = _pairs("train", size["train"]), _pairs("unpaired", 2 * size["unpaired"])
    images, texts = unpaired[: size["unpaired"]], unpaired[size["unpaired"] :]
    galleries = {part: _gallery(part, size[part]) for part in ("validation", "test")}
    binding = {
        part: list(_binding(part, max(8, round(BINDING * scale))))
        for part in ("train", "validation", "test")
    }
    sets: dict[str, tuple[Features, dict[str, list[dict[str, Any]]]]] = {
        "pairs": (FEATURES, {"train": train} | galleries),
        "few": (FEATURES, {"train": train[: size["few"]]}),
        "fewest": (FEATURES, {"train": train[: size["fewest"]]}),
        "images": (FEATURES, {"train": [row | {"captions": []} for row in images]}),
        "texts": (FEATURES, {"train": [row | {"image": None} for row in texts]}),
        "binding": (COMPOSITION_FEATURES, binding),
    }
    for name, (columns, splits) in sets.items():
        saved = {split: Dataset.from_list(rows, features=columns) for split, rows in splits.items()}
        DatasetDict(saved).save_to_disk(str(folder / name))
