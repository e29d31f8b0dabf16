"""Handwritten digits of 8 x 8 pixels, from scikit-learn (UCI's "Optical Recognition of Handwritten Digits")."""

import io
from collections.abc import Iterator
from typing import Any

import numpy as np
from datasets import Dataset, DatasetDict
from PIL import Image
from sklearn.datasets import load_digits

from vlmo.data.schema import class_features

PACKAGES = ("scikit-learn",)
SOURCE = "digits"
LICENCE = "CC-BY-4.0"

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
NUM_TEST = 450
"""Rows at the end of the package's order, kept for testing. Neighbours there are mostly by one hand, so that a random
split would show a model the writers that it is tested on."""

_BRIGHTEST = 16


def build() -> dict[str, DatasetDict]:
    """`digits`: images of one class each, white strokes on black."""
    found: Any = load_digits()
    rows = list(_rows(found.images, found.target))
    features = class_features(NAMES)
    train, test = (Dataset.from_list(part, features=features) for part in (rows[:-NUM_TEST], rows[-NUM_TEST:]))
    return {"digits": DatasetDict({"train": train, "test": test})}


def _rows(images: np.ndarray, classes: np.ndarray) -> Iterator[dict[str, Any]]:
    for number, (image, label) in enumerate(zip(images, classes, strict=True)):
        name, file = f"{SOURCE}/{number:04}", io.BytesIO()
        Image.fromarray(np.rint(image * (255 / _BRIGHTEST)).astype(np.uint8)).save(file, format="PNG")
        yield {
            "image": {"bytes": file.getvalue(), "path": f"{name}.png"},
            "captions": [],
            "image_id": name,
            "source": SOURCE,
            "licence": LICENCE,
            "label": int(label),
        }
