"""Stage 2: masked language modelling on text alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from vlmo.folder.card import Usage
from vlmo.objectives.unimodal import LanguageObjective
from vlmo.tasks.base import RunContext, Task
from vlmo.tasks.costs import Pass, SampleSizes, Work, encode, masked_words


@dataclass(frozen=True)
class LanguageTask(Task):
    """Stage 2, masked language modelling."""

    name: ClassVar[str] = "language"
    title: ClassVar[str] = "stage 2, masked language modelling"
    can_stream: ClassVar[bool] = True
    needs_image: ClassVar[bool] = False
    needs_caption: ClassVar[bool] = True
    masks_words: ClassVar[bool] = True
    architectures = ("VLMoForMaskedLM",)
    usage: ClassVar[Usage | None] = Usage("fills in masked words", "fill-mask", '"a red [MASK]"')
    freeze: bool = True
    """Keep attention and vision experts as stage 1 left them."""

    def objective(self, run: RunContext) -> nn.Module:
        """Return the loss of masked words."""
        model = self.build_model(run.model)
        run.start(model)
        return LanguageObjective(model, freeze=self.freeze)

    def work(self, model: Any, sample: SampleSizes) -> Work:
        """Return the work of the text encoder, and of the head on masked words; frozen parts are marked as such."""
        LanguageObjective(model, freeze=self.freeze)
        flops, kept = masked_words(model.config, sample.masked)
        passes = (Pass((sample.text,), model.config.num_hidden_layers),)
        return Work(model, sum(encode(model, text=sample.text)) + flops, kept, passes)
