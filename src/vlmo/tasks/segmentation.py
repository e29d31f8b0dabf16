"""Semantic segmentation: fine-tuning as BEiT on ADE20K, and prediction in sliding windows."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from jaxtyping import Float, Int
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
from vlmo.tasks.labels import check_task, names_of_model, names_of_source
from vlmo.tasks.result import Prediction
from vlmo.tasks.task import Losses, Objective, RunContext, Settings, Task
from vlmo.types import Batch

if TYPE_CHECKING:
    from datasets import Dataset

    from vlmo.model import VLMoForSemanticSegmentation

# Windows that go through the model at a time.
_WINDOWS = 16
# Of a window, between the beginnings of two: mmsegmentation's for ADE20K (341 of 512).
_STRIDE = 2 / 3
# Random colors, the same in every run.
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
    """Decoded images with their masks by row number.

    Args:
        num_classes: Classes of the set; masks hold numbers below it, and 255 for pixels that do not
            count.

    Raises:
        ValueError: The rows have no masks; of a row: its mask is damaged or does not fit.
    """

    def __init__(self, dataset: Dataset, *, num_classes: int) -> None:
        check_task(dataset, "SEGMENT_FEATURES", task="images with masks")
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
            # A mask without pixels that count is valid.
            highest = mask[mask != IGNORED_CLASS].max(initial=0)
            if image.size != mask.shape[::-1] or highest >= self._num_classes:
                raise ValueError(
                    f"the mask has {mask.shape[1]} x {mask.shape[0]} pixels and classes up to "
                    f"{highest}; expected {image.width} x {image.height}, and 0 to "
                    f"{self._num_classes - 1} or {IGNORED_CLASS}, which does not count"
                )
        except ValueError as error:
            raise ValueError(f"sample {row} (image_id {self.names[row]!r}): {error}") from error
        return image, mask


class SegmentExamples:
    """Images with the classes of their pixels; arguments and errors as in `SegmentRows`."""

    def __init__(
        self, dataset: Dataset, *, transform: SegmentTrainTransform, num_classes: int, seed: int
    ) -> None:
        self._rows = SegmentRows(dataset, num_classes=num_classes)
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
            sample_id=row,
            image_id=stable_id(self._rows.names[row]),
            pixel_values=pixel_values,
            labels=classes,
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
    """Return the logits of all pixels, on the model's device.

    Windows of the training crop's size begin every two thirds of one; logits are averaged where
    they overlap. Smaller images are padded with gray, as crops are in training. `size` is the
    result's height and width, by default the image's. ValueError for NaN.
    """
    pixel_values = pixel_values.to(model.device)
    window = model.config.image_size
    height, width = pixel_values.shape[1:]
    # 0 is gray after normalization.
    padded = F.pad(pixel_values, (0, max(0, window - width), 0, max(0, window - height)))
    tops, lefts = [window_starts(side, window=window) for side in padded.shape[1:]]
    # Indices of the windows, of images and logits alike.
    areas = [
        (..., slice(top, top + window), slice(left, left + window))
        for top, left in itertools.product(tops, lefts)
    ]
    with evaluating(model):
        # Sum of the logits and number of windows of every pixel.
        total = padded.new_zeros(cast("int", model.config.num_labels), *padded.shape[1:])
        count = padded.new_zeros(padded.shape[1:])
        for start in range(0, len(areas), batch_size):
            chunk = areas[start : start + batch_size]
            windows = torch.stack([padded[area] for area in chunk])
            for area, logits in zip(chunk, model(windows).logits.float(), strict=True):
                total[area] += logits
                count[area] += 1
        logits = (total / count)[None, :, :height, :width]
        if logits.isnan().any():
            raise ValueError("the logits contain NaN; check the weights of the model")
        # Masks keep the size of the file, windows that of the resized image.
        size = size or (height, width)
        return F.interpolate(logits, size=size, mode="bilinear", align_corners=False)[0]


def window_starts(length: int, *, window: int) -> list[int]:
    """Return the starts of windows on a side, every two thirds of one and one at its end."""
    last = max(0, length - window)
    return [*range(0, last, max(1, int(window * _STRIDE))), last]


def _classes_of_pixels(
    model: VLMoForSemanticSegmentation, image: Image.Image, *, batch_size: int = _WINDOWS
) -> Int[Tensor, "height width"]:
    pixels = eval_pixel_values(image, short_side=model.config.image_size)
    size = (image.height, image.width)
    return segment(model, pixels, size=size, batch_size=batch_size).argmax(dim=0).cpu()


class SegmentSet(EvaluationSet):
    """Images with classes of pixels; outputs count pixels by true and predicted class."""

    task = "segmentation"
    hub_task = "image-segmentation"

    @classmethod
    def check_rows(cls, rows: Dataset, source: str) -> None:
        """Raise ValueError for rows without masks, or a set without a list of classes."""
        SegmentRows(rows, num_classes=len(names_of_source(source)))

    @property
    def names(self) -> list[str]:
        """The set's list."""
        return names_of_source(self.source)

    def outputs(
        self,
        model: VLMoForSemanticSegmentation,
        *,
        batch_size: int | None = None,
        console: Console | None = None,
    ) -> list[Prediction]:
        """Return the counts of all images, at their masks' sizes; `batch_size` is in windows."""
        num_classes = len(self.names)
        images = SegmentRows(self.rows, num_classes=num_classes)

        def count(rows: range) -> Prediction:
            # One image at a time: every mask has its own size.
            image, mask = images[rows.start]
            predicted = _classes_of_pixels(model, image, batch_size=batch_size or _WINDOWS)
            counts = count_pixels(predicted, torch.from_numpy(mask), num_classes=num_classes)
            # True class, predicted class and count, of the pairs that occur.
            pixels = torch.column_stack([counts.nonzero(), counts[counts > 0]])
            return {"image_id": images.names[rows.start], "pixels": pixels.tolist()}

        return self.map(count, model, batch=1, console=console)

    def metrics(self, outputs: Sequence[Prediction]) -> list[Metric]:
        """Return mIoU, aAcc and mAcc, and `iou[NAME]` of classes that occur or were predicted."""
        names = self.names
        # Counts of images add up; their metrics do not.
        counts = torch.zeros(len(names), len(names), dtype=torch.int64)
        for row in outputs:
            for true, predicted, pixels in row["pixels"]:
                counts[true, predicted] += pixels
        return segmentation_metrics(counts, names=names)


class SegmentationObjective(Objective):
    """Cross-entropy of the pixels' classes, in the main and the auxiliary head; 255 does not count.

    Processes may have different numbers of pixels that count. Batch normalization is over the rows
    of one process, and over those of all on GPUs.
    """

    def forward(self, batch: Batch) -> Losses:
        """Return `loss` and its parts `segmentation` and `auxiliary`, and `pixel_accuracy`."""
        model = self.model
        labels = batch["labels"]
        # Maps of 1/4, 1/8, 1/16 and 1/32 of the image for patches of 16 pixels.
        levels = model.pyramid(model.levels(batch["pixel_values"]))
        is_counted = labels != IGNORED_CLASS
        count = is_counted.sum().float()
        logits, loss = _upsampled_loss(model.decode_head(levels), labels, count=count)
        _, auxiliary = _upsampled_loss(model.auxiliary_head(levels), labels, count=count)
        right = ((logits.argmax(dim=1) == labels) & is_counted).sum().float()
        return {
            "loss": loss + model.auxiliary_weight * auxiliary,
            "segmentation": loss.detach(),
            "auxiliary": auxiliary.detach(),
            "pixel_accuracy": global_mean(right, count),
        }


def _upsampled_loss(logits: Tensor, labels: Tensor, *, count: Tensor) -> tuple[Tensor, Tensor]:
    """Return logits at the size of the labels, and the mean loss over `count` pixels."""
    # At the size of the labels, as in mmsegmentation.
    size = labels.shape[1:]
    logits = F.interpolate(logits.float(), size=size, mode="bilinear", align_corners=False)
    loss = F.cross_entropy(logits, labels, ignore_index=IGNORED_CLASS, reduction="sum")
    return logits.detach(), global_mean(loss, count)


@dataclass(frozen=True)
class SegmentationTask(Task):
    """Fine-tuning on classes of pixels, as BEiT on ADE20K.

    `data.transform` is not read: see `augmentation`.

    Attributes:
        layer_decay: Factor on the learning rate from each layer to the one below it; 1 for equal
            rates.
        augmentation: Augmentation of image and mask together; crops are of model.image_size.
        channels: Width of the segmentation head.
    """

    name = "segmentation"
    title = "fine-tuning on classes of pixels"
    reads = Reads(text=False)
    evaluation = SegmentSet
    # ADE20K.
    num_classes = 150
    architectures = ("VLMoForSemanticSegmentation",)
    usage = Usage("names the class of each pixel", "image-segmentation", snippet=_SNIPPET)
    accepts = Accepts("one --image", saves=True)
    layer_decay: float = 0.9
    augmentation: SegmentTransformConfig = SegmentTransformConfig()
    channels: int = 512

    def build_model(self, settings: Settings) -> VLMoForSemanticSegmentation:
        """Return the image encoder with UPerNet's heads."""
        return super().build_model(settings | {"segmentation_channels": self.channels})

    def label_names(self, run: RunContext) -> list[str]:
        """Return the classes of the data's list."""
        return names_of_source(run.data.source)

    def step(self, model: VLMoForSemanticSegmentation) -> nn.Module:
        """Return the loss over all classes."""
        return SegmentationObjective(with_shared_statistics(model))

    def examples(self, run: RunContext) -> Examples:
        """Return images with masks; ValueError if the recipe sets `data.transform`."""
        size = run.model["image_size"]
        if run.transform != TransformConfig(image_size=size):
            raise ValueError(
                "data.transform says nothing to segmentation; leave it out, and set "
                "task.augmentation"
            )
        return SegmentExamples(
            run.rows,
            transform=SegmentTrainTransform(self.augmentation, crop_size=size),
            num_classes=len(self.label_names(run)),
            seed=run.seed,
        )

    def batch_without_data(self, batch: Batch) -> Batch:
        """Return images with classes of pixels."""
        return {**batch, "labels": batch["pixel_values"][:, 0].long()}

    @classmethod
    def answer(
        cls,
        model: VLMoForSemanticSegmentation,
        _processor: object,
        images: Sequence[Image.Image],
        inputs: Inputs,
    ) -> list[Prediction]:
        """Return the classes of an image's pixels and their shares, the largest first.

        The image that can be saved has the number of a class for every pixel, shown by a color.
        """
        classes = _classes_of_pixels(model, images[0])
        names = names_of_model(model)
        if inputs.save is not None:
            colored = Image.fromarray(classes.numpy().astype(np.uint8))
            # The file holds class numbers; the palette only shows them.
            colored.putpalette(_PALETTE)
            with atomic_file(inputs.save) as aside:
                colored.save(aside, format="PNG")
        counts = classes.flatten().bincount().tolist()
        pairs = sorted(zip(counts, names, strict=False), key=lambda pair: -pair[0])
        return [
            {"class": name, "share": round(count / classes.numel(), 4)}
            for count, name in pairs
            if count
        ]


def with_shared_statistics(model: VLMoForSemanticSegmentation) -> VLMoForSemanticSegmentation:
    """Return the model with batch normalization over the rows of all GPUs, as BEiT has it.

    PyTorch offers it for GPUs only: on CPUs the model is unchanged. Names of parameters and buffers
    stay.
    """
    is_parallel = distributed.is_available() and distributed.is_initialized()
    if is_parallel and distributed.get_backend() == "nccl":
        return cast("VLMoForSemanticSegmentation", nn.SyncBatchNorm.convert_sync_batchnorm(model))
    return model
