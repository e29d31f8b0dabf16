"""Stage 2: masked language modelling on text alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from vlmo.data.examples import Examples, RowExamples
from vlmo.data.stream import StreamExamples
from vlmo.model import VLMoConfig, VLMoForMaskedLM
from vlmo.objectives.unimodal import LanguageObjective
from vlmo.tasks.base import RunContext, Task


@dataclass(frozen=True)
class LanguageStage(Task):
    """Stage 2, masked language modelling."""

    name: ClassVar[str] = "language"
    title: ClassVar[str] = "stage 2, masked language modelling"
    can_stream: ClassVar[bool] = True
    needs_image: ClassVar[bool] = False
    needs_caption: ClassVar[bool] = True
    freeze: bool = True
    """Keep attention and vision experts as stage 1 left them."""

    def build_model(self, settings: dict[str, Any]) -> VLMoForMaskedLM:
        """Return the backbone with a head over words."""
        return VLMoForMaskedLM(VLMoConfig(**settings))

    def objective(self, run: RunContext) -> nn.Module:
        """Return the loss of masked words."""
        model = self.build_model(run.model)
        run.start(model)
        return LanguageObjective(model, freeze=self.freeze)

    def examples(self, run: RunContext) -> Examples:
        """Return texts with masks."""
        return RowExamples(run.rows, **run.text_options())

    def stream_examples(self, run: RunContext) -> StreamExamples:
        """Return texts with masks."""
        return StreamExamples(**run.text_options())
