"""Metrics of classes, answers, statements, pixels and captions, with chance and meaning."""

from __future__ import annotations

import math
import operator
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from statistics import fmean

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vlmo.processing.answers import leave_one_out_score, normalize_answer
from vlmo.processing.segmentation import IGNORED_CLASS


@dataclass(frozen=True)
class Metric:
    """A value with what a reader needs to judge it.

    Attributes:
        value: A fraction, or of CIDEr a number from 0 up.
        chance: The same of a guess that reads no input, where it is known.
        n: Examples whose mean score, in [0, 1], the value is; None for another metric.
        label: Display name; by default the name.
    """

    name: str
    value: float
    chance: float | None = None
    n: int | None = None
    label: str = ""
    meaning: str = ""

    @property
    def interval(self) -> tuple[float, float] | None:
        """95 % interval (Wilson's score interval of independent examples); None without `n`.

        Too wide where examples may be partly right, too narrow where they share captions, sentences
        or images.
        """
        if self.n is None:
            return None
        # Two-sided 95 % of a normal distribution are within 1.96 standard deviations.
        spread = 1.959964**2 / self.n
        # Center and half width of the interval.
        middle = (self.value + spread / 2) / (1 + spread)
        half = (spread * self.value * (1 - self.value) + spread**2 / 4) ** 0.5 / (1 + spread)
        return max(middle - half, 0.0), min(middle + half, 1.0)


# ---- Classes of images

_TOP_MEANINGS = {
    1: "share of images whose class is the model's first guess",
    5: "share of images whose class is among the model's first five guesses",
}


def topk_accuracy(
    logits: Float[Tensor, "rows classes"], labels: Int[Tensor, "rows"]
) -> list[Metric]:
    """Return `top1` and `top5`, the share of rows whose class is among the likeliest.

    A tie counts against the model. `top5` of at most five classes is left out: it would always be
    1. Chance is a guess among all classes.

    Raises:
        ValueError: There are no rows, a label is no class, or the logits contain NaN.
    """
    num_classes = logits.shape[1]
    ranks = _class_ranks(logits, labels)
    metrics = []
    for k, meaning in _TOP_MEANINGS.items():
        if k < num_classes:
            share = (ranks <= k).double().mean().item()
            metrics.append(Metric(f"top{k}", share, k / num_classes, len(labels), meaning=meaning))
    return metrics


def mean_per_class_recall(
    logits: Float[Tensor, "rows classes"], labels: Int[Tensor, "rows"]
) -> Metric:
    """Return the share of rows with the right first guess, mean over the classes that have rows.

    The interval supposes that all classes are equally hard: `n` is the number of rows with whose
    mean the mean over classes has one variance, classes times the harmonic mean of their rows.

    Raises:
        ValueError: As `topk_accuracy`.
    """
    is_right = (_class_ranks(logits, labels) == 1).double()
    counts = labels.bincount().double()
    recalls = labels.bincount(weights=is_right) / counts
    present = counts > 0
    num_present = int(present.sum())
    return Metric(
        "mean_per_class_recall",
        recalls[present].mean().item(),
        1 / logits.shape[1],
        int(num_present**2 / (1 / counts[present]).sum().item()),
        meaning="share of a class's images whose class is the first guess, mean over classes",
    )


def _class_ranks(
    logits: Float[Tensor, "rows classes"], labels: Int[Tensor, "rows"]
) -> Int[Tensor, "rows"]:
    num_classes = logits.shape[1]
    if not len(labels) or not 0 <= int(labels.min()) <= int(labels.max()) < num_classes:
        raise ValueError(f"expected at least one row, and labels from 0 to {num_classes - 1}")
    if logits.isnan().any():
        raise ValueError("the logits contain NaN; check the weights of the model")
    # Equal logits stand in front: a constant model is last.
    return (logits >= logits.gather(1, labels[:, None])).sum(dim=1)


# ---- Answers

ACCURACY = "accuracy"
_NUM_ANNOTATORS = 10  # of VQA
_TEN_ANSWERS = (
    "VQA's accuracy: an answer scores by how many of ten people gave it, mean over leaving out "
    "each of them"
)
_ONE_ANSWER = "share of questions that get the one right answer"


@dataclass(frozen=True)
class Question:
    """A question with its annotators' answers: ten in VQA, one in sets with one, or none."""

    question_id: str
    image_id: str
    question: str
    question_type: str = ""
    answer_type: str = ""
    answers: tuple[str, ...] = ()

    def score(self, answer: str) -> float:
        """Return the official accuracy of an answer, 0 to 1; with one right answer, 1 for that one.

        ValueError if there are too few answers for VQA's accuracy, or none.
        """
        # A single answer stands for annotators who all agree.
        times = _NUM_ANNOTATORS if len(self.answers) == 1 else 1
        return leave_one_out_score(answer, self.answers * times)


def vqa_metrics(questions: Sequence[Question], answers: Sequence[str]) -> list[Metric]:
    """Return `accuracy`, over all questions with known answers, and that of their types.

    Chance is the most frequent answer of all, or of the type, given to all its questions.

    Raises:
        ValueError: No question has a known answer, or lengths differ.
    """
    # By kind and name of the type; ("", "") holds all.
    groups: dict[tuple[str, str], list[tuple[Question, str]]] = defaultdict(list)
    for question, answer in zip(questions, answers, strict=True):
        if question.answers:
            groups["", ""].append((question, answer))
            groups["answer", question.answer_type].append((question, answer))
            groups["question", question.question_type].append((question, answer))
    if not groups:
        raise ValueError(
            f"none of {len(questions)} questions has a known answer; "
            "such a split is for submissions"
        )
    metrics = []
    # All questions first, then answer types, then question types.
    for kind, name in sorted(groups):
        if kind and not name:  # questions without a type
            continue
        members = groups[kind, name]
        counts = Counter[str]()
        for question, _ in members:
            counts.update(map(normalize_answer, question.answers))
        most_frequent = counts.most_common(1)[0][0]
        value = fmean(question.score(answer) for question, answer in members)
        chance = fmean(question.score(most_frequent) for question, _ in members)
        if kind:
            meaning = f"of these, {kind} type {name!r}"
            metrics.append(Metric(f"{ACCURACY}[{kind}: {name}]", value, chance, meaning=meaning))
        else:
            meaning = _TEN_ANSWERS if counts.total() > len(members) else _ONE_ANSWER
            meaning += "; chance is the most frequent answer"
            metrics.append(Metric(ACCURACY, value, chance, n=len(members), meaning=meaning))
    return metrics


# ---- Statements

_CONSISTENT = "share of sentences that are called rightly of all pairs of images that share them"


def nlvr2_metrics(groups: Sequence[str], right: Sequence[bool | None]) -> list[Metric]:
    """Return `accuracy` of rows and `consistency`, the share of groups that are entirely right.

    Chance is a coin.

    Args:
        groups: Names of the rows' groups; rows of a group share their sentence.
        right: None where the label is not known.

    Raises:
        ValueError: No label is known.
    """
    by_group = defaultdict(list)
    for group, is_right in zip(groups, right, strict=True):
        if is_right is not None:
            by_group[group].append(is_right)
    if not by_group:
        raise ValueError(
            f"the label of none of {len(right)} sentences is known; "
            "such a split is for submissions alone"
        )
    # Rows without a label count for nothing.
    num_rows = sum(map(len, by_group.values()))
    return [
        Metric(
            ACCURACY,
            sum(map(sum, by_group.values())) / num_rows,
            chance=0.5,
            n=num_rows,
            meaning="share of sentences that are rightly called true or false of their two images",
        ),
        Metric(
            "consistency",
            fmean(map(all, by_group.values())),
            chance=fmean(0.5 ** len(group) for group in by_group.values()),
            meaning=_CONSISTENT,
        ),
    ]


# ---- Pixels

_PIXEL_MEANINGS = {
    "miou": "intersection of predicted and true pixels over their union, mean over classes",
    "aacc": "share of pixels whose class is right",
    "macc": "share of a class's pixels that are right, mean over classes",
}


def count_pixels(
    predicted: Int[Tensor, "height width"], target: Int[Tensor, "height width"], *, num_classes: int
) -> Int[Tensor, "true predicted"]:
    """Return numbers of pixels by true and predicted class; pixels of class 255 do not count."""
    target = target.cpu().long()
    # A number for a pair of classes, row by row of the matrix.
    cells = target * num_classes + predicted.cpu()
    counts = cells[target != IGNORED_CLASS].bincount(minlength=num_classes**2)
    return counts.view(num_classes, num_classes)


def segmentation_metrics(
    counts: Int[Tensor, "true predicted"], *, names: Sequence[str]
) -> list[Metric]:
    """Return metrics from numbers of pixels by true and predicted class, as mmsegmentation counts.

    `miou` is the mean over classes of intersection over union, `aacc` the share of pixels that are
    right, `macc` the mean over classes of the share of their pixels that are right, `iou[NAME]` the
    intersection over union of a class. A class that neither occurs nor was predicted is left out.
    Chance is the most frequent class for every pixel.

    Raises:
        ValueError: There are no pixels.
    """
    if not int(counts.sum()):
        raise ValueError("no pixel counts: there are no images, or every pixel is ignored")
    most_frequent = torch.zeros_like(counts)
    # All pixels are called by the most frequent class.
    most_frequent[:, counts.sum(dim=1).argmax()] = counts.sum(dim=1)
    ious, *values = _pixel_metrics(counts)
    _, *chances = _pixel_metrics(most_frequent)
    metrics = []
    for (name, meaning), value, chance in zip(
        _PIXEL_MEANINGS.items(), values, chances, strict=True
    ):
        metrics.append(Metric(name, value.item(), chance.item(), meaning=meaning))
    for name, iou in zip(names, ious.tolist(), strict=True):
        if not math.isnan(iou):
            metrics.append(Metric(f"iou[{name}]", iou))
    return metrics


def _pixel_metrics(counts: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    counts = counts.double()
    right = counts.diag()
    true = counts.sum(dim=1)
    # 0 / 0 is NaN: the class does not count.
    iou = right / (true + counts.sum(dim=0) - right)
    return iou, iou.nanmean(), right.sum() / counts.sum(), (right / true).nanmean()


# ---- Captions

_CAPTION_MEANINGS = {
    "cider": "likeness to the true captions by weighted runs of one to four words (CIDEr; above 1 "
    "is possible)",
    "bleu4": "share of runs of one to four words that a true caption has too, over the whole set "
    "(BLEU-4)",
    "exact": "share of captions that are one of the true ones, word by word",
}
_WORD = re.compile(r"\w+(?=n't\b)|n't\b|'(?:s|re|ve|ll|d|m)\b|\w+(?:[-/.]\w+)*|[&$%#@+=]")


def caption_metrics(captions: Sequence[str], references: Sequence[Sequence[str]]) -> list[Metric]:
    """Return `cider`, `bleu4` (by pycocoevalcap) and `exact` of one caption per image.

    Words are lower-cased and without punctuation, nearly as Stanford's tokenizer, which needs Java,
    makes them for COCO. Chance is the most frequent true caption for all images.

    Raises:
        ValueError: An image has no reference.
        ModuleNotFoundError: The package is not installed.
    """
    if not references or not all(references):
        raise ValueError(
            "an image has no true caption: nothing can be measured; give a split that has captions"
        )
    true_captions = [_tokenized(texts) for texts in references]
    most_frequent = Counter(chain.from_iterable(true_captions)).most_common(1)[0][0]
    values = _caption_scores(_tokenized(captions), true_captions)
    chances = _caption_scores([most_frequent] * len(captions), true_captions)
    metrics = []
    for name, meaning in _CAPTION_MEANINGS.items():
        metrics.append(Metric(name, values[name], chances[name], meaning=meaning))
    return metrics


def _tokenized(texts: Sequence[str]) -> list[str]:
    return [" ".join(_WORD.findall(text.lower())) for text in texts]


def _caption_scores(captions: list[str], references: list[list[str]]) -> dict[str, float]:
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider

    candidates = [[caption] for caption in captions]
    by_number = dict(enumerate(references)), dict(enumerate(candidates))
    # Both return the values of single captions too; BLEU those of 1 to 4 words.
    cider, _ = Cider().compute_score(*by_number)
    bleu, _ = Bleu(4).compute_score(*by_number, verbose=0)
    # Words are compared, so case and punctuation do not count.
    exact = fmean(map(operator.contains, references, captions))
    return {"cider": float(cider), "bleu4": bleu[3], "exact": exact}
