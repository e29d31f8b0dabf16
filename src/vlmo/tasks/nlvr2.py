"""NLVR2: is a sentence true of two images?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from PIL import Image
from torch import nn

from vlmo.data.examples import Contents, Examples, RowExamples
from vlmo.data.rows import arrow_table, select_rows
from vlmo.evaluation.metrics import Metric, nlvr2_metrics
from vlmo.folder.card import Usage
from vlmo.tasks.evaluation_set import EvaluationSet
from vlmo.tasks.inputs import Accepts, Inputs, Reads
from vlmo.tasks.labels import (
    check_task,
    checked_labels,
    eval_contents,
    label_settings,
    pair_logits,
)
from vlmo.tasks.result import Prediction
from vlmo.tasks.task import Losses, Objective, RunContext, Settings, Task
from vlmo.types import Batch

if TYPE_CHECKING:
    from datasets import Dataset

    from vlmo.model import VLMoForVisualReasoning
    from vlmo.processing import VLMoProcessor

# Label of a sentence whose truth is not public.
_UNKNOWN = -1
_EXPECTED = "1 (true) or 0 (false): give a part with labels"
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
    dataset: Dataset, contents: Contents, *, labeled: bool = True
) -> RowExamples:
    """Return sentences about two images, which are augmented apart; `labels` 1 is true, 0 false.

    Raises:
        ValueError: Rows of another task or, for examples with `labels`, a row without.
    """
    check_task(dataset, "REASONING_FEATURES", task="sentences about two images")
    labels = None
    if labeled:
        labels = checked_labels(dataset, (0, 1), expected=_EXPECTED).__getitem__
    return RowExamples(dataset, contents, columns=("image", "second_image"), labels=labels)


class ReasoningSet(EvaluationSet):
    """Sentences of a split; an output is the prediction for a sentence."""

    task = "nlvr2"
    hub_task = "visual-reasoning"
    reads = Reads(caption=True)

    @classmethod
    def check_rows(cls, rows: Dataset, _source: str) -> None:
        """Raise ValueError for rows that are no sentences about two images, or wrong labels."""
        check_task(rows, "REASONING_FEATURES", task="sentences about two images")
        checked_labels(rows, (0, 1, _UNKNOWN), expected=_EXPECTED)

    def predict(self, model: VLMoForVisualReasoning, rows: range) -> list[Prediction]:
        """Return whether the sentences are true; `confidence` is the answer's share."""
        dataset = select_rows(self.rows, rows)
        examples = reasoning_examples(dataset, eval_contents(self.processor), labeled=False)
        # Shares and labels of the likelier answer, both (rows,).
        best = pair_logits(model, examples).softmax(dim=-1).max(dim=-1)
        columns = ["image_id", "captions", "sentence_group", "label"]
        predictions = []
        for sentence, share, number in zip(
            arrow_table(dataset, columns).to_pylist(),
            best.values.tolist(),
            best.indices.tolist(),
            strict=True,
        ):
            row: Prediction = {
                "identifier": sentence["image_id"],
                "sentence": sentence["captions"][0],
                "prediction": number == 1,
                "confidence": round(share, 4),
            }
            # Rows of a group share their sentence, for consistency.
            if sentence["label"] != _UNKNOWN:
                row["label"] = bool(sentence["label"])
                row["group"] = sentence["sentence_group"]
            predictions.append(row)
        return predictions

    def metrics(self, outputs: list[Prediction]) -> list[Metric]:
        """Return accuracy and consistency."""
        groups = [row.get("group", "") for row in outputs]
        right = [row["prediction"] == row["label"] if "label" in row else None for row in outputs]
        return nlvr2_metrics(groups, right)


class ReasoningObjective(Objective):
    """NLVR2: is a sentence about two images true? (VLMo, "Vision-Language Classification")."""

    def forward(self, batch: Batch) -> Losses:
        """Return `loss` (= `nlvr2`) and `nlvr2_accuracy`; a row of `pixel_values` is two images."""
        labels = batch["labels"]
        output = self.model(
            batch["pixel_values"], batch["input_ids"], batch["attention_mask"], labels
        )
        accuracy = (output.logits.argmax(dim=-1) == labels).float().mean()
        return {"loss": output.loss, "nlvr2": output.loss.detach(), "nlvr2_accuracy": accuracy}


@dataclass(frozen=True)
class NLVR2Task(Task):
    """Fine-tuning on sentences about two images, NLVR2.

    Attributes:
        head_lr_scale: Factor on the learning rate of the head, which starts at random.
    """

    name = "nlvr2"
    title = "fine-tuning on sentences about two images (NLVR2)"
    reads = Reads(caption=True)
    evaluation = ReasoningSet
    num_classes = 2
    architectures = ("VLMoForVisualReasoning",)
    usage = Usage("tells whether a sentence about two images is true", snippet=_SNIPPET)
    accepts = Accepts("two images after --image and one --text", images=(2, 2), texts=(1, 1))
    head = "reasoning_head"
    head_lr_scale: float = 1.0

    def build_model(self, settings: Settings) -> VLMoForVisualReasoning:
        """Return the fusion encoder with a head for two images."""
        # The second image has a modality type of its own.
        # Type 0 is text, 1 the first image.
        settings = settings | {"num_modality_types": 3} | label_settings(["false", "true"])
        return super().build_model(settings)

    def step(self, model: VLMoForVisualReasoning) -> nn.Module:
        """Return the loss of true against false."""
        return ReasoningObjective(model)

    def examples(self, run: RunContext) -> Examples:
        """Return sentences with their images and labels."""
        return reasoning_examples(run.rows, self.contents(run))

    def batch_without_data(self, batch: Batch) -> Batch:
        """Return sentences with two images."""
        # Both images of a row: (rows, 2, channel, height, width).
        return {**batch, "pixel_values": batch["pixel_values"][:, None].expand(-1, 2, -1, -1, -1)}

    @classmethod
    def answer(
        cls,
        model: VLMoForVisualReasoning,
        processor: VLMoProcessor,
        images: Sequence[Image.Image],
        inputs: Inputs,
    ) -> list[Prediction]:
        """Return whether the sentence is true, with its share of the softmax."""
        encoded = processor(images=list(images), text=inputs.texts[0], return_tensors="pt")
        encoded = encoded.to(model.device)
        # Two images for the one sentence: (1, 2, 3, height, width).
        encoded["pixel_values"] = encoded["pixel_values"][None]
        # Class 0 is false, class 1 true.
        false, true = model(**encoded).logits[0].float().softmax(dim=-1).tolist()
        return [{"prediction": true > false, "confidence": round(max(true, false), 4)}]
