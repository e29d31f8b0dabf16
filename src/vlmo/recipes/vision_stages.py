"""Fine-tuning of the image encoder: classes of pictures (ImageNet), and classes of pixels (ADE20K)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, cast

from torch import distributed, nn

from vlmo.data.examples import Examples
from vlmo.data.label_examples import LabelledExamples, SegmentExamples, class_names, segment_names
from vlmo.evaluation.segmentation import Inference
from vlmo.model import VLMoConfig, VLMoForImageClassification, VLMoForSemanticSegmentation
from vlmo.model.backbone import VLMoPreTrainedModel
from vlmo.model.stages import layer_decay_factors
from vlmo.objectives.downstream import (
    ClassificationConfig,
    ClassificationObjective,
    SegmentationConfig,
    SegmentationObjective,
)
from vlmo.processing import TransformConfig
from vlmo.processing.segmentation import SegmentTrainTransform, SegmentTransformConfig
from vlmo.recipes.pretraining_stages import pictures
from vlmo.recipes.stage import BaseStage, Run
from vlmo.recipes.vision_sets import ClassEvaluator, SegmentEvaluator, read_classes, read_segments
from vlmo.released import find_model

_TEXT_SIZES = ("vocab_size", "max_text_positions", "pad_token_id")


@dataclass(frozen=True)
class ClassificationStage(BaseStage):
    """Fine-tuning on classes of pictures, as BEiT on ImageNet."""

    title: ClassVar[str] = "fine-tuning on classes of pictures"
    reads_text: ClassVar[bool] = False
    can_evaluate: ClassVar[bool] = True
    losses: ClassificationConfig = ClassificationConfig()
    """How pictures and classes are mixed."""
    layer_decay: float = 0.65
    """Factor on the learning rate from each block to the one below it; 1 for equal rates."""

    def objective(self, run: Run) -> nn.Module:
        """Tells the classes that the data has."""
        model = VLMoForImageClassification(VLMoConfig(**_settings(run, class_names(run.rows))))
        run.start(model)
        return ClassificationObjective(model, config=self.losses)

    def examples(self, run: Run) -> Examples:
        """Pictures with their class."""
        return LabelledExamples(run.rows, **pictures(run))

    def evaluators(self, run: Run) -> Sequence[ClassEvaluator]:
        """Top-1 and top-5 accuracy."""
        source, split = run.recipe.evaluate_on, run.recipe.evaluate_split
        if source is None:
            return ()
        rows = read_classes(source, split=split, quarantine=run.folder / f"{split}.quarantine.jsonl")
        _check_names(rows.names, class_names(run.rows), source=source, trained_on=run.recipe.data.source)
        return [ClassEvaluator(rows)]

    def lr_scale(self, model: nn.Module) -> dict[str, float]:
        """Falls from the head to the embeddings."""
        return layer_decay_factors(cast(VLMoPreTrainedModel, model), decay=self.layer_decay)


@dataclass(frozen=True)
class SegmentationStage(BaseStage):
    """Fine-tuning on classes of pixels, as BEiT on ADE20K. `data.transform` is not read: see `augmentation`."""

    title: ClassVar[str] = "fine-tuning on classes of pixels"
    reads_text: ClassVar[bool] = False
    can_evaluate: ClassVar[bool] = True
    losses: SegmentationConfig = SegmentationConfig()
    """Weights of the two heads."""
    layer_decay: float = 0.9
    """Factor on the learning rate from each block to the one below it; 1 for equal rates."""
    augmentation: SegmentTransformConfig = SegmentTransformConfig()
    """What becomes of a picture and its mask; crops are of model.image_size."""
    channels: int = 512
    """Width of the segmentation head."""
    layers: tuple[int, int, int, int] | None = None
    """After how many blocks the feature levels are taken; by default as BEiT does."""
    inference: Inference = "slide"
    """How `evaluate_on` is measured: windows of model.image_size, or whole pictures."""

    def objective(self, run: Run) -> nn.Module:
        """Tells the classes that the data's list has."""
        settings = _settings(run, segment_names(run.recipe.data.source)) | {
            "segmentation_channels": self.channels,
            "segmentation_layers": None if self.layers is None else list(self.layers),
        }
        model = VLMoForSemanticSegmentation(VLMoConfig(**settings))
        run.start(model)
        return SegmentationObjective(with_shared_statistics(model), config=self.losses)

    def examples(self, run: Run) -> Examples:
        """Pictures with masks.

        Raises:
            ValueError: The recipe sets `data.transform`, which segmentation does not read.
        """
        recipe = run.recipe
        if recipe.data.transform != TransformConfig():
            raise ValueError(
                "data.transform is given, but segmentation augments picture and mask together; leave it out and set "
                "stage.augmentation"
            )
        return SegmentExamples(
            run.rows,
            transform=SegmentTrainTransform(self.augmentation, crop_size=recipe.model.image_size),
            num_classes=len(segment_names(recipe.data.source)),
            seed=recipe.seed,
            cache_images=recipe.data.cache_images,
        )

    def evaluators(self, run: Run) -> Sequence[SegmentEvaluator]:
        """mIoU, aAcc and mAcc."""
        source, split = run.recipe.evaluate_on, run.recipe.evaluate_split
        if source is None:
            return ()
        rows = read_segments(source, split=split, quarantine=run.folder / f"{split}.quarantine.jsonl")
        trained_on = run.recipe.data.source
        _check_names(rows.names, segment_names(trained_on), source=source, trained_on=trained_on)
        return [SegmentEvaluator(rows, inference=self.inference)]

    def lr_scale(self, model: nn.Module) -> dict[str, float]:
        """Falls from the head to the embeddings."""
        return layer_decay_factors(cast(VLMoPreTrainedModel, model), decay=self.layer_decay)


def with_shared_statistics(model: VLMoForSemanticSegmentation) -> VLMoForSemanticSegmentation:
    """The model with batch normalisation over the rows of all GPUs, as BEiT has it; unchanged on CPUs and one process.

    PyTorch offers it for GPUs only. Parameters and buffers keep their names.
    """
    if distributed.is_available() and distributed.is_initialized() and distributed.get_backend() == "nccl":
        return cast(VLMoForSemanticSegmentation, nn.SyncBatchNorm.convert_sync_batchnorm(model))
    return model


def _settings(run: Run, names: Sequence[str]) -> dict[str, Any]:
    """The recipe's sizes with the classes, and with the text side of the start folder: nothing here reads it."""
    settings = run.model_settings()
    if run.recipe.init is not None:
        config = Path(find_model(run.recipe.init)) / "config.json"
        start = json.loads(config.read_text(encoding="utf-8")) if config.is_file() else {}
        settings |= {name: start[name] for name in _TEXT_SIZES if name in start}
    return settings | {"id2label": dict(enumerate(names)), "label2id": {name: n for n, name in enumerate(names)}}


def _check_names(found: Sequence[str], expected: Sequence[str], *, source: str, trained_on: str) -> None:
    if list(found) != list(expected):
        raise ValueError(
            f"evaluate_on {source} has {len(found)} classes, {trained_on} {len(expected)}, or they have other names; "
            "evaluate on data with the same classes in the same order"
        )
