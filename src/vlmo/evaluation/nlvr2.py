"""NLVR2's accuracy and consistency of judgements of sentences about two images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

ACCURACY, CONSISTENCY = "accuracy", "consistency"
_GUESS = 0.5


@dataclass(frozen=True)
class Sentence:
    """A sentence about two images, with its label where it is known; rows of one `group` share their sentence."""

    identifier: str
    sentence: str
    group: str
    label: bool | None = None


def nlvr2_metrics(sentences: Sequence[Sentence], judged: Sequence[bool]) -> dict[str, float]:
    """Return `accuracy` of rows and `consistency`, the share of groups wholly right; ValueError without labels."""
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
    """Return the metrics of a coin."""
    sizes = Counter(sentence.group for sentence in sentences if sentence.label is not None).values()
    return {ACCURACY: _GUESS, CONSISTENCY: sum(_GUESS**size for size in sizes) / len(sizes)}
