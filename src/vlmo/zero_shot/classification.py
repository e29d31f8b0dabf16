"""Zero-shot classification: the classes of images are the texts of their names in templates."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32
from rich.console import Console
from torch import Tensor

from vlmo.data.decoding import ImageCell, decode_image
from vlmo.data.rows import column, select_rows
from vlmo.evaluation.metrics import Metric, mean_per_class_recall
from vlmo.progress import Progress
from vlmo.released import notes_folder
from vlmo.retrieval import Encoder
from vlmo.tasks.classification import ClassSet, class_names, class_numbers
from vlmo.tasks.result import TaskResult

DEFAULT_TEMPLATES = ("a photo of a {}.",)


@dataclass(frozen=True)
class ZeroShotSet(ClassSet):
    """Images of a split with their classes, and texts for the classes.

    Attributes:
        texts: Names of the classes by number, as they stand in the templates.
    """

    texts: Sequence[str] = ()

    task = "zero-shot"
    hub_task = "zero-shot-image-classification"
    batch_size = 64
    # Nobody trains on these rows.
    test_share = 1.0

    @property
    def names(self) -> list[str]:
        """Names of the classes by number."""
        return list(self.texts)

    def logits(
        self, encoder: Encoder, templates: Sequence[str], *, console: Console | None = None
    ) -> Float[Tensor, "rows classes"]:
        """Return the cosine similarities of all rows to the classes, times 1 / temperature."""
        classifier = build_classifier(encoder, self.texts, templates)
        parts = []
        with Progress(console) as progress:
            for rows in self.batches():
                cells = column(select_rows(self.rows, rows), "image")
                parts.append(embed_cells(encoder, cells) @ classifier)
                progress.update("images", rows.stop, len(self.rows))
        return torch.from_numpy(np.concatenate(parts) * encoder.inverse_temperature)

    def batches(self) -> Iterator[range]:
        """Yield ranges of rows, as many at a time as go through the model."""
        rows = range(len(self.rows))
        for start in rows[:: self.batch_size]:
            yield rows[start : start + self.batch_size]

    def metrics(self, outputs: Float[Tensor, "rows classes"]) -> list[Metric]:
        """Return top-1 and top-5 accuracy, and the mean of the classes' recalls."""
        recall = mean_per_class_recall(outputs, class_numbers(self.rows))
        return [*super().metrics(outputs), recall]


def embed_cells(encoder: Encoder, cells: Sequence[ImageCell]) -> Float32[np.ndarray, "image dim"]:
    """Return L2-normalized vectors of encoded images; threads decode them."""
    pixels = encoder.pool.map(lambda cell: encoder.pixels(decode_image(cell)), cells)
    return encoder.embed_pixels(list(pixels))


def build_classifier(
    encoder: Encoder, names: Sequence[str], templates: Sequence[str]
) -> Float32[np.ndarray, "dim classes"]:
    """Return a vector for each class: the mean over templates of normalized vectors, normalized.

    The ensemble of "Learning Transferable Visual Models From Natural Language Supervision".

    Args:
        templates: Texts with `{}` where the name of the class goes.
    """
    texts = [template.replace("{}", name) for name in names for template in templates]
    vectors = encoder.embed_texts(texts).reshape(len(names), len(templates), encoder.dim)
    means = vectors.mean(axis=1)
    return (means / np.linalg.norm(means, axis=1, keepdims=True)).T


def evaluate_zero_shot(
    encoder: Encoder,
    source: str,
    *,
    split: str = "test",
    classes: Sequence[str] | None = None,
    templates: Sequence[str] = DEFAULT_TEMPLATES,
    limit: int | None = None,
    console: Console | None = None,
) -> TaskResult:
    """Return top-1, top-5 and mean per class of a dual encoder on images with classes.

    Args:
        source: Images with classes; without splits of their own, all rows are `test`.
        classes: Names by number; by default those of the data, with blanks for underscores.
        templates: Texts with one `{}` for the name.

    Raises:
        ValueError: The rows have no classes, or the names or templates do not fit.
    """
    for template in templates:
        if template.count("{}") != 1:
            raise ValueError(
                f"template {template!r}: expected {{}} once, where the name of the class goes"
            )
    notes = notes_folder(encoder.folder)
    rows = ZeroShotSet.read(source=source, split=split, notes=notes, limit=limit)
    names = class_names(rows.rows)
    if classes is None:
        classes = [name.replace("_", " ") for name in names]
    if len(classes) != len(names):
        raise ValueError(
            f"given are {len(classes)} class names; {source} has {len(names)} classes: give a name "
            "for each, in the order of the data's classes"
        )
    settings: dict[str, Any] = {"templates": list(templates)}
    rows = replace(rows, texts=classes, settings=settings)
    return rows.result(rows.logits(encoder, templates, console=console))


def read_lines(file: Path) -> list[str]:
    """Return the lines of a text file that are not empty; ValueError if there are none."""
    lines = file.read_text(encoding="utf-8-sig").splitlines()
    filled = [line.strip() for line in lines if line.strip()]
    if not filled:
        raise ValueError(f"{file} is empty; expected a text on each line")
    return filled
