"""Sentences about two pictures: whether a model takes them for true, NLVR2's accuracy and consistency of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from vlmo.evaluation.inference import Advance, PairModel, top_logits
from vlmo.types import Batch

ACCURACY, CONSISTENCY = "accuracy", "consistency"
_GUESS = 0.5


@dataclass(frozen=True)
class Sentence:
    """A sentence about two pictures and what is known of it.

    Attributes:
        identifier: Of the sentence with these pictures.
        group: Equal for rows that share their sentence.
        label: None where it is not known.
    """

    identifier: str
    sentence: str
    group: str
    label: bool | None = None


@dataclass(frozen=True)
class Judgement:
    """What a model says; `confidence` is the share of "true" in the softmax of both logits."""

    is_true: bool
    confidence: float


def judge_sentences(
    model: PairModel,
    batches: Iterable[Batch],
    *,
    autocast_dtype: torch.dtype | None = None,
    advance: Advance | None = None,
) -> list[Judgement]:
    """Whether each sentence is true; arguments as in `top_logits`, pictures are (batch, 2, 3, height, width)."""
    logits, classes = top_logits(model, batches, top=2, autocast_dtype=autocast_dtype, advance=advance)
    shares = logits.softmax(dim=-1)
    true_share = torch.where(classes[:, 0] == 1, shares[:, 0], shares[:, 1])
    best: list[int] = classes[:, 0].tolist()
    return [
        Judgement(is_true=number == 1, confidence=confidence)
        for number, confidence in zip(best, true_share.tolist(), strict=True)
    ]


def nlvr2_metrics(sentences: Sequence[Sentence], judged: Sequence[bool]) -> dict[str, float]:
    """`accuracy` over rows, and `consistency`: the share of groups of which every row is right.

    Raises:
        ValueError: No label is known, or lengths differ.
    """
    right: list[float] = []
    groups: dict[str, bool] = {}
    for sentence, is_true in zip(sentences, judged, strict=True):
        if sentence.label is not None:
            is_right = is_true == sentence.label
            right.append(is_right)
            groups[sentence.group] = groups.get(sentence.group, True) and is_right
    if not right:
        raise ValueError(
            f"the label of none of {len(sentences)} sentences is known: nothing can be measured. Such a split is for "
            "submissions; measure on another"
        )
    return {ACCURACY: sum(right) / len(right), CONSISTENCY: sum(groups.values()) / len(groups)}


def guessed_metrics(sentences: Sequence[Sentence]) -> dict[str, float]:
    """What a coin gives."""
    sizes = Counter(sentence.group for sentence in sentences if sentence.label is not None).values()
    return {ACCURACY: _GUESS, CONSISTENCY: sum(_GUESS**size for size in sizes) / len(sizes)}
