"""Small sets for classification and segmentation, in the form that `vlmo data prepare` leaves."""

import io
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from PIL import Image
from tests.toy_questions import write_prepared

from vlmo.data.schema import SEGMENT_FEATURES, class_features

COLORS = {"red": (220, 40, 40), "green": (40, 180, 60), "blue": (40, 60, 220)}
NAMES = list(COLORS)
PIXELS = ["background", *NAMES]
IGNORED = 255
SIDE = 64
COUNTS = {"train": 24, "test": 8}


def png(pixels: np.ndarray) -> dict:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG")
    return {"bytes": file.getvalue(), "path": None}


def row(split: str, number: int, pixels: np.ndarray, **more: Any) -> dict:
    given = {"image": png(pixels), "captions": [], "image_id": f"{split}/{number}"}
    return given | {"source": "toy", "licence": "CC0-1.0"} | more


def class_rows(split: str, count: int) -> list[dict]:
    """Pictures of one color each, with a little noise."""
    noise, rows = np.random.default_rng(len(split)), []
    for number in range(count):
        color = COLORS[NAMES[number % len(NAMES)]]
        pixels = np.clip(color + noise.integers(-20, 21, (SIDE, SIDE, 3)), 0, 255).astype(np.uint8)
        rows.append(row(split, number, pixels, label=number % len(NAMES)))
    return rows


def segment_rows(split: str, count: int) -> list[dict]:
    """Grey pictures with a square of one color; the first row of pixels is ignored."""
    draws, rows = np.random.default_rng(len(split)), []
    for number in range(count):
        name = NAMES[number % len(NAMES)]
        pixels = np.full((SIDE, SIDE + 16, 3), 128, dtype=np.uint8)
        mask = np.zeros((SIDE, SIDE + 16), dtype=np.uint8)
        top, left = draws.integers(0, 32, size=2)
        pixels[top : top + 32, left : left + 32] = COLORS[name]
        mask[top : top + 32, left : left + 32] = PIXELS.index(name)
        mask[0] = IGNORED
        rows.append(row(split, number, pixels, mask=png(mask)))
    return rows


def write_class_set(folder: Path, *, names: list[str] = NAMES) -> Path:
    features = class_features(names)
    parts = {
        split: Dataset.from_list(class_rows(split, count), features=features)
        for split, count in COUNTS.items()
    }
    return write_prepared(folder, parts, labels=names)


def write_segment_set(folder: Path) -> Path:
    rows = {split: segment_rows(split, count) for split, count in COUNTS.items()}
    parts = {
        split: Dataset.from_list(part, features=SEGMENT_FEATURES) for split, part in rows.items()
    }
    return write_prepared(folder, parts, labels=PIXELS)
