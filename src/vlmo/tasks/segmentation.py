"""Semantic segmentation: fine-tuning as BEiT on ADE20K."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, cast

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from rich.console import Console
from torch import Tensor, distributed, nn
from torch.nn import functional as F

from vlmo.data.decoding import decode_image, decode_mask
from vlmo.data.examples import Example, Examples, collate
from vlmo.data.rows import column
from vlmo.data.sampler import Key, sample_generator, stable_id
from vlmo.distributed import global_mean
from vlmo.evaluation.metrics import Metric, count_pixels, segmentation_metrics
from vlmo.evaluation.segmentation import overlay, segment
from vlmo.folder.atomic import atomic_file
from vlmo.folder.card import Usage
from vlmo.processing import TransformConfig
from vlmo.processing.segmentation import (
    IGNORED_CLASS,
    SegmentTrainTransform,
    SegmentTransformConfig,
    eval_pixel_values,
)
from vlmo.tasks.costs import (
    FLOAT32,
    LOGIT_COPIES,
    Pass,
    SampleSizes,
    Work,
    count_flops,
    encode,
    image_tokens,
    image_values,
)
from vlmo.tasks.evaluation_set import EvaluationSet
from vlmo.tasks.labels import label_settings, names_of_model, names_of_source
from vlmo.tasks.result import Prediction
from vlmo.tasks.run_context import RunContext
from vlmo.tasks.task import Inputs, Task
from vlmo.types import Batch

if TYPE_CHECKING:
    from datasets import Dataset

    from vlmo.model import VLMoForSemanticSegmentation, VLMoPreTrainedModel

_WINDOWS = 16
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

    def __getitem__(self, row: int) -> tuple[Image.Image, UInt8[np.ndarray, "height width"]]:
        cells: Any = self._rows[row]
        try:
            image, mask = decode_image(cells["image"]), decode_mask(cells["mask"])
            if image.size != mask.shape[::-1]:
                raise ValueError(
                    f"the mask has {mask.shape[1]} x {mask.shape[0]} pixels, its image {image.width} x {image.height}"
                )
            counted = mask[mask != IGNORED_CLASS]
            if counted.size and counted.max() >= self._num_classes:
                raise ValueError(
                    f"the mask holds class {counted.max()}; the set has {self._num_classes} classes, 0 to "
                    f"{self._num_classes - 1}, and {IGNORED_CLASS} for pixels that do not count"
                )
        except ValueError as error:
            raise ValueError(f"sample {row} (image_id {self.names[row]!r}): {error}") from error
        return image, mask


class SegmentExamples:
    """Images with the class of each pixel; `dataset`, `num_classes` and errors as in `SegmentRows`."""

    def __init__(
        self, dataset: Dataset, *, transform: SegmentTrainTransform, num_classes: int, seed: int, cache: bool = False
    ) -> None:
        self._rows = SegmentRows(dataset, num_classes=num_classes)
        self._image_ids = [stable_id(name) for name in self._rows.names]
        self._transform, self._seed = transform, seed
        self._cache, self._kept = cache, dict[int, tuple[Image.Image, UInt8[np.ndarray, "height width"]]]()

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, key: Key) -> Example:
        epoch, row = key
        image, mask = self._kept.get(row) or self._rows[row]
        if self._cache:
            self._kept[row] = image, mask
        generator = sample_generator(self._seed, epoch=epoch, index=row, purpose="image")
        pixel_values, classes = self._transform(image, mask, generator)
        return Example(sample_id=row, image_id=self._image_ids[row], pixel_values=pixel_values, labels=classes)

    def collate(self, examples: list[Example]) -> Batch:
        """Return `pixel_values`, `labels` (batch, height, width), `image_ids` and `sample_ids`."""
        return collate(examples)


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

    def outputs(self, model: Any, *, batch_size: int | None = None, console: Console | None = None) -> list[Prediction]:
        """Return the counts of all images, at each mask's own size; `batch_size` is in windows."""
        num_classes = len(self.names)
        images = SegmentRows(self.rows, num_classes=num_classes)

        def count(rows: range) -> Prediction:
            (row,) = rows
            image, mask = images[row]
            pixels = eval_pixel_values(image, short_side=model.config.image_size)
            size = (mask.shape[0], mask.shape[1])
            logits = segment(model, pixels, size=size, batch_size=batch_size or _WINDOWS)
            counts = count_pixels(logits.argmax(dim=0), torch.from_numpy(mask), num_classes=num_classes)
            cells = [[true, predicted, int(counts[true, predicted])] for true, predicted in counts.nonzero().tolist()]
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
        labels, model = batch["labels"], self.model
        levels = model.pyramid(model.levels(batch["pixel_values"]))
        heads: dict[str, nn.Module] = {"segmentation": model.decode_head, "auxiliary": model.auxiliary_head}
        counted = labels != IGNORED_CLASS
        size, count = (labels.shape[1], labels.shape[2]), counted.sum().float()
        logits = {
            name: F.interpolate(head(levels).float(), size=size, mode="bilinear", align_corners=False)
            for name, head in heads.items()
        }
        losses = {
            name: global_mean(F.cross_entropy(each, labels, ignore_index=IGNORED_CLASS, reduction="sum"), count)
            for name, each in logits.items()
        }
        loss = losses["segmentation"] + model.auxiliary_weight * losses["auxiliary"]
        right = ((logits["segmentation"].detach().argmax(dim=1) == labels) & counted).sum().to(count)
        named = {name: value.detach() for name, value in losses.items()}
        return {"loss": loss, **named, "pixel_accuracy": global_mean(right, count)}


@dataclass(frozen=True)
class SegmentationTask(Task):
    """Fine-tuning on classes of pixels, as BEiT on ADE20K. `data.transform` is not read: see `augmentation`."""

    name: ClassVar[str] = "segmentation"
    title: ClassVar[str] = "fine-tuning on classes of pixels"
    reads_text: ClassVar[bool] = False
    evaluation: ClassVar[type[EvaluationSet] | None] = SegmentSet
    num_classes: ClassVar[int | None] = 150
    architectures = ("VLMoForSemanticSegmentation",)
    usage: ClassVar[Usage | None] = Usage("names the class of each pixel", "image-segmentation", snippet=_SNIPPET)
    inputs: ClassVar[str] = "one --image"
    draws: ClassVar[bool] = True
    layer_decay: float = 0.9
    """Factor on the learning rate from each layer to the one below it; 1 for equal rates."""
    augmentation: SegmentTransformConfig = SegmentTransformConfig()
    """Augmentation of image and mask together; crops are of model.image_size."""
    channels: int = 512
    """Width of the segmentation head."""

    def build_model(self, settings: dict[str, Any]) -> Any:
        """Return the image encoder with UPerNet's heads."""
        return super().build_model(settings | {"segmentation_channels": self.channels})

    def objective(self, run: RunContext) -> nn.Module:
        """Return the loss over the classes of the data's list."""
        model = self.build_model(run.model | label_settings(names_of_source(run.source)))
        run.start(model)
        return SegmentationObjective(with_shared_statistics(model))

    def examples(self, run: RunContext) -> Examples:
        """Return images with masks; ValueError if the recipe sets `data.transform`, which is not read."""
        size = run.model["image_size"]
        if run.transform != TransformConfig(image_size=size):
            raise ValueError(
                "data.transform is given, but segmentation augments image and mask together; leave it out and set "
                "task.augmentation"
            )
        return SegmentExamples(
            run.rows,
            transform=SegmentTrainTransform(self.augmentation, crop_size=size),
            num_classes=len(names_of_source(run.source)),
            seed=run.recipe.seed,
            cache=run.recipe.data.cache_images,
        )

    def work(self, model: Any, _sample: SampleSizes) -> Work:
        """Return the work of the encoder and both heads; tensors that the heads keep are counted by running them."""
        rows, config = 2, model.config  # batch normalisation needs more than one value
        levels = [torch.empty(rows, config.hidden_size, *config.grid).requires_grad_() for _ in config.feature_layers]
        own, kept = {id(parameter) for parameter in model.parameters()}, dict[int, Tensor]()

        def keep(tensor: Tensor) -> Tensor:
            if id(tensor) not in own:
                kept[tensor.untyped_storage()._cdata] = tensor
            return tensor

        def run() -> Tensor:
            pyramid = model.pyramid(levels)
            return model.decode_head(pyramid).sum() + model.auxiliary_head(pyramid).sum()

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda saved: saved):
            heads = count_flops(run) / rows
        return Work(
            model,
            sum(encode(model, image=True)) + heads,
            FLOAT32 * (image_values(config) + 2 * LOGIT_COPIES * config.num_labels * config.image_size**2),
            (Pass((image_tokens(config),), config.num_hidden_layers),),
            saved_bytes=sum(tensor.untyped_storage().nbytes() for tensor in kept.values()) / rows,
        )

    def lr_scale(self, model: nn.Module) -> dict[str, float]:
        """Return factors that fall from the head to the embeddings."""
        from vlmo.model.stages import layer_decay_factors

        return layer_decay_factors(cast("VLMoPreTrainedModel", model), decay=self.layer_decay)

    @classmethod
    def answer(cls, model: Any, processor: Any, images: Sequence[Image.Image], inputs: Inputs) -> list[Prediction]:
        """Return the classes of an image's pixels and the share of each, the largest first.

        The image that can be saved shows the classes in color, and their names below it.
        """
        del processor
        image = images[0]
        pixels = eval_pixel_values(image, short_side=model.config.image_size)
        logits = segment(model, pixels, size=(image.height, image.width))
        classes = logits.argmax(dim=0).cpu().numpy().astype(np.uint8)
        names = names_of_model(model)
        if inputs.save is not None:
            with atomic_file(inputs.save) as aside:
                overlay(image, classes, names=names).save(aside, format="PNG")
        counts = np.bincount(classes.ravel(), minlength=len(names))
        order = [number for number in np.argsort(-counts, kind="stable").tolist() if counts[number]]
        return [{"class": names[number], "share": round(float(counts[number] / counts.sum()), 4)} for number in order]


def with_shared_statistics(model: VLMoForSemanticSegmentation) -> VLMoForSemanticSegmentation:
    """Return the model with batch normalisation over the rows of all GPUs, as BEiT has it; unchanged on CPUs.

    PyTorch offers it for GPUs only. Parameters and buffers keep their names.
    """
    if distributed.is_available() and distributed.is_initialized() and distributed.get_backend() == "nccl":
        return cast("VLMoForSemanticSegmentation", nn.SyncBatchNorm.convert_sync_batchnorm(model))
    return model
