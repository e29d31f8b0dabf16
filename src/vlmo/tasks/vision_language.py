"""Stage 3: contrast, masked language modelling and matching on pairs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from vlmo.folder.card import Usage
from vlmo.model.config import FusionStart
from vlmo.tasks.base import RunContext
from vlmo.tasks.retrieval import RETRIEVAL_PIPELINE, PairTask


@dataclass(frozen=True)
class VisionLanguageTask(PairTask):
    """Stage 3, contrast, masked language modelling and matching. Its models are measured as those for retrieval."""

    name: ClassVar[str] = "vision-language"
    title: ClassVar[str] = "stage 3, contrast, masked language modelling and matching"
    masks_words: ClassVar[bool] = True
    architectures = ("VLMoForPreTraining",)
    usage: ClassVar[Usage | None] = Usage(
        "holds every head of stage 3: contrast, matching and masked words; most people use its retrieval part",
        *RETRIEVAL_PIPELINE,
    )
    fusion_experts_from: FusionStart = "language"
    """Expert of the same layer that starts `vision_language` experts which the start folder lacks."""

    def objective(self, run: RunContext) -> nn.Module:
        """Return all three losses on pairs."""
        model = self.build_model(run.model)
        run.start(model, fusion_experts_from=self.fusion_experts_from)
        return self.pair_objective(run, model)
