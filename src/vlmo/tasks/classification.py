"""Image classification: fine-tuning as BEiT on ImageNet."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self

import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from vlmo.data.decoding import decode_image
from vlmo.data.examples import Examples, RowExamples
from vlmo.data.rows import column, select_rows
from vlmo.evaluation.metrics import Metric, topk_accuracy
from vlmo.folder.card import Usage
from vlmo.processing import EvalTransform
from vlmo.processing.transforms import by_shape
from vlmo.tasks.evaluation_set import EvaluationSet
from vlmo.tasks.inputs import Accepts, Inputs, Reads
from vlmo.tasks.labels import best_labels, checked_labels
from vlmo.tasks.result import Prediction
from vlmo.tasks.task import Losses, Objective, RunContext, Task
from vlmo.types import Batch, normalize_pixels

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import BeitImageProcessor

    from vlmo.model import VLMoForImageClassification

# As many as top-5 accuracy counts.
_NUM_GUESSES = 5


def class_names(dataset: Dataset) -> list[str]:
    """Return the classes of images by number; ValueError for rows without classes."""
    from datasets import ClassLabel

    feature = dataset.features.get("label")
    if not isinstance(feature, ClassLabel):
        raise ValueError(
            f"these rows have no classes (a column label of type ClassLabel; their columns: "
            f"{', '.join(dataset.column_names)}); give a set for classification, such as imagenet "
            "(vlmo data prepare)"
        )
    return list(feature.names)


def class_numbers(dataset: Dataset) -> Int[Tensor, " rows"]:
    """Return the class numbers of all rows; ValueError for a number that is no class."""
    count = len(class_names(dataset))
    expected = f"a class from 0 to {count - 1}. Leave rows without a class out"
    return checked_labels(dataset, range(count), expected=expected)


class ClassSet(EvaluationSet):
    """Images of a split with their classes; outputs are the logits of all rows."""

    task = "classification"
    hub_task = "image-classification"
    batch_size = 128
    options = ("center_crop",)

    def with_options(self, _model: object, **options: float) -> Self:
        """Return the set with `center_crop` of `EvalTransform`."""
        return replace(self, settings=options)

    @classmethod
    def check_rows(cls, rows: Dataset, _source: str) -> None:
        """Raise ValueError for rows without classes, and for numbers that are no class."""
        class_numbers(rows)

    @property
    def names(self) -> list[str]:
        """Names of the column `label`."""
        return class_names(self.rows)

    def predict(
        self, model: VLMoForImageClassification, rows: range
    ) -> Float[Tensor, "rows classes"]:
        """Return the logits of the images, on the CPU."""
        transform = EvalTransform.of(self.processor, **self.settings)
        cells = column(select_rows(self.rows, rows), "image")
        pixels = [transform(decode_image(cell)) for cell in cells]
        # Images that keep their aspect have several shapes.
        logits = by_shape(pixels, lambda part: model(torch.stack(part).to(model.device)).logits)
        return torch.stack(logits).float().cpu()

    def outputs(
        self, model: VLMoForImageClassification, **options: Any
    ) -> Float[Tensor, "rows classes"]:
        """Return the logits of a classifier for all rows; the processes share them."""
        return torch.stack(super().outputs(model, **options))

    def metrics(self, outputs: Float[Tensor, "rows classes"]) -> list[Metric]:
        """Return top-1 and top-5 accuracy."""
        return topk_accuracy(outputs, class_numbers(self.rows))

    def predictions(self, outputs: Float[Tensor, "rows classes"]) -> list[Prediction]:
        """Return the first guess of a row with its share, and the next ones in their order."""
        names = self.names
        # Shares and class numbers, both (rows, guesses).
        best = outputs.softmax(dim=-1).topk(min(_NUM_GUESSES, outputs.shape[1]))
        predictions = []
        for image_id, label, shares, numbers in zip(
            column(self.rows, "image_id"),
            column(self.rows, "label"),
            best.values.tolist(),
            best.indices.tolist(),
            strict=True,
        ):
            guesses = [names[number] for number in numbers]
            row = {
                "image_id": image_id,
                "prediction": guesses[0],
                "confidence": round(shares[0], 4),
                "guesses": guesses,
                "label": names[label],
            }
            predictions.append(row)
        return predictions


@dataclass(frozen=True)
class ClassificationConfig:
    """Mixup and cutmix; the defaults are those of BEiT's recipe for ImageNet.

    Attributes:
        mixup: Alpha of mixup, which adds images; 0 leaves it out.
        cutmix: Alpha of cutmix, which puts a part of one image into another; 0 leaves it out.
        mix_probability: Share of the micro-batches that are mixed, half of them by each where both
            are on.
        label_smoothing: Share of a label that is spread over all classes.
    """

    mixup: float = 0.8
    cutmix: float = 1.0
    mix_probability: float = 1.0
    label_smoothing: float = 0.1

    def __post_init__(self) -> None:
        """Raise ValueError if mixing is below 0, or a share is not from 0 to 1."""
        if min(self.mixup, self.cutmix) < 0:
            raise ValueError(
                f"mixup is {self.mixup} and cutmix {self.cutmix}; give numbers from 0 up"
            )
        if not (0 <= self.mix_probability <= 1 and 0 <= self.label_smoothing < 1):
            shares = (self.mix_probability, self.label_smoothing)
            raise ValueError(
                f"mix_probability, label_smoothing are {shares}; give 0 to 1 (last below)"
            )


class ClassificationObjective(Objective):
    """Cross-entropy of classes, with mixup and cutmix while training (BEiT's recipe)."""

    def __init__(
        self, model: VLMoForImageClassification, *, config: ClassificationConfig | None = None
    ) -> None:
        super().__init__(model)
        # Importing it takes seconds.
        from torchvision.transforms import v2

        config = config or ClassificationConfig()
        self.config = config
        self.mixes = config.mixup > 0 or config.cutmix > 0
        num_classes = model.config.num_labels
        # An alpha of 0 is refused even where it is never used.
        # Both give labels as shares of classes.
        cutmix = v2.CutMix(alpha=config.cutmix or 1.0, num_classes=num_classes)
        mixup = v2.MixUp(alpha=config.mixup or 1.0, num_classes=num_classes)
        # With both on, half of the mixed batches get one of them (timm, `switch_prob`).
        share = 0.5 if config.mixup and config.cutmix else float(config.cutmix > 0)
        self._mix = v2.RandomChoice([cutmix, mixup], p=[share, 1 - share])

    def forward(self, batch: Batch) -> Losses:
        """Return `loss` and `accuracy`; reads `labels`.

        Of mixed images, the accuracy is the share whose larger part is recognized. Processes have
        equally many rows, so the mean over processes of a value is that of the global batch. Mixed
        are rows of one micro-batch of one process, a row with the one before it.
        """
        pixels = normalize_pixels(batch["pixel_values"])
        num_classes = self.model.config.num_labels
        # (rows, classes): mixed images have shares of two classes.
        targets = F.one_hot(batch["labels"], num_classes).float()
        # One number decides for the whole micro-batch.
        if self.training and self.mixes and float(torch.rand(())) < self.config.mix_probability:
            pixels, targets = self._mix(pixels, batch["labels"])
        # After mixing, so that mixed labels are smoothed like others (timm, `mixup_target`).
        share = self.config.label_smoothing
        targets = targets * (1 - share) + share / num_classes
        output = self.model(pixel_values=pixels, labels=targets)
        right = output.logits.detach().argmax(dim=-1) == targets.argmax(dim=-1)
        return {"loss": output.loss, "accuracy": right.float().mean()}


@dataclass(frozen=True)
class ClassificationTask(Task):
    """Fine-tuning on classes of images, as BEiT on ImageNet.

    Attributes:
        losses: Mixing of images and classes.
        layer_decay: Factor on the learning rate from each layer to the one below it; 1 for equal
            rates.
    """

    name = "classification"
    title = "fine-tuning on classes of images"
    reads = Reads(text=False)
    evaluation = ClassSet
    # ImageNet-1k.
    num_classes = 1000
    architectures = ("VLMoForImageClassification",)
    usage = Usage("names the class of an image", "image-classification", '"image.png"')
    accepts = Accepts("images after --image", images=(1, math.inf))
    losses: ClassificationConfig = ClassificationConfig()
    # Of BEiT-Base on ImageNet; recipes of other sizes set their own.
    layer_decay: float = 0.65

    def label_names(self, run: RunContext) -> list[str]:
        """Return the classes of the data."""
        return class_names(run.rows)

    def step(self, model: VLMoForImageClassification) -> nn.Module:
        """Return the loss over all classes."""
        return ClassificationObjective(model, config=self.losses)

    def without_data(self) -> Task:
        """Return the task without mixing."""
        return replace(self, losses=replace(self.losses, mixup=0.0, cutmix=0.0))

    def examples(self, run: RunContext) -> Examples:
        """Return images with their class."""
        labels = class_numbers(run.rows)
        return RowExamples(run.rows, self.contents(run), labels=labels.__getitem__)

    @classmethod
    def answer(
        cls,
        model: VLMoForImageClassification,
        processor: BeitImageProcessor,
        images: Sequence[Image.Image],
        inputs: Inputs,
    ) -> list[Prediction]:
        """Return the likeliest classes of the images with their shares."""
        transform = EvalTransform.of(processor)
        predictions = []
        for file, image in zip(inputs.images, images, strict=True):
            logits = model(transform(image)[None].to(model.device)).logits[0]
            shares = logits.float().softmax(dim=-1)
            # Of one image, the file goes without saying.
            prefix = {"image": str(file)} if len(images) > 1 else {}
            rows = best_labels(model, shares, top=inputs.top, kind="class")
            predictions += [prefix | row for row in rows]
        return predictions
