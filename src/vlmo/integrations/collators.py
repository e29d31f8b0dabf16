"""Data collators: rows of a Hugging Face data set to batches for `transformers.Trainer`, one for each model class.

An image is a PIL image, a path, or the bytes and path of a data set that does not decode. What is sampled (a caption,
masks) is a pure function of `seed`, the trainer's epoch and the content of the batch: an evaluation repeats itself, and
a run that is resumed goes on as it would have. Where the epoch is not known, see docs/interoperability.md.
"""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import blake2b
from os import PathLike
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from vlmo.data.decoding import ImageCell, decode_image, decode_mask
from vlmo.data.masking import MaskingVocabulary, WordMaskConfig, whole_word_mask
from vlmo.processing.answers import soft_targets

Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class DataCollator(ABC):
    """Collator of rows to a batch; its processor is the model's, an image processor where that reads no text."""

    processor: Any
    seed: int = field(default=0, kw_only=True)

    @abstractmethod
    def __call__(self, rows: Rows) -> dict[str, Any]:
        """Return the arguments of the model's `forward`, with labels; ValueError for a missing column or bad value."""

    def images(self, rows: Rows, *, name: str = "image") -> list[Image.Image]:
        """Return the images of a column; the processor puts transparency on white."""
        cells = [(value, _cell(value)) for value in _column(rows, name)]
        return [value if cell is None else decode_image(cell) for value, cell in cells]

    def texts(self, rows: Rows) -> list[str]:
        """Return the `text` of each row, or one of its `captions`; ValueError for a row without one."""
        lists = [
            [value] if isinstance(value, str) else list(value)
            for value in _column(rows, "text", "captions")
        ]
        if not all(map(all, lists)) or not all(lists):
            raise ValueError(
                "a row has an empty text, or an empty list of captions; leave such rows out"
            )
        generator = self.generator(repr(lists).encode())
        return [texts[int(generator.integers(len(texts)))] for texts in lists]

    def pixels(
        self, rows: Rows, *, name: str = "image"
    ) -> Float[Tensor, "row channel height width"]:
        """Return `pixel_values` of the images of a column."""
        return self.processor(images=self.images(rows, name=name), return_tensors="pt")[
            "pixel_values"
        ]

    def generator(self, content: bytes) -> np.random.Generator:
        """Return a generator that depends on the seed, the epoch and the content of a batch."""
        return np.random.default_rng(
            [self.seed, _epoch(), *blake2b(content, digest_size=16).digest()]
        )


@dataclass(frozen=True)
class DataCollatorForRetrieval(DataCollator):
    """Pairs for `VLMoForImageTextRetrieval`: `image`, and `text` or `captions`; the other rows are the negatives."""

    def __call__(self, rows: Rows) -> dict[str, Any]:
        """Return images and texts, and `return_loss`."""
        inputs = self.processor(
            images=self.images(rows), text=self.texts(rows), return_tensors="pt"
        )
        return {**inputs, "return_loss": True}


@dataclass(frozen=True)
class DataCollatorForVisualQuestionAnswering(DataCollator):
    """Questions for `VLMoForVisualQuestionAnswering`: `image`, `question`, and answers in one of two forms.

    These are `answer_labels` with `answer_scores`, numbers and scores; or `answers`, the words of one or ten
    annotators, of which those that the model's `label2id` lacks score nothing.
    """

    label2id: Mapping[str, int]

    def __call__(self, rows: Rows) -> dict[str, Any]:
        """Return images and questions, and the score of each answer as `labels`."""
        questions = [str(question) for question in _column(rows, "question")]
        inputs = self.processor(images=self.images(rows), text=questions, return_tensors="pt")
        labels = torch.zeros(len(rows), len(self.label2id))
        for row, target in zip(rows, labels, strict=True):
            if "answer_labels" in row:
                numbers = row["answer_labels"]
                scores = row["answer_scores"]
            else:
                (answers,) = _column([row], "answers")
                numbers, scores = soft_targets(answers, numbers=self.label2id)
                scores = [1.0] * len(numbers) if len(answers) == 1 else scores
            target[torch.tensor(numbers, dtype=torch.int64)] = torch.tensor(scores)
        return {**inputs, "labels": labels}


@dataclass(frozen=True)
class DataCollatorForVisualReasoning(DataCollator):
    """Sentences for `VLMoForVisualReasoning`: `image`, `second_image`, a text, and `label` (1 true, 0 false)."""

    def __call__(self, rows: Rows) -> dict[str, Any]:
        """Return `pixel_values` of two images a row, the sentences, and `labels`."""
        pixels = torch.stack(
            [self.pixels(rows, name=name) for name in ("image", "second_image")], dim=1
        )
        encoded = self.processor(text=self.texts(rows), return_tensors="pt")
        return {
            "pixel_values": pixels,
            **encoded,
            "labels": torch.tensor(_column(rows, "label")).long(),
        }


@dataclass(frozen=True)
class DataCollatorForImageClassification(DataCollator):
    """Images for `VLMoForImageClassification`: `image` and `label`, the number of its class."""

    def __call__(self, rows: Rows) -> dict[str, Any]:
        """Return images and `labels`."""
        return {"pixel_values": self.pixels(rows), "labels": torch.tensor(_column(rows, "label"))}


@dataclass(frozen=True)
class DataCollatorForSemanticSegmentation(DataCollator):
    """Images for `VLMoForSemanticSegmentation`: `image` and `mask`, class numbers, 255 where none counts."""

    def __call__(self, rows: Rows) -> dict[str, Any]:
        """Return images and `labels` of their pixels, both as squares of the processor's size."""
        images = self.images(rows)
        masks = []
        pixels = self.processor(images=images, return_tensors="pt")["pixel_values"]
        height, width = pixels.shape[-2:]
        for image, value in zip(images, _column(rows, "mask"), strict=True):
            mask = (
                np.asarray(value, dtype=np.int32)
                if (cell := _cell(value)) is None
                else decode_mask(cell)
            )
            if mask.shape != image.size[::-1]:
                raise ValueError(
                    f"a mask has shape {mask.shape}; expected that of its image, {image.size[::-1]}"
                )
            resized = Image.fromarray(mask).resize((width, height), Image.Resampling.NEAREST)
            masks.append(torch.from_numpy(np.array(resized)).long())
        return {"pixel_values": pixels, "labels": torch.stack(masks)}


@dataclass(frozen=True)
class DataCollatorForMaskedLM(DataCollator):
    """Texts for `VLMoForMaskedLM`, with whole words masked; with their images where the rows have `image`."""

    words: WordMaskConfig = field(default_factory=WordMaskConfig)

    @cached_property
    def _vocabulary(self) -> MaskingVocabulary:
        if self.words.of_captions:
            raise ValueError(
                "words.of_captions is True, which is for captioning's recipes; leave it out"
            )
        return MaskingVocabulary.of(self.processor.tokenizer, only=self.words.only)

    def __call__(self, rows: Rows) -> dict[str, Any]:
        """Return masked texts, and the true ids at masked places as `labels` (-100 elsewhere)."""
        images = {"images": self.images(rows)} if rows[0].get("image") is not None else {}
        inputs = self.processor(text=self.texts(rows), return_tensors="pt", **images)
        ids = inputs["input_ids"].numpy()
        generator = self.generator(ids.tobytes())
        options: dict[str, Any] = {
            "vocabulary": self._vocabulary,
            "config": self.words,
            "generator": generator,
        }
        masked, labels = map(
            np.stack, zip(*(whole_word_mask(text, **options) for text in ids), strict=True)
        )
        return {**inputs, "input_ids": torch.from_numpy(masked), "labels": torch.from_numpy(labels)}


def _column(rows: Rows, *names: str) -> list[Any]:
    name = next((name for name in names if name in rows[0]), None)
    if name is None or any(row.get(name) is None for row in rows):
        given = (
            f"the rows have {', '.join(rows[0]) or 'no columns'}"
            if name is None
            else f"a row has no {name}"
        )
        raise ValueError(
            f"{given}; expected {' or '.join(names)} in each: rename columns with rename_column, and give"
            " TrainingArguments(remove_unused_columns=False), without which the trainer drops them"
        )
    return [row[name] for row in rows]


def _cell(value: Any) -> ImageCell | None:
    if isinstance(value, Mapping):
        return cast("ImageCell", value)
    return {"bytes": None, "path": str(value)} if isinstance(value, str | PathLike) else None


def _epoch() -> int:
    """Return the epoch of the data loader that accelerate, and so the `Trainer`, is reading; 0 for other loaders."""
    accelerate = sys.modules.get("accelerate.state")  # without which there is no trainer
    return (
        0
        if accelerate is None
        else getattr(accelerate.GradientState().active_dataloader, "iteration", 0)
    )
