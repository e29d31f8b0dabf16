"""Image classification: fine-tuning as BEiT on ImageNet."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self, cast

import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from vlmo.data.decoding import decode_image
from vlmo.data.examples import Examples, RowExamples
from vlmo.data.rows import column
from vlmo.evaluation.metrics import Metric, topk_accuracy
from vlmo.folder.card import Usage
from vlmo.processing import EvalTransform
from vlmo.processing.transforms import by_shape
from vlmo.tasks.evaluation_set import EvaluationSet
from vlmo.tasks.inputs import Accepts, Inputs, Reads
from vlmo.tasks.labels import best_labels
from vlmo.tasks.result import Prediction
from vlmo.tasks.task import RunContext, Task
from vlmo.types import Batch, normalize_pixels

if TYPE_CHECKING:
    from datasets import Dataset

    from vlmo.model import VLMoForImageClassification

_GUESSES = 5


def class_names(dataset: Dataset) -> list[str]:
    """Return the names of the classes of images in the order of their numbers; ValueError for rows without classes."""
    from datasets import ClassLabel

    feature = dataset.features.get("label")
    if not isinstance(feature, ClassLabel):
        raise ValueError(
            f"these rows have no classes (a column label of type ClassLabel; their columns: "
            f"{', '.join(dataset.column_names)}); give a set for classification, such as imagenet (vlmo data prepare)"
        )
    return list(feature.names)


def checked_labels(dataset: Dataset) -> Int[Tensor, " rows"]:
    """Return the class numbers of all rows; ValueError for rows without classes, or a number that is none."""
    num_classes = len(class_names(dataset))
    labels = column(dataset, "label")
    for row, label in enumerate(labels):
        if label is None or not 0 <= label < num_classes:
            name = column(dataset, "image_id")[row]
            raise ValueError(
                f"sample {row} (image_id {name!r}) has label {label}; expected a class from 0 to {num_classes - 1}. "
                "Leave rows without a class out"
            )
    return torch.tensor(labels)


@dataclass(frozen=True)
class ClassSet(EvaluationSet):
    """Images of a split with their classes; outputs are the logits of all rows, whichever classifier they are from."""

    task: ClassVar[str] = "classification"
    hub_task: ClassVar[str] = "image-classification"
    batch_size: ClassVar[int] = 128
    options: ClassVar[tuple[str, ...]] = ("center_crop",)

    def with_options(self, _model: Any, **options: Any) -> Self:
        """Return the set with `center_crop` of `EvalTransform`."""
        return replace(self, settings=options)

    @classmethod
    def check_rows(cls, rows: Dataset, _source: str) -> None:
        """Raise ValueError for rows without classes, and for numbers that are no class."""
        checked_labels(rows)

    @property
    def names(self) -> list[str]:
        """Names of the column `label`."""
        return class_names(self.rows)

    def predict(self, model: Any, rows: range) -> list[Float[Tensor, "classes"]]:
        """Return the logits of each image, on the CPU."""
        transform = EvalTransform.of(self.processor, **self.settings)
        cells: Any = self.rows[rows.start : rows.stop]
        pixels = [transform(decode_image(cell)) for cell in cells["image"]]
        logits = by_shape(
            pixels, lambda part: model(torch.stack(part).to(model.device)).logits.float().cpu()
        )
        return [row.clone() for row in logits]  # not all for each

    def outputs(self, model: Any, **how: Any) -> Float[Tensor, "rows classes"]:
        """Return the logits of a classifier for all rows; the processes share them."""
        return torch.stack(super().outputs(model, **how))

    def metrics(self, outputs: Float[Tensor, "rows classes"]) -> list[Metric]:
        """Return top-1 and top-5 accuracy."""
        return topk_accuracy(outputs, checked_labels(self.rows))

    def predictions(self, outputs: Float[Tensor, "rows classes"]) -> list[Prediction]:
        """Return the first guess of each row with its share, and the next ones in their order."""
        names = self.names
        best = outputs.softmax(dim=-1).topk(min(_GUESSES, outputs.shape[1]))
        ids = column(self.rows, "image_id")
        labels = column(self.rows, "label")
        rows = zip(ids, best.values.tolist(), best.indices.tolist(), labels, strict=True)
        return [
            {
                "image_id": image_id,
                "prediction": names[guesses[0]],
                "confidence": round(shares[0], 4),
                "guesses": [names[number] for number in guesses],
                "label": names[label],
            }
            for image_id, shares, guesses, label in rows
        ]


@dataclass(frozen=True)
class ClassificationConfig:
    """Mixup and cutmix; the defaults are those of BEiT's recipe for ImageNet."""

    mixup: float = 0.8
    """Alpha of mixup, which adds images; 0 leaves it out."""
    cutmix: float = 1.0
    """Alpha of cutmix, which puts a part of one image into another; 0 leaves it out."""
    mix_probability: float = 1.0
    """Share of the micro-batches that are mixed, half of them by each where both are on."""
    label_smoothing: float = 0.1
    """Share of a label that is spread over all classes."""

    def __post_init__(self) -> None:
        """Raise ValueError if mixing is below 0, or a share is not from 0 to 1."""
        if self.mixup < 0 or self.cutmix < 0:
            raise ValueError(
                f"mixup is {self.mixup} and cutmix {self.cutmix}; give numbers from 0 up"
            )
        shares = (self.mix_probability, self.label_smoothing)
        if not all(0 <= share <= 1 for share in shares) or self.label_smoothing == 1:
            raise ValueError(
                f"mix_probability, label_smoothing are {shares}; give 0 to 1 (last below)"
            )


class ClassificationObjective(nn.Module):
    """Cross-entropy of classes, with mixup and cutmix while training (BEiT's recipe)."""

    def __init__(
        self, model: VLMoForImageClassification, *, config: ClassificationConfig | None = None
    ) -> None:
        super().__init__()
        from torchvision.transforms import v2  # takes seconds

        self.model = model
        self.config = config = config or ClassificationConfig()
        share = 0.5 if config.mixup and config.cutmix else float(config.cutmix > 0)
        # An alpha of 0 is refused even where it is never used.
        kinds = (v2.CutMix, config.cutmix), (v2.MixUp, config.mixup)
        mixes = [
            kind(alpha=alpha or 1.0, num_classes=model.config.num_labels) for kind, alpha in kinds
        ]
        self._mix = v2.RandomChoice(mixes, p=[share, 1 - share])

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return `loss` and `accuracy` (of mixed images, the share whose larger part is recognised); reads `labels`.

        Every process has equally many rows, so the mean over processes of each value is that of the global batch.
        Mixed are rows of one micro-batch of one process, each with the one before it.
        """
        pixels = normalize_pixels(batch["pixel_values"])
        labels = batch["labels"]
        config = self.config
        share = config.label_smoothing
        classes = cast("int", self.model.config.num_labels)
        targets = F.one_hot(labels, classes).float()
        mixes = self.training and (config.mixup > 0 or config.cutmix > 0)
        if mixes and float(torch.rand(())) < config.mix_probability:
            pixels, targets = self._mix(pixels, labels)
        targets = targets * (1 - share) + share / classes
        output = self.model(pixel_values=pixels, labels=targets)
        right = output.logits.detach().argmax(dim=-1) == targets.argmax(dim=-1)
        return {"loss": output.loss, "accuracy": right.float().mean()}


@dataclass(frozen=True)
class ClassificationTask(Task):
    """Fine-tuning on classes of images, as BEiT on ImageNet."""

    name: ClassVar[str] = "classification"
    title: ClassVar[str] = "fine-tuning on classes of images"
    reads = Reads(text=False)
    evaluation: ClassVar[type[EvaluationSet] | None] = ClassSet
    num_classes: ClassVar[int | None] = 1000
    architectures = ("VLMoForImageClassification",)
    usage: ClassVar[Usage | None] = Usage(
        "names the class of an image", "image-classification", '"image.png"'
    )
    accepts = Accepts("images after --image", images=(1, math.inf))
    losses: ClassificationConfig = ClassificationConfig()
    """Mixing of images and classes."""
    layer_decay: float = 0.65
    """Factor on the learning rate from each layer to the one below it; 1 for equal rates."""

    def label_names(self, run: RunContext) -> list[str]:
        """Return the classes of the data."""
        return class_names(run.rows)

    def step(self, model: Any) -> nn.Module:
        """Return the loss over all classes."""
        return ClassificationObjective(model, config=self.losses)

    def without_data(self) -> Task:
        """Return the task without mixing."""
        return replace(self, losses=replace(self.losses, mixup=0.0, cutmix=0.0))

    def examples(self, run: RunContext) -> Examples:
        """Return images with their class."""
        return RowExamples(
            run.rows, self.contents(run), labels=checked_labels(run.rows).__getitem__
        )

    @classmethod
    def answer(
        cls, model: Any, processor: Any, images: Sequence[Image.Image], inputs: Inputs
    ) -> list[Prediction]:
        """Return the likeliest classes of each image, each with its share."""
        transform = EvalTransform.of(processor)
        rows: list[Prediction] = []
        for file, image in zip(inputs.images, images, strict=True):
            shares = (
                model(transform(image)[None].to(model.device)).logits[0].float().softmax(dim=-1)
            )
            whose = {"image": str(file)} if len(images) > 1 else {}
            rows += [
                whose | row for row in best_labels(model, shares, top=inputs.top, kind="class")
            ]
        return rows
