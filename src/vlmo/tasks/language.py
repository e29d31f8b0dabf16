"""Stage 2: masked language modeling on text alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn

from vlmo import model as models
from vlmo.data.masking import IGNORED
from vlmo.folder.card import Usage
from vlmo.losses.masked import accuracy, masked_loss
from vlmo.tasks.inputs import Reads
from vlmo.tasks.task import Losses, Objective, Task
from vlmo.types import Batch

if TYPE_CHECKING:
    from vlmo.model import VLMoForMaskedDataModeling, VLMoForMaskedLM


class LanguageObjective(Objective):
    """Stage 2: masked language modeling with attention and vision experts frozen.

    VLMo, "Stagewise Pre-Training".
    """

    def __init__(
        self, model: VLMoForMaskedLM | VLMoForMaskedDataModeling, *, freeze: bool = True
    ) -> None:
        super().__init__(model)
        if freeze:
            # Attention and vision experts stay as images have trained them.
            model.requires_grad_(requires_grad=False)
            model.mlm_head.requires_grad_(requires_grad=True)
            for parameter in models.language_stage_parameters(model):
                parameter.requires_grad_(True)

    def forward(self, batch: Batch) -> Losses:
        """Return `loss` (= `mlm`) and `mlm_accuracy`.

        Reads `mlm_input_ids`, `attention_mask` and `mlm_labels`.
        """
        masked = batch["mlm_labels"] != IGNORED
        # Masked words alone go through the head: (masked, vocabulary).
        encoded = self.model.vlmo.encode(
            None, batch["mlm_input_ids"], batch["attention_mask"], wanted=masked
        )
        logits = self.model.mlm_head(encoded.tokens)
        labels = batch["mlm_labels"].flatten().index_select(0, encoded.positions)
        loss = masked_loss(logits, labels)
        return {"loss": loss, "mlm": loss.detach(), "mlm_accuracy": accuracy(logits, labels)}


@dataclass(frozen=True)
class LanguageTask(Task):
    """Stage 2, masked language modeling.

    Attributes:
        freeze: Keep attention and vision experts as stage 1 left them.
    """

    name = "language"
    title = "stage 2, masked language modeling"
    reads = Reads(image=False, caption=True, masks_words=True, streams=True)
    architectures = ("VLMoForMaskedLM",)
    usage = Usage("fills in masked words", "fill-mask", '"a red [MASK]"')
    freeze: bool = True

    def step(self, model: VLMoForMaskedLM) -> nn.Module:
        """Return the loss of masked words."""
        return LanguageObjective(model, freeze=self.freeze)
