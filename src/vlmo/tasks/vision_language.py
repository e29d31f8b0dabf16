"""Stage 3: contrast, masked language modelling and matching on pairs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from vlmo.data.examples import Examples, RowExamples
from vlmo.data.stream import StreamExamples
from vlmo.model import VLMoConfig, VLMoForPreTraining
from vlmo.model.stages import FusionStart
from vlmo.objectives.vision_language import VisionLanguageConfig, VisionLanguageObjective
from vlmo.tasks.base import RunContext, Task
from vlmo.tasks.evaluation_set import EvaluationSet
from vlmo.tasks.retrieval import PairSet


@dataclass(frozen=True)
class VisionLanguageStage(Task):
    """Stage 3, contrast, masked language modelling and matching. Its models are measured as those for retrieval."""

    name: ClassVar[str] = "vision-language"
    title: ClassVar[str] = "stage 3, contrast, masked language modelling and matching"
    can_stream: ClassVar[bool] = True
    needs_caption: ClassVar[bool] = True
    evaluation: ClassVar[type[EvaluationSet] | None] = PairSet
    losses: VisionLanguageConfig = VisionLanguageConfig()
    """Weights and switches."""
    fusion_experts_from: FusionStart = "language"
    """Expert of the same layer that starts `vision_language` experts which the start folder lacks."""

    def build_model(self, settings: dict[str, Any]) -> VLMoForPreTraining:
        """Return the backbone with the heads of all three losses."""
        return VLMoForPreTraining(VLMoConfig(**settings))

    def objective(self, run: RunContext) -> nn.Module:
        """Return all three losses on pairs."""
        model = self.build_model(run.model)
        run.start(model, fusion_experts_from=self.fusion_experts_from)
        return VisionLanguageObjective(model, config=self.losses)

    def examples(self, run: RunContext) -> Examples:
        """Return pairs with masks over the text."""
        return RowExamples(run.rows, **run.text_options() | run.image_options())

    def stream_examples(self, run: RunContext) -> StreamExamples:
        """Return pairs with masks over the text."""
        return StreamExamples(**run.text_options() | run.stream_options())
