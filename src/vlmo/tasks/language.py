"""Stage 2: masked language modeling on text alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor, nn

from vlmo import model as models
from vlmo.folder.card import Usage
from vlmo.losses.masked import accuracy, masked_loss
from vlmo.tasks.inputs import Reads
from vlmo.tasks.task import Task
from vlmo.types import Batch

if TYPE_CHECKING:
    from vlmo.model import VLMoForMaskedLM


class LanguageObjective(nn.Module):
    """Stage 2: masked language modeling with attention and vision experts frozen (VLMo, "Stagewise Pre-Training")."""

    def __init__(self, model: VLMoForMaskedLM, *, freeze: bool = True) -> None:
        super().__init__()
        self.model = model
        if freeze:
            model.requires_grad_(requires_grad=False)
            for parameter in [
                *models.language_stage_parameters(model),
                *model.mlm_head.parameters(),
            ]:
                parameter.requires_grad_(True)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return `loss` (= `mlm`) and `mlm_accuracy`; reads `mlm_input_ids`, `attention_mask` and `mlm_labels`."""
        masked = batch["mlm_labels"] != -100
        encoded = self.model.vlmo.encode(
            None, batch["mlm_input_ids"], batch["attention_mask"], wanted=masked
        )
        logits = self.model.mlm_head(encoded.tokens)
        labels = batch["mlm_labels"][masked]
        loss = masked_loss(logits, labels)
        return {"loss": loss, "mlm": loss.detach(), "mlm_accuracy": accuracy(logits, labels)}


@dataclass(frozen=True)
class LanguageTask(Task):
    """Stage 2, masked language modeling."""

    name: ClassVar[str] = "language"
    title: ClassVar[str] = "stage 2, masked language modeling"
    reads = Reads(image=False, caption=True, masks_words=True, streams=True)
    architectures = ("VLMoForMaskedLM",)
    usage: ClassVar[Usage | None] = Usage("fills in masked words", "fill-mask", '"a red [MASK]"')
    freeze: bool = True
    """Keep attention and vision experts as stage 1 left them."""

    def step(self, model: Any) -> nn.Module:
        """Return the loss of masked words."""
        return LanguageObjective(model, freeze=self.freeze)
