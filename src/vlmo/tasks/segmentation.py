"""Semantic segmentation: fine-tuning as BEiT on ADE20K, and the classes of an image's pixels in sliding windows."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, cast

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from rich.console import Console
from torch import Tensor, distributed, nn
from torch.nn import functional as F

from vlmo.data.decoding import decode_image, decode_mask
from vlmo.data.examples import Example, Examples, collate
from vlmo.data.rows import column
from vlmo.data.sampler import Key, sample_generator, stable_id
from vlmo.distributed import global_mean
from vlmo.evaluation.inference import evaluating
from vlmo.evaluation.metrics import Metric, count_pixels, segmentation_metrics
from vlmo.folder.atomic import atomic_file
from vlmo.folder.card import Usage
from vlmo.processing import TransformConfig
from vlmo.processing.segmentation import (
    IGNORED_CLASS,
    Mask,
    SegmentTrainTransform,
    SegmentTransformConfig,
    eval_pixel_values,
)
from vlmo.tasks.evaluation_set import EvaluationSet
from vlmo.tasks.inputs import Accepts, Inputs, Reads
from vlmo.tasks.labels import names_of_model, names_of_source
from vlmo.tasks.result import Prediction
from vlmo.tasks.task import RunContext, Task
from vlmo.types import Batch

if TYPE_CHECKING:
    from datasets import Dataset

    from vlmo.model import VLMoForSemanticSegmentation

_WINDOWS = 16  # that go through the model at a time
_STRIDE = (
    2 / 3
)  # of a window, between the beginnings of two, as mmsegmentation has it for ADE20K (341 of 512)
_PALETTE = np.random.default_rng(0).integers(256, size=(256, 3), dtype=np.uint8).tobytes()
_SNIPPET = """\
from PIL import Image
from transformers import AutoImageProcessor
from vlmo import VLMoForSemanticSegmentation

folder = "path/to/this/folder"
model = VLMoForSemanticSegmentation.from_pretrained(folder).eval()
processor = AutoImageProcessor.from_pretrained(folder)
inputs = processor(Image.open("image.png"), return_tensors="pt")
result = model(**inputs).logits.argmax(1)  # a class for each pixel
"""


class SegmentRows:
    """Decoded images with their masks by row number; ValueError for rows without masks, and for a mask that is damaged.

    Args:
        num_classes: Classes of the set; masks hold numbers below it, and 255 for pixels that do not count.
    """

    def __init__(self, dataset: Dataset, *, num_classes: int) -> None:
        if "mask" not in dataset.column_names:
            raise ValueError(
                f"these rows have no masks (their columns: {', '.join(dataset.column_names)}); give a set for "
                "segmentation, such as ade20k (vlmo data prepare)"
            )
        self.names: list[str] = column(dataset, "image_id")
        self._rows = dataset.select_columns(["image", "mask"])
        self._num_classes = num_classes

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, row: int) -> tuple[Image.Image, Mask]:
        cells: Any = self._rows[row]
        try:
            image = decode_image(cells["image"])
            mask = decode_mask(cells["mask"])
            highest = mask[mask != IGNORED_CLASS].max(initial=0)
            if image.size != mask.shape[::-1] or highest >= self._num_classes:
                raise ValueError(
                    f"the mask has {mask.shape[1]} x {mask.shape[0]} pixels and classes up to {highest}; expected "
                    f"{image.width} x {image.height}, and 0 to {self._num_classes - 1} or {IGNORED_CLASS}, which does "
                    "not count"
                )
        except ValueError as error:
            raise ValueError(f"sample {row} (image_id {self.names[row]!r}): {error}") from error
        return image, mask


class SegmentExamples:
    """Images with the class of each pixel; `dataset`, `num_classes` and errors as in `SegmentRows`."""

    def __init__(
        self, dataset: Dataset, *, transform: SegmentTrainTransform, num_classes: int, seed: int
    ) -> None:
        self._rows = SegmentRows(dataset, num_classes=num_classes)
        self._image_ids = [stable_id(name) for name in self._rows.names]
        self._transform = transform
        self._seed = seed

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, key: Key) -> Example:
        epoch, row = key
        image, mask = self._rows[row]
        generator = sample_generator(self._seed, epoch=epoch, index=row, purpose="image")
        pixel_values, classes = self._transform(image, mask, generator)
        return Example(
            sample_id=row, image_id=self._image_ids[row], pixel_values=pixel_values, labels=classes
        )

    def collate(self, examples: list[Example]) -> Batch:
        """Return a batch of such examples; `labels` are (batch, height, width)."""
        return collate(examples)


def segment(
    model: VLMoForSemanticSegmentation,
    pixel_values: Float[Tensor, "3 height width"],
    *,
    size: tuple[int, int] | None = None,
    batch_size: int = _WINDOWS,
) -> Float[Tensor, "classes out_height out_width"]:
    """Return the logits of each pixel, on the model's device.

    Windows of the training crop's size begin every two thirds of one; logits are averaged where they overlap. An image
    smaller than a window is padded with grey, as crops are in training.

    Args:
        size: Height and width of the result; by default the image's.

    Raises:
        ValueError: The model returns NaN.
    """
    pixel_values = pixel_values.to(model.device)
    window = model.config.image_size
    height, width = pixel_values.shape[1:]
    padded = F.pad(pixel_values, (0, max(0, window - width), 0, max(0, window - height)))
    corners = list(
        itertools.product(*(window_starts(side, window=window) for side in padded.shape[1:]))
    )
    with evaluating(model):
        total = padded.new_zeros(cast("int", model.config.num_labels), *padded.shape[1:])
        count = padded.new_zeros(padded.shape[1:])
        for start in range(0, len(corners), batch_size):
            chunk = corners[start : start + batch_size]
            windows = torch.stack(
                [padded[:, top : top + window, left : left + window] for top, left in chunk]
            )
            for (top, left), logits in zip(chunk, model(windows).logits.float(), strict=True):
                total[:, top : top + window, left : left + window] += logits
                count[top : top + window, left : left + window] += 1
        logits = (total / count)[:, :height, :width]
        if logits.isnan().any():
            raise ValueError("the logits contain NaN; check the weights of the model")
        if size is not None and size != logits.shape[1:]:
            logits = F.interpolate(logits[None], size=size, mode="bilinear", align_corners=False)[0]
        return logits


def window_starts(length: int, *, window: int) -> list[int]:
    """Return the starts of windows on a side, every two thirds of one and one at its end."""
    stride = max(1, int(window * _STRIDE))
    count = max(0, -(-(length - window) // stride)) + 1
    return [max(0, min(number * stride, length - window)) for number in range(count)]


@dataclass(frozen=True)
class SegmentSet(EvaluationSet):
    """Images of a split with the class of each pixel; outputs count pixels by true and predicted class."""

    task: ClassVar[str] = "segmentation"
    hub_task: ClassVar[str] = "image-segmentation"

    @classmethod
    def check_rows(cls, rows: Dataset, source: str) -> None:
        """Raise ValueError for rows without masks, or a set without a list of classes."""
        SegmentRows(rows, num_classes=len(names_of_source(source)))

    @property
    def names(self) -> list[str]:
        """The set's list."""
        return names_of_source(self.source)

    def outputs(
        self, model: Any, *, batch_size: int | None = None, console: Console | None = None
    ) -> list[Prediction]:
        """Return the counts of all images, at each mask's own size; `batch_size` is in windows."""
        num_classes = len(self.names)
        images = SegmentRows(self.rows, num_classes=num_classes)

        def count(rows: range) -> Prediction:
            (row,) = rows
            image, mask = images[row]
            pixels = eval_pixel_values(image, short_side=model.config.image_size)
            logits = segment(
                model, pixels, size=(image.height, image.width), batch_size=batch_size or _WINDOWS
            )
            counts = count_pixels(
                logits.argmax(dim=0), torch.from_numpy(mask), num_classes=num_classes
            )
            cells = [
                [true, predicted, int(counts[true, predicted])]
                for true, predicted in counts.nonzero().tolist()
            ]
            return {"image_id": images.names[row], "pixels": cells}

        return self.map(count, model, batch=1, console=console)

    def metrics(self, outputs: Sequence[Prediction]) -> list[Metric]:
        """Return mIoU, aAcc and mAcc, and `iou[NAME]` for each class that occurs or was predicted."""
        names = self.names
        counts = torch.zeros(len(names), len(names), dtype=torch.int64)
        for row in outputs:
            for true, predicted, pixels in row["pixels"]:
                counts[true, predicted] += pixels
        return segmentation_metrics(counts, names=names)


class SegmentationObjective(nn.Module):
    """Cross-entropy of each pixel's class, in the main and the auxiliary head; pixels of class 255 do not count.

    Processes may have different numbers of pixels that count. Batch normalisation is over the rows of one process, and
    over those of all on GPUs.
    """

    def __init__(self, model: VLMoForSemanticSegmentation) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return `loss` and its parts `segmentation` and `auxiliary`, and `pixel_accuracy`; reads `labels`."""
        labels = batch["labels"]
        model = self.model
        levels = model.pyramid(model.levels(batch["pixel_values"]))
        counted = labels != IGNORED_CLASS
        size = (labels.shape[1], labels.shape[2])
        count = counted.sum().float()

        def of(head: nn.Module) -> tuple[Tensor, Tensor]:
            logits = F.interpolate(
                head(levels).float(), size=size, mode="bilinear", align_corners=False
            )
            loss = F.cross_entropy(logits, labels, ignore_index=IGNORED_CLASS, reduction="sum")
            return logits.detach(), global_mean(loss, count)

        (logits, loss), (_, auxiliary) = of(model.decode_head), of(model.auxiliary_head)
        right = ((logits.argmax(dim=1) == labels) & counted).sum().to(count)
        parts = {"segmentation": loss.detach(), "auxiliary": auxiliary.detach()}
        loss = loss + model.auxiliary_weight * auxiliary
        return {"loss": loss, **parts, "pixel_accuracy": global_mean(right, count)}


@dataclass(frozen=True)
class SegmentationTask(Task):
    """Fine-tuning on classes of pixels, as BEiT on ADE20K. `data.transform` is not read: see `augmentation`."""

    name: ClassVar[str] = "segmentation"
    title: ClassVar[str] = "fine-tuning on classes of pixels"
    reads = Reads(text=False)
    evaluation: ClassVar[type[EvaluationSet] | None] = SegmentSet
    num_classes: ClassVar[int | None] = 150
    architectures = ("VLMoForSemanticSegmentation",)
    usage: ClassVar[Usage | None] = Usage(
        "names the class of each pixel", "image-segmentation", snippet=_SNIPPET
    )
    accepts = Accepts("one --image", saves=True)
    layer_decay: float = 0.9
    """Factor on the learning rate from each layer to the one below it; 1 for equal rates."""
    augmentation: SegmentTransformConfig = SegmentTransformConfig()
    """Augmentation of image and mask together; crops are of model.image_size."""
    channels: int = 512
    """Width of the segmentation head."""

    def build_model(self, settings: dict[str, Any]) -> Any:
        """Return the image encoder with UPerNet's heads."""
        return super().build_model(settings | {"segmentation_channels": self.channels})

    def label_names(self, run: RunContext) -> list[str]:
        """Return the classes of the data's list."""
        return names_of_source(run.data.source)

    def step(self, model: Any) -> nn.Module:
        """Return the loss over all classes."""
        return SegmentationObjective(with_shared_statistics(model))

    def examples(self, run: RunContext) -> Examples:
        """Return images with masks; ValueError if the recipe sets `data.transform`, which is not read."""
        size = run.model["image_size"]
        if run.transform != TransformConfig(image_size=size):
            raise ValueError(
                "data.transform says nothing to segmentation; leave it out, and set task.augmentation"
            )
        return SegmentExamples(
            run.rows,
            transform=SegmentTrainTransform(self.augmentation, crop_size=size),
            num_classes=len(self.label_names(run)),
            seed=run.seed,
        )

    def batch_without_data(self, batch: Batch) -> Batch:
        """Return images with a class of each pixel."""
        return {**batch, "labels": batch["pixel_values"][:, 0].long()}

    @classmethod
    def answer(
        cls, model: Any, processor: Any, images: Sequence[Image.Image], inputs: Inputs
    ) -> list[Prediction]:
        """Return the classes of an image's pixels and the share of each, the largest first.

        The image that can be saved has the number of a class for each pixel, shown by a color.
        """
        del processor
        image = images[0]
        pixels = eval_pixel_values(image, short_side=model.config.image_size)
        logits = segment(model, pixels, size=(image.height, image.width))
        classes = logits.argmax(dim=0).cpu().numpy().astype(np.uint8)
        names = names_of_model(model)
        if inputs.save is not None:
            colored = Image.fromarray(classes)
            colored.putpalette(_PALETTE)
            with atomic_file(inputs.save) as aside:
                colored.save(aside, format="PNG")
        counts = np.bincount(classes.ravel(), minlength=len(names))
        order = [number for number in np.argsort(-counts, kind="stable").tolist() if counts[number]]
        return [
            {"class": names[number], "share": round(float(counts[number] / counts.sum()), 4)}
            for number in order
        ]


def with_shared_statistics(model: VLMoForSemanticSegmentation) -> VLMoForSemanticSegmentation:
    """Return the model with batch normalisation over the rows of all GPUs, as BEiT has it; unchanged on CPUs.

    PyTorch offers it for GPUs only. Parameters and buffers keep their names.
    """
    if (
        distributed.is_available()
        and distributed.is_initialized()
        and distributed.get_backend() == "nccl"
    ):
        return cast("VLMoForSemanticSegmentation", nn.SyncBatchNorm.convert_sync_batchnorm(model))
    return model
