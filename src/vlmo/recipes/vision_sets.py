"""Pictures with a class, and pictures with the class of each pixel: what a model says of them, and how good that is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from datasets import Dataset
from jaxtyping import Float, Int
from torch import Tensor, nn

from vlmo.data.label_examples import SegmentRows, checked_labels, class_names, segment_names
from vlmo.data.schema import column, select_rows
from vlmo.data.sources import decode_image, open_source
from vlmo.data.validation import filter_invalid_rows
from vlmo.evaluation.classification import chance_accuracy, predict_classes, topk_accuracy
from vlmo.evaluation.inference import Advance
from vlmo.evaluation.segmentation import Inference, SegmentationMeter, scores_of, segment
from vlmo.folder import Measurement
from vlmo.model import VLMoForImageClassification, VLMoForSemanticSegmentation
from vlmo.model.backbone import VLMoPreTrainedModel
from vlmo.processing import TransformConfig, eval_transform
from vlmo.processing.segmentation import eval_pixel_values
from vlmo.recipes.task_result import Prediction, TaskResult, task_measurements

CLASSIFICATION, SEGMENTATION = "classification", "segmentation"
BATCH_SIZE = 128
WINDOWS = 16
_TOP = 5
_SHOWN_NAMES = 5
_CLASS_MEANINGS = {
    "top1": "share of pictures whose class is the model's first guess",
    "top5": "share of pictures whose class is among the model's first five guesses",
}
_SEGMENT_MEANINGS = {
    "miou": "intersection of predicted and true pixels over their union, mean over classes",
    "aacc": "share of pixels whose class is right",
    "macc": "share of a class's pixels that are right, mean over classes",
}
_IOU = "iou"


@dataclass(frozen=True)
class ClassSet:
    """Pictures of a split with their classes."""

    rows: Dataset
    source: str
    split: str

    @property
    def names(self) -> list[str]:
        """Every class of the set."""
        return class_names(self.rows)

    @property
    def labels(self) -> Int[Tensor, " rows"]:
        """Class number of each row."""
        return torch.tensor(checked_labels(self.rows))

    def pixels(self, *, image_size: int, batch_size: int = BATCH_SIZE) -> Iterator[Float[Tensor, "batch 3 size size"]]:
        """Pictures as the model's processor makes them, in the rows' order."""
        transform = eval_transform(TransformConfig(image_size=image_size))
        for start in range(0, len(self.rows), batch_size):
            cells: Any = self.rows[start : start + batch_size]
            yield torch.stack([transform(decode_image(cell)) for cell in cells["image"]])

    def check_classes(self, model: VLMoPreTrainedModel) -> None:
        """Raises ValueError where the model has other classes than the set."""
        check_classes(model, self.names, source=self.source)

    def predict(
        self,
        model: VLMoForImageClassification,
        *,
        batch_size: int = BATCH_SIZE,
        advance: Advance | None = None,
    ) -> Float[Tensor, "rows classes"]:
        """The classifier's logits of each row."""
        pixels = self.pixels(image_size=model.config.image_size, batch_size=batch_size)
        return predict_classes(model, pixels, advance=advance)

    def score(self, logits: Float[Tensor, "rows classes"], *, settings: Mapping[str, Any] | None = None) -> TaskResult:
        """Figures of such logits, whoever made them."""
        return TaskResult(
            task=CLASSIFICATION,
            source=self.source,
            split=self.split,
            metrics=topk_accuracy(logits, self.labels),
            chance=chance_accuracy(len(self.names)),
            meanings=_CLASS_MEANINGS,
            predictions=self._predictions(logits),
            settings=dict(settings or {}),
        )

    def _predictions(self, logits: Float[Tensor, "rows classes"]) -> list[Prediction]:
        names = self.names
        return [
            {"image_id": image_id, **best_classes(row, names), "label": names[label]}
            for image_id, row, label in zip(column(self.rows, "image_id"), logits, self.labels.tolist(), strict=True)
        ]


@dataclass(frozen=True)
class SegmentSet:
    """Pictures of a split with the class of each pixel."""

    rows: Dataset
    source: str
    split: str

    @property
    def names(self) -> list[str]:
        """Every class of the set."""
        return segment_names(self.source)

    def predict(
        self,
        model: VLMoForSemanticSegmentation,
        *,
        inference: Inference = "slide",
        stride: int | None = None,
        short_side: int | None = None,
        batch_size: int = WINDOWS,
        advance: Advance | None = None,
    ) -> list[Prediction]:
        """For each picture its numbers of pixels by true and predicted class: all that the figures are made of."""
        names = self.names
        check_classes(model, names, source=self.source)
        pictures = SegmentRows(self.rows, num_classes=len(names))
        predictions: list[Prediction] = []
        for row, name in enumerate(pictures.names):
            picture, mask = pictures[row]
            pixels = eval_pixel_values(
                picture,
                short_side=short_side or model.config.image_size,
                multiple=model.config.patch_size if inference == "whole" else 1,
            )
            size = (mask.shape[0], mask.shape[1])
            logits = segment(model, pixels, inference=inference, stride=stride, size=size, batch_size=batch_size)
            meter = SegmentationMeter(len(names))
            meter.add(logits.argmax(dim=0), torch.from_numpy(mask))
            counts = meter.counts()
            cells = [[true, predicted, int(counts[true, predicted])] for true, predicted in counts.nonzero().tolist()]
            predictions.append({"image_id": name, "pixels": cells})
            if advance is not None:
                advance(len(predictions))
        return predictions

    def score(self, predictions: Sequence[Prediction], *, settings: Mapping[str, Any] | None = None) -> TaskResult:
        """Figures of such predictions; `iou[NAME]` for each class that occurs or was predicted.

        Raises:
            ValueError: No pixel counts.
        """
        names = self.names
        counts = torch.zeros(len(names), len(names), dtype=torch.int64)
        for row in predictions:
            for true, predicted, pixels in row["pixels"]:
                counts[true, predicted] += pixels
        scores = scores_of(counts)
        # Chance is what calling every pixel by the most frequent class gets.
        constant = torch.zeros_like(counts)
        constant[:, counts.sum(dim=1).argmax()] = counts.sum(dim=1)
        by_class = {
            f"{_IOU}[{name}]": value for name, value in zip(names, scores.iou, strict=True) if value is not None
        }
        return TaskResult(
            task=SEGMENTATION,
            source=self.source,
            split=self.split,
            metrics=scores.metrics | by_class,
            chance=scores_of(constant).metrics,
            meanings=_SEGMENT_MEANINGS,
            predictions=list(predictions),
            settings=dict(settings or {}),
        )


def read_classes(source: str, *, split: str, quarantine: Path, limit: int | None = None) -> ClassSet:
    """Pictures with classes that can be used; the others are named in `quarantine`.

    Args:
        limit: Read the first rows only.

    Raises:
        ValueError: The rows have no classes, one has a number that is none, or too many cannot be used.
    """
    rows = open_source(source, split=split)
    class_names(rows)  # before every picture is looked at
    rows = filter_invalid_rows(first_rows(rows, limit), quarantine=quarantine, needs_caption=False)
    checked_labels(rows)
    return ClassSet(rows, source=source, split=split)


def read_segments(source: str, *, split: str, quarantine: Path, limit: int | None = None) -> SegmentSet:
    """Pictures with masks, as `read_classes`."""
    rows = open_source(source, split=split)
    SegmentRows(rows, num_classes=len(segment_names(source)))
    rows = filter_invalid_rows(first_rows(rows, limit), quarantine=quarantine, needs_caption=False)
    return SegmentSet(rows, source=source, split=split)


@dataclass(frozen=True)
class ClassEvaluator:
    """What a run calls to measure its classifier."""

    rows: ClassSet

    def __call__(self, model: nn.Module) -> dict[str, float]:
        """Accuracies, fractions."""
        logits = self.rows.predict(cast(VLMoForImageClassification, model))
        return topk_accuracy(logits, self.rows.labels)

    def measurements(self, metrics: Mapping[str, float], *, measured_by: str) -> list[Measurement]:
        """Accuracies that this evaluator gave, as the model's card shows them."""
        return task_measurements(
            metrics,
            task=CLASSIFICATION,
            chance=chance_accuracy(len(self.rows.names)),
            meanings=_CLASS_MEANINGS,
            source=self.rows.source,
            split=self.rows.split,
            measured_by=measured_by,
        )


@dataclass(frozen=True)
class SegmentEvaluator:
    """What a run calls to measure its segmentation; classes alone are left out."""

    rows: SegmentSet
    inference: Inference = "slide"

    def __call__(self, model: nn.Module) -> dict[str, float]:
        """mIoU, aAcc and mAcc, fractions."""
        predictions = self.rows.predict(cast(VLMoForSemanticSegmentation, model), inference=self.inference)
        metrics = self.rows.score(predictions).metrics
        return {name: metrics[name] for name in _SEGMENT_MEANINGS}

    def measurements(self, metrics: Mapping[str, float], *, measured_by: str) -> list[Measurement]:
        """Figures that this evaluator gave, as the model's card shows them."""
        return task_measurements(
            metrics,
            task=SEGMENTATION,
            chance={},
            meanings=_SEGMENT_MEANINGS,
            source=self.rows.source,
            split=self.rows.split,
            measured_by=measured_by,
        )


def best_classes(logits: Float[Tensor, "classes"], names: Sequence[str], *, top: int = _TOP) -> Prediction:
    """The first guess with its share, and the next ones in their order."""
    shares = logits.softmax(dim=-1).topk(min(top, len(names)))
    guesses = [names[number] for number in shares.indices.tolist()]
    return {"prediction": guesses[0], "confidence": round(shares.values[0].item(), 4), "guesses": guesses}


def check_classes(model: VLMoPreTrainedModel, names: Sequence[str], *, source: str) -> None:
    """Raises ValueError where the model has other classes than the data."""
    known: Any = model.config.id2label
    own = [known[number] for number in range(len(known))]
    if own != list(names):
        raise ValueError(
            f"the model has {len(own)} classes ({_shown(own)}), {source} has {len(names)} ({_shown(names)}); they must "
            "be the same, in the same order"
        )


def first_rows(rows: Dataset, limit: int | None) -> Dataset:
    """The first `limit` rows, or all.

    Raises:
        ValueError: `limit` is below 1.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit is {limit}; give the number of rows to read, from 1 up, or none for all")
    return rows if limit is None else select_rows(rows, range(min(limit, len(rows))))


def _shown(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN_NAMES]) + (", ..." if len(names) > _SHOWN_NAMES else "")
