"""Inputs of a training run, as its task sees them."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlmo.data.masking import WordMaskConfig
from vlmo.distributed import is_main
from vlmo.model.config import FusionStart
from vlmo.processing import TransformConfig

if TYPE_CHECKING:
    from datasets import Dataset

    from vlmo.model import VLMoPreTrainedModel
    from vlmo.processing import VLMoProcessor

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunContext:
    """Inputs of a training run.

    Attributes:
        recipe: A `vlmo.recipes.Recipe`, whose module imports the tasks.
        rows: Valid training rows; empty for streams, which are checked as they are read.
        processor: None for a task that reads no text.
        model: Settings of `VLMoConfig`, the vocabulary's sizes included.
        missing: Tensors that the start folder did not hold, once `start` was called.
    """

    folder: Path
    recipe: Any
    rows: Dataset
    processor: VLMoProcessor | None
    model: dict[str, Any]
    missing: list[str] = field(default_factory=list)

    @property
    def source(self) -> str:
        """Name or path of the training rows, which may hold a list of answers or classes."""
        return self.recipe.data.source

    @property
    def text_processor(self) -> VLMoProcessor:
        """The processor of a task that reads text."""
        assert self.processor is not None  # every such task is given one
        return self.processor

    @property
    def transform(self) -> TransformConfig:
        """Image augmentation, at the model's size."""
        return replace(self.recipe.data.transform, image_size=self.recipe.model.image_size)

    @property
    def words(self) -> WordMaskConfig:
        """Which words are masked."""
        data = self.recipe.data
        return WordMaskConfig(probability=data.mlm_probability, only=data.mask_only, only_share=data.mask_only_share)

    def start(self, model: VLMoPreTrainedModel, *, fusion_experts_from: FusionStart = "language") -> None:
        """Load the start folder, if there is one, and list in `start.txt` what it did not hold."""
        if self.recipe.init is None:
            return
        from vlmo.model.stages import start_from

        report = start_from(model, self.recipe.init, fusion_experts_from=fusion_experts_from)
        self.missing.extend(report.missing)
        if is_main():
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / "start.txt").write_text("\n".join(report.lines()) + "\n")
        logger.info(
            "started from %s: %d tensors loaded, %d resized, %d filled, %d not found there (listed in start.txt)",
            self.recipe.init, len(report.loaded), len(report.resized), len(report.filled), len(report.missing),
        )  # fmt: skip
