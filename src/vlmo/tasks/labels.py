"""Answers and classes by number, of data and of models; logits of pairs."""

from __future__ import annotations

from collections.abc import Container, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vlmo.data.examples import Contents, Example, Examples
from vlmo.data.rows import SUMMARY_FILE, column
from vlmo.processing import EvalTransform
from vlmo.processing.transforms import by_shape
from vlmo.tasks.result import Json, Prediction

if TYPE_CHECKING:
    from datasets import Dataset

    from vlmo.model import (
        VLMoForVisualQuestionAnswering,
        VLMoForVisualReasoning,
        VLMoPreTrainedModel,
    )
    from vlmo.processing import VLMoProcessor


def names_of_source(source: str) -> list[str]:
    """Return the answers or classes of a source by number; ValueError if it has none."""
    from vlmo.data import builtin
    from vlmo.data.own import own_labels
    from vlmo.data.prepare import labels_of

    if source in builtin.SETS:
        return builtin.labels(source)
    # Prepared sets list them in their summary, own data in a file or a column.
    path = Path(source).expanduser()
    return labels_of(path) if (path / SUMMARY_FILE).is_file() else own_labels(path)


def names_of_model(model: VLMoPreTrainedModel) -> list[str]:
    """Return the answers or classes of a model by number."""
    names = cast("dict[int, str]", model.config.id2label)
    return [names[number] for number in sorted(names)]


def are_numbers(names: Sequence[str]) -> bool:
    """Return True for classes that are only numbered, as imported files have them."""
    # The names that transformers gives to classes without one.
    return list(names) == [f"LABEL_{number}" for number in range(len(names))]


def label_settings(names: Sequence[str]) -> Json:
    """Return the settings of a model configuration that name its classes; none without names."""
    id2label = dict(enumerate(names))
    label2id = {name: number for number, name in id2label.items()}
    return {"id2label": id2label, "label2id": label2id} if names else {}


def check_names(
    owner_names: Sequence[str], names: Sequence[str], *, owner: str, source: str
) -> None:
    """Raise ValueError unless `owner`, a model or other data, has the classes of `source`."""
    if list(owner_names) != list(names):
        raise ValueError(
            f"{owner} has {len(owner_names)} classes ({_first(owner_names)}), {source} has "
            f"{len(names)} ({_first(names)}); they must be the same, in the same order"
        )


def _first(names: Sequence[str]) -> str:
    return ", ".join([*names[:5], "..."] if len(names) > 5 else names)


def check_task(rows: Dataset, features: str, *, task: str) -> None:
    """Raise ValueError if rows lack a column of `features`, a name in `vlmo.data.schema`."""
    # It imports `datasets`, which takes a second and belongs to an extra.
    from vlmo.data import schema

    missing = [name for name in vars(schema)[features] if name not in rows.column_names]
    if missing:
        raise ValueError(
            f"these rows are no {task}: they lack {', '.join(missing)} (there are "
            f"{', '.join(rows.column_names)}). Give own data of that form (docs/data.md), a set of "
            "vlmo data prepare, or another task"
        )


def checked_labels(
    rows: Dataset, allowed: Container[int], *, expected: str
) -> Int[Tensor, " rows"]:
    """Return the column `label` of all rows; ValueError for a number that is not allowed."""
    labels = column(rows, "label")
    for row, label in enumerate(labels):
        # Sets without a label for a row hold None or -1.
        if label not in allowed:
            name = column(rows, "image_id")[row]
            raise ValueError(
                f"sample {row} (image_id {name!r}) has label {label}; expected {expected}"
            )
    return torch.tensor(labels)


def best_labels(
    model: VLMoPreTrainedModel, shares: Float[Tensor, "classes"], *, top: int, kind: str
) -> list[Prediction]:
    """Return the `top` likeliest answers or classes of a model, named `kind`, with their shares."""
    best = shares.topk(min(top, len(shares)))
    names = names_of_model(model)
    pairs = zip(best.values.tolist(), best.indices.tolist(), strict=True)
    return [{kind: names[number], "confidence": round(share, 4)} for share, number in pairs]


def eval_contents(processor: VLMoProcessor) -> Contents:
    """Return the contents of an example in evaluation."""
    return Contents(seed=0, transform=EvalTransform.of(processor), tokenizer=processor.tokenizer)


def pair_logits(
    model: VLMoForVisualQuestionAnswering | VLMoForVisualReasoning, examples: Examples
) -> Float[Tensor, "rows classes"]:
    """Return a fusion encoder's logits of all examples, float32 on the CPU; ValueError for NaN.

    A batch holds all images of one shape.
    """

    def logits_of_shape(part: list[Example]) -> Tensor:
        batch = examples.collate(part)
        return model(
            pixel_values=batch["pixel_values"].to(model.device),
            input_ids=batch["input_ids"].to(model.device),
            attention_mask=batch["attention_mask"].to(model.device),
        ).logits

    rows = [examples[0, row] for row in range(len(examples))]
    logits = by_shape(rows, logits_of_shape, shape=lambda example: example["pixel_values"].shape)
    logits = torch.stack(logits).float().cpu()
    if logits.isnan().any():
        raise ValueError("the logits contain NaN; check the weights of the model")
    return logits
