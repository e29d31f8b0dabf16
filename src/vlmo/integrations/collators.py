"""Data collators: rows of a Hugging Face data set to batches for `transformers.Trainer`.

An image is a PIL image, a path, or the bytes and path of a data set that does not decode. Captions
and masks are sampled by a pure function of `seed`, the trainer's epoch and the content of the
batch: an evaluation repeats itself, and a run that is resumed goes on as it would have. Where the
epoch is not known, see docs/interoperability.md.
"""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import blake2b
from os import PathLike
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vlmo.data.decoding import decode_image, decode_mask
from vlmo.data.masking import MaskingVocabulary, WordMaskConfig, whole_word_mask
from vlmo.processing.answers import MIN_ANNOTATORS, soft_targets

Rows = Sequence[Mapping[str, Any]]
Inputs = dict[str, Tensor | bool]
"""Arguments of a model's `forward`."""


@dataclass(frozen=True)
class DataCollator(ABC):
    """Collator of rows; the processor is the model's, of images alone for a model without texts."""

    processor: Any
    seed: int = field(default=0, kw_only=True)

    @abstractmethod
    def __call__(self, rows: Rows) -> Inputs:
        """Return inputs and labels; ValueError for a missing column or a bad value."""

    def images(self, rows: Rows, *, name: str = "image") -> list[Image.Image]:
        """Return the images of a column; the processor puts transparency on white."""
        return [_decoded(value, decode_image) for value in _column(rows, name)]

    def texts(self, rows: Rows) -> list[str]:
        """Return the `text` of rows, or one of their `captions`; ValueError for a row without."""
        values = _column(rows, "text", "captions")
        captions = [[value] if isinstance(value, str) else list(value) for value in values]
        if not all(texts and all(texts) for texts in captions):
            raise ValueError(
                "a row has an empty text, or an empty list of captions; leave such rows out"
            )
        generator = self.generator(repr(captions).encode())
        return [texts[int(generator.integers(len(texts)))] for texts in captions]

    def generator(self, content: bytes) -> np.random.Generator:
        """Return a generator that depends on the seed, the epoch and the content of a batch."""
        # Workers and resumed runs have the batch, but no counter in common.
        digest = blake2b(content, digest_size=16).digest()
        return np.random.default_rng([self.seed, _epoch(), *digest])


@dataclass(frozen=True)
class DataCollatorForRetrieval(DataCollator):
    """Pairs for `VLMoForImageTextRetrieval`: `image`, and `text` or `captions`.

    The other rows of the batch are the negatives.
    """

    def __call__(self, rows: Rows) -> Inputs:
        """Return images and texts, and `return_loss`."""
        inputs = self.processor(
            images=self.images(rows), text=self.texts(rows), return_tensors="pt"
        )
        return {**inputs, "return_loss": True}


@dataclass(frozen=True)
class DataCollatorForVisualQuestionAnswering(DataCollator):
    """Questions for `VLMoForVisualQuestionAnswering`: `image`, `question`, answers in two forms.

    These are `answer_labels` with `answer_scores`, numbers and scores; or `answers`, the words of
    one or ten annotators, of which those that the model's `label2id` lacks score nothing.
    """

    label2id: Mapping[str, int]

    def __call__(self, rows: Rows) -> Inputs:
        """Return images and questions, and the scores of all answers as `labels`."""
        # Questions may be texts of NumPy.
        questions = list(map(str, _column(rows, "question")))
        inputs = self.processor(images=self.images(rows), text=questions, return_tensors="pt")
        labels = torch.zeros(len(rows), len(self.label2id))
        for row, target in zip(rows, labels, strict=True):
            if "answer_labels" in row:
                numbers = row["answer_labels"]
                scores = row["answer_scores"]
            else:
                answers = list(_column([row], "answers")[0])
                # A single answer counts as given by all annotators.
                repeats = MIN_ANNOTATORS if len(answers) == 1 else 1
                numbers, scores = soft_targets(answers * repeats, numbers=self.label2id)
            # Answers that the model lacks have no column.
            target[torch.tensor(numbers, dtype=torch.int64)] = torch.tensor(scores)
        return {**inputs, "labels": labels}


@dataclass(frozen=True)
class DataCollatorForVisualReasoning(DataCollator):
    """Sentences for `VLMoForVisualReasoning`: two images, a text, and `label` (1 true, 0 false).

    The images are in the columns `image` and `second_image`.
    """

    def __call__(self, rows: Rows) -> Inputs:
        """Return `pixel_values`, (rows, 2, 3, height, width), the sentences, and `labels`."""
        images = self.images(rows) + self.images(rows, name="second_image")
        inputs = self.processor(images=images, text=self.texts(rows), return_tensors="pt")
        # (2 * rows, ...) to (rows, 2, ...): left and right image.
        pixels = torch.stack(inputs["pixel_values"].split(len(rows)), dim=1)
        return {**inputs, "pixel_values": pixels, "labels": _labels(rows)}


@dataclass(frozen=True)
class DataCollatorForImageClassification(DataCollator):
    """Images for `VLMoForImageClassification`: `image` and `label`, the number of its class."""

    def __call__(self, rows: Rows) -> Inputs:
        """Return images and `labels`."""
        inputs = self.processor(images=self.images(rows), return_tensors="pt")
        return {**inputs, "labels": _labels(rows)}


@dataclass(frozen=True)
class DataCollatorForSemanticSegmentation(DataCollator):
    """Images for `VLMoForSemanticSegmentation`: `image`, and `mask` of class numbers.

    255 marks pixels that do not count.
    """

    def __call__(self, rows: Rows) -> Inputs:
        """Return images and `labels` of their pixels, both as squares of the processor's size."""
        images = self.images(rows)
        inputs = self.processor(images=images, return_tensors="pt")
        # The processor has resized the images; masks follow.
        height, width = inputs["pixel_values"].shape[-2:]
        labels = []
        for image, value in zip(images, _column(rows, "mask"), strict=True):
            mask = np.asarray(_decoded(value, decode_mask), dtype=np.int32)
            if mask.shape != image.size[::-1]:
                raise ValueError(
                    f"a mask has shape {mask.shape}; expected that of its image, {image.size[::-1]}"
                )
            # Nearest, as class numbers have no mean.
            resized = Image.fromarray(mask).resize((width, height), Image.Resampling.NEAREST)
            labels.append(torch.from_numpy(np.array(resized, dtype=np.int64)))
        return {**inputs, "labels": torch.stack(labels)}


@dataclass(frozen=True)
class DataCollatorForMaskedLM(DataCollator):
    """Texts for `VLMoForMaskedLM`, with whole words masked; with images where rows have `image`."""

    words: WordMaskConfig = field(default_factory=WordMaskConfig)

    @cached_property
    def _vocabulary(self) -> MaskingVocabulary:
        if self.words.of_captions:
            raise ValueError(
                "words.of_captions is True, which is for captioning's recipes; leave it out"
            )
        return MaskingVocabulary.of(self.processor.tokenizer, only=self.words.only)

    def __call__(self, rows: Rows) -> Inputs:
        """Return masked texts, and the true ids at masked places as `labels` (-100 elsewhere)."""
        images = None if rows[0].get("image") is None else self.images(rows)
        inputs = self.processor(images=images, text=self.texts(rows), return_tensors="pt")
        texts = inputs["input_ids"].numpy()
        generator = self.generator(texts.tobytes())
        masks = [
            whole_word_mask(
                text, vocabulary=self._vocabulary, config=self.words, generator=generator
            )
            for text in texts
        ]
        # (rows, 2, text) with the pair in front.
        masked, labels = torch.from_numpy(np.stack(masks, axis=1))
        return {**inputs, "input_ids": masked, "labels": labels}


def _column(rows: Rows, *names: str) -> list[Any]:
    """Return the values of the first of these columns that the rows have."""
    name = next((name for name in names if name in rows[0]), "")
    values = [row.get(name) for row in rows]
    if any(value is None for value in values):
        fault = f"a row has no {name}"
        if not name:
            fault = f"the rows have {', '.join(rows[0]) or 'no columns'}"
        raise ValueError(
            f"{fault}; expected {' or '.join(names)} in each: rename columns with rename_column, "
            "and give TrainingArguments(remove_unused_columns=False), without which the trainer "
            "drops them"
        )
    return values


def _labels(rows: Rows) -> Tensor:
    return torch.tensor(_column(rows, "label")).long()


def _decoded(value: Any, decode: Callable[[Any], Any]) -> Any:
    """Return a decoded image or mask; a value that is neither a path nor a cell stays as it is."""
    if isinstance(value, str | PathLike):
        value = {"bytes": None, "path": str(value)}
    # Data sets that do not decode give a mapping of bytes and path too.
    return decode(value) if isinstance(value, Mapping) else value


def _epoch() -> int:
    """Return the epoch of the data loader that the `Trainer` is reading; 0 for other loaders."""
    # accelerate counts epochs; without it there is no trainer.
    accelerate = sys.modules.get("accelerate.state")
    if accelerate is None:
        return 0
    return getattr(accelerate.GradientState().active_dataloader, "iteration", 0)
