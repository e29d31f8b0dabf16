"""Answers and classes by number: of data, of models, and whether they are the same; logits of pairs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from vlmo.data.examples import Contents, Example, Examples
from vlmo.data.rows import SUMMARY_FILE
from vlmo.processing import EvalTransform
from vlmo.processing.transforms import by_shape
from vlmo.tasks.result import Prediction
from vlmo.types import normalize_pixels

if TYPE_CHECKING:
    from datasets import Dataset

    from vlmo.processing import VLMoProcessor


def names_of_source(source: str) -> list[str]:
    """Return the answers or classes of a source in the order of their numbers; ValueError if it has none."""
    from vlmo.data import builtin
    from vlmo.data.own import own_labels
    from vlmo.data.prepare import labels_of

    if source in builtin.SETS:
        return builtin.labels(source)
    path = Path(source).expanduser()
    return labels_of(path) if (path / SUMMARY_FILE).is_file() else own_labels(path)


def names_of_model(model: Any) -> list[str]:
    """Return the answers or classes of a model, in the order of their numbers."""
    names: dict[int, str] = model.config.id2label
    return [names[number] for number in range(len(names))]


def are_numbers(names: Sequence[str]) -> bool:
    """Return True for classes that are only numbered, as in imported files that do not name them."""
    return list(names) == [f"LABEL_{number}" for number in range(len(names))]


def label_settings(names: Sequence[str]) -> dict[str, Any]:
    """Return the settings of a model configuration that name its answers or classes."""
    return {
        "id2label": dict(enumerate(names)),
        "label2id": {name: number for number, name in enumerate(names)},
    }


def check_names(own: Sequence[str], names: Sequence[str], *, owner: str, source: str) -> None:
    """Raise ValueError unless the classes of `owner` (a model, or other data) are those of the data `source`."""
    if list(own) != list(names):
        first, second = (
            f"{', '.join(each[:5])}{', ...' if len(each) > 5 else ''}" for each in (own, names)
        )
        raise ValueError(
            f"{owner} has {len(own)} classes ({first}), {source} has {len(names)} ({second}); they must be the same, "
            "in the same order"
        )


def check_task(dataset: Dataset, features: str | Iterable[str], *, task: str) -> None:
    """Raise ValueError if rows lack a column of the task's `features`, or of those by this name in the schema."""
    from vlmo.data import schema

    features = vars(schema)[features] if isinstance(features, str) else features
    missing = [name for name in features if name not in dataset.column_names]
    if missing:
        raise ValueError(
            f"these rows are no {task}: they lack {', '.join(missing)} (there are {', '.join(dataset.column_names)}). "
            "Give own data of that form (docs/data.md), a set of vlmo data prepare, or another task"
        )


def best_labels(
    model: Any, shares: Float[Tensor, "classes"], *, top: int, kind: str
) -> list[Prediction]:
    """Return the `top` likeliest answers or classes of a model, under the name `kind`, each with its share."""
    best = shares.topk(min(top, len(shares)))
    pairs = zip(best.values.tolist(), best.indices.tolist(), strict=True)
    return [
        {kind: model.config.id2label[number], "confidence": round(share, 4)}
        for share, number in pairs
    ]


def eval_contents(processor: VLMoProcessor | None) -> Contents:
    """Return the contents of an example in evaluation."""
    assert processor is not None  # every set of a task that reads text is given one
    return Contents(seed=0, transform=EvalTransform.of(processor), tokenizer=processor.tokenizer)


def pair_logits(model: Any, examples: Examples) -> Float[Tensor, "rows classes"]:
    """Return a fusion encoder's logits of all examples, a batch a shape, float32 on the CPU; ValueError for NaN."""

    def of_one_shape(part: list[Example]) -> Tensor:
        batch = examples.collate(part)
        return model(
            pixel_values=normalize_pixels(batch["pixel_values"]).to(model.device),
            input_ids=batch["input_ids"].to(model.device),
            attention_mask=batch["attention_mask"].to(model.device),
        ).logits

    rows = [examples[0, row] for row in range(len(examples))]
    logits = (
        torch.stack(by_shape(rows, of_one_shape, shape=lambda row: row["pixel_values"].shape))
        .float()
        .cpu()
    )
    if logits.isnan().any():
        raise ValueError("the logits contain NaN; check the weights of the model")
    return logits
