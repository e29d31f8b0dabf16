"""Questions about plain pictures, and sentences about two of them, as rows and as prepared folders."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict
from PIL import Image

from vlmo.data.schema import QUESTION_FEATURES, REASONING_FEATURES
from vlmo.processing import VLMoProcessor

COLORS = {
    "red": (220, 40, 40),
    "green": (40, 180, 60),
    "blue": (40, 60, 220),
    "yellow": (230, 210, 40),
}
ANSWERS = [*COLORS, "yes", "no"]


def png(color: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (24, 20), COLORS[color]).save(buffer, "PNG")
    return buffer.getvalue()


def processor() -> VLMoProcessor:
    corpus = [f"what color is it? is it {color}? both pictures are {color}" for color in COLORS]
    return VLMoProcessor.train(
        corpus, vocab_size=90, min_frequency=1, image_size=64, max_text_length=16
    )


def question_row(number: int, *, known: bool = True, **changes: Any) -> dict[str, Any]:
    """Row `number`; every third is asked for the color by name and has ten annotators of whom two disagree."""
    color = list(COLORS)[number % 4]
    what = number % 3 == 0
    answer = color if what else "yes"
    row = {
        "image": {"bytes": png(color), "path": None},
        "captions": [],
        "image_id": f"picture-{number % 4}",
        "source": "made up",
        "licence": "CC0-1.0",
        "question": "what color is it?" if what else f"is it {color}?",
        "question_id": str(100 + number),
        "question_type": "what color" if what else "is it",
        "answer_type": "other" if what else "yes/no",
        "answers": [answer] * 8 + ["no"] * 2 if what else [answer],
        "answer_labels": [ANSWERS.index(text) for text in ((answer, "no") if what else (answer,))],
        "answer_scores": [1.0, 0.6] if what else [1.0],
    }
    unknown = {} if known else {"answers": [], "answer_labels": [], "answer_scores": []}
    return row | unknown | changes


def question_rows(count: int, *, known: bool = True) -> Dataset:
    rows = [question_row(number, known=known) for number in range(count)]
    return Dataset.from_list(rows, features=QUESTION_FEATURES)


def reasoning_row(number: int, *, known: bool = True, **changes: Any) -> dict[str, Any]:
    """Row `number`: the sentence is about the left color, and the right picture has it in every second row."""
    colors = list(COLORS)
    left = colors[number // 2 % 4]
    right = left if number % 2 == 0 else colors[(number // 2 + 1) % 4]
    row = {
        "image": {"bytes": png(left), "path": None},
        "captions": [f"both pictures are {left}"],
        "image_id": f"toy-{number // 2}-{number % 2}-0",
        "source": "made up",
        "licence": "CC0-1.0",
        "second_image": {"bytes": png(right), "path": None},
        "label": int(left == right) if known else -1,
        "sentence_group": f"toy-{number // 2}-0",
    }
    return row | changes


def reasoning_rows(count: int, *, known: bool = True) -> Dataset:
    rows = [reasoning_row(number, known=known) for number in range(count)]
    return Dataset.from_list(rows, features=REASONING_FEATURES)


def write_questions(folder: Path, *, count: int = 32) -> Path:
    """A prepared folder of questions; its split `test_dev` has no answers."""
    return write_prepared(folder, _splits(question_rows, count), labels=ANSWERS)


def write_sentences(folder: Path, *, count: int = 32) -> Path:
    """A prepared folder of sentences about two pictures; its split `test_dev` has no labels."""
    return write_prepared(folder, _splits(reasoning_rows, count), labels=None)


def _splits(rows: Callable[..., Dataset], count: int) -> dict[str, Dataset]:
    return {"train": rows(count), "test": rows(count // 2), "test_dev": rows(4, known=False)}


def write_prepared(folder: Path, splits: dict[str, Dataset], *, labels: list[str] | None) -> Path:
    DatasetDict(splits).save_to_disk(str(folder))
    (folder / "prepared.json").write_text(json.dumps({"name": folder.name, "labels": labels}))
    return folder
