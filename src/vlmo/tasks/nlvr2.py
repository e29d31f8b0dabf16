"""NLVR2: is a sentence true of two images?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from PIL import Image
from torch import Tensor, nn

from vlmo.data.examples import Contents, Examples, RowExamples
from vlmo.data.rows import column, select_rows
from vlmo.evaluation.metrics import Metric, nlvr2_metrics
from vlmo.folder.card import Usage
from vlmo.tasks.evaluation_set import EvaluationSet
from vlmo.tasks.inputs import Accepts, Inputs, Reads
from vlmo.tasks.labels import check_task, eval_contents, label_settings, pair_logits
from vlmo.tasks.result import Prediction
from vlmo.tasks.task import RunContext, Task
from vlmo.types import Batch

if TYPE_CHECKING:
    from datasets import Dataset

    from vlmo.model import VLMoForVisualReasoning

_UNKNOWN = -1
_SNIPPET = """\
from PIL import Image
from vlmo import VLMoForVisualReasoning, VLMoProcessor

folder = "path/to/this/folder"
model = VLMoForVisualReasoning.from_pretrained(folder).eval()
processor = VLMoProcessor.from_pretrained(folder)
images = [Image.open("image.png"), Image.open("image.png")]  # left and right
inputs = processor(images=images, text="both images show a heart", return_tensors="pt")
inputs["pixel_values"] = inputs["pixel_values"][None]  # two images for the one sentence
result = bool(model(**inputs).logits.argmax())
"""


def reasoning_examples(
    dataset: Dataset, contents: Contents, *, labelled: bool = True
) -> RowExamples:
    """Return sentences about two images, which have augmentations of their own; `labels` 1 is true, 0 false.

    Raises:
        ValueError: Rows of another task or, for examples with `labels`, a row without.
    """
    check_task(dataset, "REASONING_FEATURES", task="sentences about two images")
    labels = torch.tensor(check_truth(dataset)).__getitem__ if labelled else None
    return RowExamples(dataset, contents, columns=("image", "second_image"), labels=labels)


def check_truth(dataset: Dataset, *, needs_all: bool = True) -> list[int]:
    """Return the label of each sentence: 1 true, 0 false, -1 not known, where not all are needed; else ValueError."""
    labels: list[int] = column(dataset, "label")
    for row, label in enumerate(labels):
        if label not in ({0, 1} if needs_all else {0, 1, _UNKNOWN}):
            name = column(dataset, "image_id")[row]
            known = "is not known" if label == _UNKNOWN else f"is {label}"
            raise ValueError(
                f"the label of {name!r} {known}; expected 1 (true) or 0 (false): give a part with labels"
            )
    return labels


@dataclass(frozen=True)
class ReasoningSet(EvaluationSet):
    """Sentences of a split; an output is the prediction for a sentence."""

    task: ClassVar[str] = "nlvr2"
    hub_task: ClassVar[str] = "visual-reasoning"
    reads = Reads(caption=True)

    @classmethod
    def check_rows(cls, rows: Dataset, _source: str) -> None:
        """Raise ValueError for rows that are no sentences about two images, and for labels that are none."""
        check_task(rows, "REASONING_FEATURES", task="sentences about two images")
        check_truth(rows, needs_all=False)

    def predict(self, model: Any, rows: range) -> list[Prediction]:
        """Return whether each sentence is true; `confidence` is the answer's share of the softmax."""
        chosen = select_rows(self.rows, rows)
        logits = pair_logits(
            model, reasoning_examples(chosen, eval_contents(self.processor), labelled=False)
        )
        best = logits.softmax(dim=-1).max(dim=-1)
        predictions = list[Prediction]()
        columns = [
            column(chosen, name) for name in ("image_id", "captions", "sentence_group", "label")
        ]
        found = zip(*columns, best.values.tolist(), best.indices.tolist(), strict=True)
        for name, captions, group, label, share, number in found:
            row = {"identifier": name, "sentence": captions[0], "prediction": number == 1}
            row["confidence"] = round(share, 4)
            predictions.append(
                row | ({"label": bool(label), "group": group} if label in {0, 1} else {})
            )
        return predictions

    def metrics(self, outputs: list[Prediction]) -> list[Metric]:
        """Return accuracy and consistency."""
        right = [row["prediction"] == row["label"] if "label" in row else None for row in outputs]
        return nlvr2_metrics([row.get("group", "") for row in outputs], right)


class ReasoningObjective(nn.Module):
    """NLVR2: is a sentence about two images true? (VLMo, "Vision-Language Classification")."""

    def __init__(self, model: VLMoForVisualReasoning) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return `loss` (= `nlvr2`) and `nlvr2_accuracy`; reads as `QuestionObjective`, with two images a row."""
        output = self.model(
            batch["pixel_values"], batch["input_ids"], batch["attention_mask"], batch["labels"]
        )
        right = output.logits.argmax(dim=-1) == batch["labels"]
        return {
            "loss": output.loss,
            "nlvr2": output.loss.detach(),
            "nlvr2_accuracy": right.float().mean(),
        }


@dataclass(frozen=True)
class NLVR2Task(Task):
    """Fine-tuning on sentences about two images, NLVR2."""

    name: ClassVar[str] = "nlvr2"
    title: ClassVar[str] = "fine-tuning on sentences about two images (NLVR2)"
    reads = Reads(caption=True)
    evaluation: ClassVar[type[EvaluationSet] | None] = ReasoningSet
    num_classes: ClassVar[int | None] = 2
    architectures = ("VLMoForVisualReasoning",)
    usage: ClassVar[Usage | None] = Usage(
        "tells whether a sentence about two images is true", snippet=_SNIPPET
    )
    accepts = Accepts("two images after --image and one --text", images=(2, 2), texts=(1, 1))
    head: ClassVar[str] = "reasoning_head"
    head_lr_scale: float = 1.0
    """Factor on the learning rate of the head, which starts at random."""

    def build_model(self, settings: dict[str, Any]) -> Any:
        """Return the fusion encoder with a head for two images; the second one has a modality type of its own."""
        own: dict[str, Any] = {"num_modality_types": 3} | label_settings(["false", "true"])
        return super().build_model(settings | own)

    def step(self, model: Any) -> nn.Module:
        """Return the loss of true against false."""
        return ReasoningObjective(model)

    def examples(self, run: RunContext) -> Examples:
        """Return sentences with their images and labels."""
        return reasoning_examples(run.rows, self.contents(run))

    def batch_without_data(self, batch: Batch) -> Batch:
        """Return sentences with two images each."""
        return {**batch, "pixel_values": batch["pixel_values"][:, None].expand(-1, 2, -1, -1, -1)}

    @classmethod
    def answer(
        cls, model: Any, processor: Any, images: Sequence[Image.Image], inputs: Inputs
    ) -> list[Prediction]:
        """Return whether the sentence is true, with its share of the softmax."""
        encoded: Any = processor(images=list(images), text=inputs.texts[0], return_tensors="pt").to(
            model.device
        )
        encoded["pixel_values"] = encoded["pixel_values"][None]
        shares = model(**encoded).logits[0].float().softmax(dim=-1).tolist()
        return [{"prediction": shares[1] > shares[0], "confidence": round(max(shares), 4)}]
