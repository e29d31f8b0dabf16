"""Objectives of fine-tuning: VQA and NLVR2 on pairs, classification and segmentation of images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from torch import Tensor, nn
from torch.nn import functional as F

from vlmo.distributed import global_mean
from vlmo.processing.segmentation import IGNORED_CLASS
from vlmo.types import Batch, normalize_pixels

if TYPE_CHECKING:
    from vlmo.model import (
        VLMoForImageClassification,
        VLMoForSemanticSegmentation,
        VLMoForVisualQuestionAnswering,
        VLMoForVisualReasoning,
    )

_AUXILIARY_WEIGHT = 0.4  # as in vlmo.model.downstream


class QuestionObjective(nn.Module):
    """VQA: a score of every answer to a question (VLMo, "Vision-Language Classification")."""

    def __init__(self, model: VLMoForVisualQuestionAnswering) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return `loss` (= `vqa`) and `vqa_score`, the labels' own score of the best answer.

        Reads `pixel_values`, `input_ids`, `attention_mask` and `labels`. Every process has equally many rows, so that
        the mean over processes of each value is that of the global batch.
        """
        labels = batch["labels"]
        output = self.model(batch["pixel_values"], batch["input_ids"], batch["attention_mask"], labels)
        score = labels.gather(1, output.logits.argmax(dim=-1, keepdim=True)).mean()
        return {"loss": output.loss, "vqa": output.loss.detach(), "vqa_score": score}


class ReasoningObjective(nn.Module):
    """NLVR2: is a sentence about two images true? (VLMo, "Vision-Language Classification")."""

    def __init__(self, model: VLMoForVisualReasoning) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return `loss` (= `nlvr2`) and `nlvr2_accuracy`; reads as `QuestionObjective`, with two images a row."""
        output = self.model(batch["pixel_values"], batch["input_ids"], batch["attention_mask"], batch["labels"])
        right = output.logits.argmax(dim=-1) == batch["labels"]
        return {"loss": output.loss, "nlvr2": output.loss.detach(), "nlvr2_accuracy": right.float().mean()}


@dataclass(frozen=True)
class ClassificationConfig:
    """Mixup and cutmix; the defaults are those of BEiT's recipe for ImageNet."""

    mixup: float = 0.8
    """Alpha of mixup, which adds images; 0 leaves it out."""
    cutmix: float = 1.0
    """Alpha of cutmix, which puts a part of one image into another; 0 leaves it out."""
    mix_probability: float = 1.0
    """Share of the micro-batches that are mixed."""
    cutmix_share: float = 0.5
    """Share of cutmix among them, where mixup is on too."""
    label_smoothing: float = 0.1
    """Share of a label that is spread over all classes."""

    def __post_init__(self) -> None:
        """Raise ValueError if mixing is below 0, or a share is not from 0 to 1."""
        if self.mixup < 0 or self.cutmix < 0:
            raise ValueError(f"mixup is {self.mixup} and cutmix {self.cutmix}; give numbers from 0 up")
        shares = (self.mix_probability, self.cutmix_share, self.label_smoothing)
        if not all(0 <= share <= 1 for share in shares) or self.label_smoothing == 1:
            raise ValueError(f"mix_probability, cutmix_share, label_smoothing are {shares}; give 0 to 1 (last below)")


class ClassificationObjective(nn.Module):
    """Cross-entropy of classes, with mixup and cutmix while training (BEiT's recipe)."""

    def __init__(self, model: VLMoForImageClassification, *, config: ClassificationConfig | None = None) -> None:
        from timm.data import Mixup  # takes seconds

        super().__init__()
        self.model = model
        self.config = config = config or ClassificationConfig()
        self._mixup = Mixup(
            mixup_alpha=config.mixup,
            cutmix_alpha=config.cutmix,
            prob=config.mix_probability,
            switch_prob=config.cutmix_share,
            label_smoothing=config.label_smoothing,
            num_classes=cast("int", model.config.num_labels),
        )

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return `loss` and `accuracy` (of mixed images, the share whose larger part is recognised); reads `labels`.

        Every process has equally many rows, so the mean over processes of each value is that of the global batch.
        Mixed are rows of one micro-batch of one process.

        Raises:
            ValueError: The rows cannot be mixed in pairs.
        """
        pixels, labels = normalize_pixels(batch["pixel_values"]), batch["labels"]
        config = self.config
        share, classes = config.label_smoothing, cast("int", self.model.config.num_labels)
        targets = F.one_hot(labels, classes) * (1 - share) + share / classes
        if self.training and (config.mixup > 0 or config.cutmix > 0) and config.mix_probability > 0:
            if len(pixels) % 2:
                raise ValueError(
                    f"{len(pixels)} images; mixup and cutmix need an even number (loader.global_batch_size)"
                )
            pixels, targets = self._mixup(pixels.clone(), labels)  # it writes into what it is given
        output = self.model(pixel_values=pixels, labels=targets)
        right = output.logits.detach().argmax(dim=-1) == targets.argmax(dim=-1)
        return {"loss": output.loss, "accuracy": right.float().mean()}


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
        loss = losses["segmentation"] + _AUXILIARY_WEIGHT * losses["auxiliary"]
        right = ((logits["segmentation"].detach().argmax(dim=1) == labels) & counted).sum().to(count)
        named = {name: value.detach() for name, value in losses.items()}
        return {"loss": loss, **named, "pixel_accuracy": global_mean(right, count)}
