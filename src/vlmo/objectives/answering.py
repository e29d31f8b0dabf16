"""Fine-tuning of the fusion encoder: questions about a picture (VQA), sentences about two (NLVR2)."""

from __future__ import annotations

from torch import Tensor, nn

from vlmo.model import VLMoForVisualQuestionAnswering, VLMoForVisualReasoning
from vlmo.types import Batch


class QuestionObjective(nn.Module):
    """Scores every answer to a question (VLMo, "Vision-Language Classification")."""

    def __init__(self, model: VLMoForVisualQuestionAnswering) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """`loss` (= `vqa`) and `vqa_score`, the labels' own score of the best answer.

        Reads `pixel_values`, `input_ids`, `attention_mask` and `labels`. Every process has equally many rows, so that
        the mean over processes of each value is that of the global batch.
        """
        labels = batch["labels"]
        output = self.model(
            pixel_values=batch["pixel_values"],
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            labels=labels,
        )
        best = output.logits.argmax(dim=-1, keepdim=True)
        return {
            "loss": output.loss,
            "vqa": output.loss.detach(),
            "vqa_score": labels.gather(1, best).mean(),
        }


class ReasoningObjective(nn.Module):
    """Tells whether a sentence about two pictures is true (VLMo, "Vision-Language Classification")."""

    def __init__(self, model: VLMoForVisualReasoning) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """`loss` (= `nlvr2`) and `nlvr2_accuracy`; reads what `QuestionObjective` does, with two pictures a row."""
        output = self.model(
            pixel_values=batch["pixel_values"],
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            labels=batch["labels"],
        )
        right = output.logits.argmax(dim=-1) == batch["labels"]
        return {"loss": output.loss, "nlvr2": output.loss.detach(), "nlvr2_accuracy": right.float().mean()}
