"""Handwritten digits of 8 x 8 pixels, from scikit-learn (UCI's "Optical Recognition of Handwritten Digits")."""

from typing import Any

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

from vlmo.data.decoding import encode_image
from vlmo.data.schema import Built, class_features, make_row

PACKAGES = ("scikit-learn",)
SOURCE = "digits"
LICENCE = "CC-BY-4.0"

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
NUM_TEST = 450
"""Rows at the end of the package's order, kept for testing. Neighbours there are mostly by one hand, so that a random
split would show a model the writers that it is tested on."""

_BRIGHTEST = 16


def build() -> dict[str, Built]:
    """`digits`: images of one class each, white strokes on black."""
    found: Any = load_digits()
    rows = []
    for number, (image, label) in enumerate(zip(found.images, found.target, strict=True)):
        name = f"{SOURCE}/{number:04}"
        shades = np.rint(image * (255 / _BRIGHTEST)).astype(np.uint8)
        cell = encode_image(Image.fromarray(shades), f"{name}.png")
        rows.append(make_row(name, image=cell, source=SOURCE, licence=LICENCE, label=int(label)))
    return {"digits": (class_features(NAMES), {"train": rows[:-NUM_TEST], "test": rows[-NUM_TEST:]})}
