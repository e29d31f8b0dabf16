"""Stage 3: contrast, masked language modelling and matching on pairs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from vlmo.data.examples import RowExamples
from vlmo.folder import Usage
from vlmo.model.config import FusionStart
from vlmo.objectives.vision_language import VisionLanguageConfig, VisionLanguageObjective
from vlmo.tasks.base import RunContext, Task
from vlmo.tasks.costs import SampleSizes, Work, pair_work
from vlmo.tasks.evaluation_set import EvaluationSet
from vlmo.tasks.retrieval import RETRIEVAL_PIPELINE, PairSet, pair_examples


@dataclass(frozen=True)
class VisionLanguageStage(Task):
    """Stage 3, contrast, masked language modelling and matching. Its models are measured as those for retrieval."""

    name: ClassVar[str] = "vision-language"
    title: ClassVar[str] = "stage 3, contrast, masked language modelling and matching"
    can_stream: ClassVar[bool] = True
    needs_caption: ClassVar[bool] = True
    masks_words: ClassVar[bool] = True
    evaluation: ClassVar[type[EvaluationSet] | None] = PairSet
    architectures = ("VLMoForPreTraining",)
    usage: ClassVar[Usage | None] = Usage(
        "holds every head of stage 3: contrast, matching and masked words; most people use its retrieval part",
        *RETRIEVAL_PIPELINE,
    )
    losses: VisionLanguageConfig = VisionLanguageConfig()
    """Weights and switches."""
    fusion_experts_from: FusionStart = "language"
    """Expert of the same layer that starts `vision_language` experts which the start folder lacks."""

    def objective(self, run: RunContext) -> nn.Module:
        """Return all three losses on pairs."""
        model = self.build_model(run.model)
        run.start(model, fusion_experts_from=self.fusion_experts_from)
        return VisionLanguageObjective(model, config=self.losses)

    def examples(self, run: RunContext) -> RowExamples:
        """Return pairs with masked words."""
        return pair_examples(self, run)

    def work(self, model: Any, sample: SampleSizes) -> Work:
        """Return the work of all three losses."""
        return pair_work(model, sample, losses=self.losses)
