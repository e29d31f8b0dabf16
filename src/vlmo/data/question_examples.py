"""Training examples of the tasks with a fusion encoder: questions about a picture, sentences about two."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from datasets import Dataset
from jaxtyping import Float
from torch import Tensor

from vlmo.data import builtin
from vlmo.data.examples import Example, Images, ImageTransform, Texts, collate
from vlmo.data.prepare import labels_of
from vlmo.data.sampler import Key
from vlmo.data.schema import QUESTION_FEATURES, REASONING_FEATURES, column
from vlmo.types import Batch

if TYPE_CHECKING:
    from transformers import BertTokenizer

_UNKNOWN = -1


class QuestionExamples:
    """Questions about pictures, with a score for each answer of the set.

    Args:
        dataset: Rows of `QUESTION_FEATURES`.
        transform: Makes pixel values.
        tokenizer: The processor's.
        seed: The run's.
        num_answers: Length of the set's list of answers; None leaves `labels` out.
        max_length: Tokens that are kept of a question; None: the tokenizer's own limit.
        cache_images: Decode every picture now and keep it, once for all its questions.

    Raises:
        ValueError: Rows of another task, no row with an answer, or an answer that is not in the list.
    """

    def __init__(
        self,
        dataset: Dataset,
        *,
        transform: ImageTransform,
        tokenizer: BertTokenizer,
        seed: int,
        num_answers: int | None,
        max_length: int | None = None,
        cache_images: bool = False,
    ) -> None:
        check_task(dataset, QUESTION_FEATURES, task="questions about pictures")
        self._num_answers = num_answers
        self._labels: list[list[int]] = column(dataset, "answer_labels")
        self._scores: list[list[float]] = column(dataset, "answer_scores")
        if num_answers is not None:
            check_answers(dataset, self._labels, num_answers=num_answers)
        questions = [[question] for question in column(dataset, "question")]
        self._texts = Texts(questions, tokenizer=tokenizer, seed=seed, max_length=max_length, mlm_probability=None)
        self._pictures = Images(dataset, transform=transform, seed=seed, cache=cache_images)

    def __len__(self) -> int:
        return len(self._pictures)

    def __getitem__(self, key: Key) -> Example:
        epoch, row = key
        example = self._texts.example(row, epoch=epoch)
        example["sample_id"] = row
        example["image_id"] = self._pictures.image_id(row)
        example["pixel_values"] = self._pictures.pixel_values(row, epoch=epoch)
        if self._num_answers is not None:
            example["labels"] = self._targets(row, num_answers=self._num_answers)
        return example

    def collate(self, examples: list[Example]) -> Batch:
        """`pixel_values`, `input_ids`, `attention_mask`, `image_ids`, `sample_ids` and perhaps `labels`."""
        return collate(examples, pad_token_id=self._texts.pad_token_id)

    def _targets(self, row: int, *, num_answers: int) -> Float[Tensor, "answers"]:
        targets = torch.zeros(num_answers)
        targets[torch.tensor(self._labels[row], dtype=torch.int64)] = torch.tensor(self._scores[row])
        return targets


class ReasoningExamples:
    """Sentences about two pictures, which have augmentations of their own; `labels` 1 is true, 0 false.

    Args:
        dataset: Rows of `REASONING_FEATURES`.
        transform: Makes pixel values.
        tokenizer: The processor's.
        seed: The run's.
        labelled: Whether examples have `labels`.
        max_length: Tokens that are kept of a sentence; None: the tokenizer's own limit.
        cache_images: Decode every picture now and keep it.

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
        check_task(dataset, REASONING_FEATURES, task="sentences about two pictures")
        self._labels = check_truth(dataset) if labelled else None
        captions = column(dataset, "captions")
        self._texts = Texts(captions, tokenizer=tokenizer, seed=seed, max_length=max_length, mlm_probability=None)
        self._pictures = [
            Images(dataset, transform=transform, seed=seed, cache=cache_images, column=name)
            for name in ("image", "second_image")
        ]

    def __len__(self) -> int:
        return len(self._texts)

    def __getitem__(self, key: Key) -> Example:
        epoch, row = key
        example = self._texts.example(row, epoch=epoch)
        example["sample_id"] = row
        example["image_id"] = self._pictures[0].image_id(row)
        example["pixel_values"] = torch.stack([side.pixel_values(row, epoch=epoch) for side in self._pictures])
        if self._labels is not None:
            example["labels"] = torch.tensor(self._labels[row], dtype=torch.int64)
        return example

    def collate(self, examples: list[Example]) -> Batch:
        """`pixel_values` (batch, 2, 3, height, width), and the other keys of `QuestionExamples.collate`."""
        return collate(examples, pad_token_id=self._texts.pad_token_id)


def answers_of(source: str) -> list[str]:
    """Answers of a source of questions, built-in or prepared, in the order of their numbers.

    Raises:
        ValueError: It has none.
    """
    return builtin.labels(source) if source in builtin.NAMES else labels_of(Path(source).expanduser())


def check_task(dataset: Dataset, features: Iterable[str], *, task: str) -> None:
    """Raises ValueError where rows lack a column of the task's `features`."""
    missing = [name for name in features if name not in dataset.column_names]
    if missing:
        raise ValueError(
            f"these rows are no {task}: they lack {', '.join(missing)} (there are {', '.join(dataset.column_names)}). "
            "Give a set that was prepared for this task (vlmo data prepare), or another task"
        )


def check_answers(dataset: Dataset, labels: Sequence[Sequence[int]], *, num_answers: int) -> None:
    """Raises ValueError where an answer's number is not in the list of `num_answers`, or no row has an answer."""
    if not any(labels):
        raise ValueError("no row has an answer of the set's list; give a part of the set that has answers")
    for row, numbers in enumerate(labels):
        if numbers and not 0 <= min(numbers) <= max(numbers) < num_answers:
            name = column(dataset, "question_id")[row]
            raise ValueError(
                f"question {name!r} has answer numbers {list(numbers)}; the set's list has {num_answers} answers, "
                f"0 to {num_answers - 1}"
            )


def check_truth(dataset: Dataset, *, needs_all: bool = True) -> list[int]:
    """The label of each sentence: 1 true, 0 false.

    Args:
        needs_all: Whether -1, which stands for a label that is not known, is refused.

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
