"""NLVR2: is a sentence true of two images?"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from datasets import Dataset
from torch import nn

from vlmo.data.examples import Example, Examples, Images, ImageTransform, Texts, collate
from vlmo.data.sampler import Key
from vlmo.data.schema import REASONING_FEATURES, column, select_rows
from vlmo.evaluation import nlvr2
from vlmo.model import VLMoConfig, VLMoForVisualReasoning
from vlmo.model.stages import FusionStart
from vlmo.objectives.downstream import ReasoningObjective
from vlmo.processing import VLMoProcessor
from vlmo.tasks.base import (
    EvaluationSet,
    Inputs,
    RunContext,
    Task,
    batch_of,
    check_logits,
    check_task,
    eval_options,
    head_lr_scale,
    label_settings,
    open_image,
    read_split,
)
from vlmo.tasks.result import Prediction
from vlmo.types import Batch

if TYPE_CHECKING:
    from transformers import BertTokenizer

_UNKNOWN = -1
_ROWS = "sentences about two images"
_MEANINGS = {
    nlvr2.ACCURACY: "share of sentences that are rightly judged true or false of their two images",
    nlvr2.CONSISTENCY: "share of sentences that are judged rightly of all pairs of images that share them",
}


class ReasoningExamples:
    """Sentences about two images, which have augmentations of their own; `labels` 1 is true, 0 false.

    Args:
        dataset: Rows of `REASONING_FEATURES`.
        transform: Makes pixel values.
        tokenizer: The processor's.
        seed: The run's.
        labelled: False leaves `labels` out.
        max_length: Tokens that are kept of a sentence; None: the tokenizer's own limit.
        cache_images: Decode every image now and keep it.

    Raises:
        ValueError: Rows of another task or, for examples with `labels`, a row without.
    """

    def __init__(
        self,
        dataset: Dataset,
        *,
        transform: ImageTransform,
        tokenizer: BertTokenizer,
        seed: int,
        labelled: bool = True,
        max_length: int | None = None,
        cache_images: bool = False,
    ) -> None:
        check_task(dataset, REASONING_FEATURES, task=_ROWS)
        self._labels = check_truth(dataset) if labelled else None
        captions = column(dataset, "captions")
        self._texts = Texts(captions, tokenizer=tokenizer, seed=seed, max_length=max_length, mlm_probability=None)
        self._images = [
            Images(dataset, transform=transform, seed=seed, cache=cache_images, column=name)
            for name in ("image", "second_image")
        ]

    def __len__(self) -> int:
        return len(self._texts)

    def __getitem__(self, key: Key) -> Example:
        epoch, row = key
        example = self._texts.example(row, epoch=epoch)
        example["sample_id"] = row
        example["image_id"] = self._images[0].image_id(row)
        example["pixel_values"] = torch.stack([side.pixel_values(row, epoch=epoch) for side in self._images])
        if self._labels is not None:
            example["labels"] = torch.tensor(self._labels[row], dtype=torch.int64)
        return example

    def collate(self, examples: list[Example]) -> Batch:
        """Return `pixel_values` (batch, 2, 3, height, width), and the other keys of `QuestionExamples.collate`."""
        return collate(examples, pad_token_id=self._texts.pad_token_id)


def check_truth(dataset: Dataset, *, needs_all: bool = True) -> list[int]:
    """Return the label of each sentence: 1 true, 0 false.

    Args:
        needs_all: Refuse -1, which stands for a label that is not known.

    Raises:
        ValueError: A label is something else.
    """
    labels: list[int] = column(dataset, "label")
    for row, label in enumerate(labels):
        if label not in ({0, 1} if needs_all else {0, 1, _UNKNOWN}):
            name = column(dataset, "image_id")[row]
            known = "is not known" if label == _UNKNOWN else f"is {label}"
            raise ValueError(
                f"the label of {name!r} {known}; expected 1 (true) or 0 (false). Give a part of the set with labels"
            )
    return labels


@dataclass(frozen=True)
class ReasoningSet(EvaluationSet):
    """Sentences of a split; an output is the prediction for a sentence."""

    task: ClassVar[str] = "nlvr2"
    hub_task: ClassVar[str] = "visual-reasoning"

    @cached_property
    def sentences(self) -> list[nlvr2.Sentence]:
        """The sentences with their labels."""
        names = ("image_id", "captions", "sentence_group", "label")
        return [
            nlvr2.Sentence(identifier, captions[0], group=group, label=bool(label) if label in {0, 1} else None)
            for identifier, captions, group, label in zip(*(column(self.rows, name) for name in names), strict=True)
        ]

    def predict(self, model: Any, rows: range) -> list[Prediction]:
        """Return the judgement of each sentence; `confidence` is the share of "true" in the softmax."""
        assert self.processor is not None
        chosen = select_rows(self.rows, rows)
        examples = ReasoningExamples(chosen, **eval_options(self.processor), labelled=False)
        batch = batch_of(examples, range(len(rows)))
        logits = check_logits(
            model(
                pixel_values=batch["pixel_values"].to(model.device),
                input_ids=batch["input_ids"].to(model.device),
                attention_mask=batch["attention_mask"].to(model.device),
            ).logits
        )
        shares, best = logits.softmax(dim=-1)[:, 1].tolist(), logits.argmax(dim=-1).tolist()
        predictions: list[Prediction] = []
        for row, share, number in zip(rows, shares, best, strict=True):
            sentence = self.sentences[row]
            known = {} if sentence.label is None else {"label": sentence.label, "group": sentence.group}
            predictions.append(
                {
                    "identifier": sentence.identifier,
                    "sentence": sentence.sentence,
                    "prediction": number == 1,
                    "confidence": round(share, 4),
                    **known,
                }
            )
        return predictions

    def metrics(self, outputs: list[Prediction]) -> dict[str, float]:
        """Return accuracy and consistency."""
        return nlvr2.nlvr2_metrics(self.sentences, [prediction["prediction"] for prediction in outputs])

    def chance(self, outputs: list[Prediction] | None = None) -> dict[str, float]:
        """Return the metrics of a coin."""
        del outputs
        return nlvr2.guessed_metrics(self.sentences)

    def meaning(self, metric: str) -> str:
        """Return a sentence about a metric."""
        return _MEANINGS[metric]


@dataclass(frozen=True)
class ReasoningStage(Task):
    """Fine-tuning on sentences about two images, NLVR2."""

    name: ClassVar[str] = "nlvr2"
    title: ClassVar[str] = "fine-tuning on sentences about two images (NLVR2)"
    needs_caption: ClassVar[bool] = True
    can_evaluate: ClassVar[bool] = True
    num_classes: ClassVar[int | None] = 2
    models = (VLMoForVisualReasoning,)
    recipe: ClassVar[str] = "easy-vqa-pairs"
    inputs: ClassVar[str] = "two images after --image and one --text"
    submits: ClassVar[bool] = True
    head_lr_scale: float = 1.0
    """Factor on the learning rate of the head, which starts at random."""
    fusion_experts_from: FusionStart = "language"
    """Expert of the same layer that starts `vision_language` experts which the start folder lacks."""

    def build_model(self, settings: dict[str, Any]) -> VLMoForVisualReasoning:
        """Return the fusion encoder with a head for two images; the second one has a modality type of its own."""
        own: dict[str, Any] = {"num_modality_types": 3} | label_settings(["false", "true"])
        return VLMoForVisualReasoning(VLMoConfig(**settings | own))

    def objective(self, run: RunContext) -> nn.Module:
        """Return the loss of true against false."""
        model = self.build_model(run.model)
        run.start(model, fusion_experts_from=self.fusion_experts_from)
        return ReasoningObjective(model)

    def examples(self, run: RunContext) -> Examples:
        """Return sentences with their images and labels."""
        return ReasoningExamples(run.rows, **run.image_options(), tokenizer=run.text_processor.tokenizer)

    def lr_scale(self, model: nn.Module) -> dict[str, float]:
        """Return the factor of the head."""
        return head_lr_scale(model, head="reasoning_head", scale=self.head_lr_scale)

    @classmethod
    def read(
        cls, source: str, *, split: str, processor: VLMoProcessor | None, quarantine: Path, limit: int | None = None
    ) -> ReasoningSet:
        """Return the valid sentences of a split."""
        rows = read_split(
            source,
            split=split,
            limit=limit,
            quarantine=quarantine,
            check_columns=lambda rows: check_task(rows, REASONING_FEATURES, task=_ROWS),
            check_values=lambda rows: check_truth(rows, needs_all=False),
        )
        return ReasoningSet(rows, source=source, split=split, processor=processor)

    @classmethod
    def submission(cls, predictions: Sequence[Prediction]) -> str:
        """Return CSV without a headline: identifier, then True or False."""
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows((row["identifier"], row["prediction"]) for row in predictions)
        return text.getvalue()

    @classmethod
    def accepts(cls, inputs: Inputs) -> bool:
        """Return True for two images with one sentence."""
        return len(inputs.images) == 2 and len(inputs.texts) == 1 and inputs.question is None

    @classmethod
    def predict(
        cls,
        folder: str | Path,
        inputs: Inputs,
        *,
        top: int = 5,
        save: str | Path | None = None,
        device: str | None = None,
    ) -> list[Prediction]:
        """Return the judgement of the sentence, with the model's share of "true".

        Raises:
            ValueError: The folder holds no such model, the sentence is empty, or an image cannot be read.
        """
        del top, save
        (sentence,) = inputs.texts
        if not sentence.strip():
            raise ValueError("the sentence is empty; give one about two images")
        images = [open_image(image) for image in inputs.images]
        model, processor = cls.load(folder, device=device)
        assert processor is not None
        encoded: Any = processor(images=images, text=sentence, return_tensors="pt").to(model.device)
        encoded["pixel_values"] = encoded["pixel_values"][None]
        with torch.inference_mode():
            shares = model(**encoded).logits[0].float().softmax(dim=-1).tolist()
        return [{"prediction": shares[1] > shares[0], "confidence": round(shares[1], 4)}]
