"""Metrics as pure functions: of classes, answers, statements, pixels and captions, each with its chance and meaning."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vlmo.processing.answers import leave_one_out_score, normalize_answer
from vlmo.processing.segmentation import IGNORED_CLASS


@dataclass(frozen=True)
class Metric:
    """A metric and what is known of it.

    Attributes:
        value: A fraction, or of CIDEr a number from 0 up.
        chance: The same of a guess that reads no input, where it is known.
        n: Examples whose mean score, each in [0, 1], the value is; None for another metric.
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

        Too wide where examples may be partly right, too narrow where they share captions, sentences or images.
        """
        if self.n is None:
            return None
        spread = 1.959964**2 / self.n
        middle = (self.value + spread / 2) / (1 + spread)
        half = (spread * self.value * (1 - self.value) + spread**2 / 4) ** 0.5 / (1 + spread)
        return max(middle - half, 0.0), min(middle + half, 1.0)


# ---- Classes of images

_TOP = {1: "share of images whose class is the model's first guess"}
_TOP[5] = "share of images whose class is among the model's first five guesses"


def topk_accuracy(
    logits: Float[Tensor, "rows classes"], labels: Int[Tensor, "rows"]
) -> list[Metric]:
    """Return `top1` and `top5`, the share of rows whose class is among the likeliest; a tie counts against the model.

    `top5` of at most five classes is left out: it would always be 1. Chance is a guess among all classes.

    Raises:
        ValueError: There are no rows, a label is no class, or the logits contain NaN.
    """
    classes = logits.shape[1]
    if not len(labels) or not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise ValueError(f"expected at least one row, and labels from 0 to {classes - 1}")
    if logits.isnan().any():
        raise ValueError("the logits contain NaN; check the weights of the model")
    ranks = (logits >= logits.gather(1, labels[:, None])).sum(dim=1)
    return [
        Metric(
            f"top{k}",
            (ranks <= k).double().mean().item(),
            chance=k / classes,
            n=len(labels),
            meaning=meaning,
        )
        for k, meaning in _TOP.items()
        if k < classes
    ]


# ---- Answers

ACCURACY = "accuracy"
_ONE_ANSWER_STANDS_FOR = 10  # annotators, as many as VQA has
_TEN_ANSWERS = "VQA's accuracy: an answer scores by how many of ten people gave it, mean over leaving out each of them"
_ONE_ANSWER = "share of questions that get the one right answer"


@dataclass(frozen=True)
class Question:
    """A question with its annotators' answers: ten in VQA, one where a set has one right answer, or none."""

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
        times = _ONE_ANSWER_STANDS_FOR if len(self.answers) == 1 else 1
        return leave_one_out_score(answer, self.answers * times)


def vqa_metrics(questions: Sequence[Question], answers: Sequence[str]) -> list[Metric]:
    """Return `accuracy`, the mean over all questions with known answers, and that of each answer and question type.

    Chance is the most frequent answer of each of them, for all its questions.

    Raises:
        ValueError: No question has a known answer, or lengths differ.
    """
    known = [
        (question, answer)
        for question, answer in zip(questions, answers, strict=True)
        if question.answers
    ]
    if not known:
        raise ValueError(
            f"none of {len(questions)} questions has a known answer; such a split is for submissions"
        )
    meaning = (
        _TEN_ANSWERS if any(len(question.answers) > 1 for question, _ in known) else _ONE_ANSWER
    )
    groups: dict[tuple[str, str], list[tuple[Question, str]]] = {("", ""): known}
    for of in ("answer", "question"):
        names = sorted({name for question, _ in known if (name := vars(question)[f"{of}_type"])})
        groups |= {
            (of, name): [each for each in known if vars(each[0])[f"{of}_type"] == name]
            for name in names
        }
    found = []
    for (of, name), members in groups.items():
        given = Counter(
            normalize_answer(answer) for question, _ in members for answer in question.answers
        )
        most_frequent = given.most_common(1)[0][0]
        count = len(members)
        value = sum(question.score(answer) for question, answer in members) / count
        chance = sum(question.score(most_frequent) for question, _ in members) / count
        if of:
            found.append(
                Metric(
                    f"{ACCURACY}[{of}: {name}]",
                    value,
                    chance,
                    meaning=f"of these, {of} type {name!r}",
                )
            )
        else:
            meaning = f"{meaning}; chance is the most frequent answer"
            found.append(Metric(ACCURACY, value, chance, n=count, meaning=meaning))
    return found


# ---- Statements


def nlvr2_metrics(groups: Sequence[str], right: Sequence[bool | None]) -> list[Metric]:
    """Return `accuracy` of rows and `consistency`, the share of groups that are wholly right; chance is a coin.

    Args:
        groups: Group of each row; rows of a group share their sentence.
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
            f"the label of none of {len(right)} sentences is known; such a split is for submissions alone"
        )
    known = [is_right for group in by_group.values() for is_right in group]
    chance = sum(0.5 ** len(group) for group in by_group.values()) / len(by_group)
    meanings = (
        "share of sentences that are rightly called true or false of their two images",
        "share of sentences that are called rightly of all pairs of images that share them",
    )
    return [
        Metric(ACCURACY, sum(known) / len(known), chance=0.5, n=len(known), meaning=meanings[0]),
        Metric(
            "consistency",
            sum(map(all, by_group.values())) / len(by_group),
            chance=chance,
            meaning=meanings[1],
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
    """Return the numbers of pixels of an image by true and predicted class; pixels of class 255 do not count."""
    predicted = predicted.cpu().long()
    target = target.cpu().long()
    counted = target != IGNORED_CLASS
    cells = target[counted] * num_classes + predicted[counted]
    return cells.bincount(minlength=num_classes**2).view(num_classes, num_classes)


def segmentation_metrics(
    counts: Int[Tensor, "true predicted"], *, names: Sequence[str]
) -> list[Metric]:
    """Return metrics from numbers of pixels by true and predicted class, as mmsegmentation counts.

    `miou` is the mean over classes of intersection over union, `aacc` the share of pixels that are right, `macc` the
    mean over classes of the share of their pixels that are right, `iou[NAME]` the intersection over union of a class.
    A class that neither occurs nor was predicted is left out. Chance is the most frequent class for every pixel.

    Raises:
        ValueError: There are no pixels.
    """
    if not int(counts.sum()):
        raise ValueError("no pixel counts: there are no images, or every pixel is ignored")

    def measured(counts: Tensor) -> tuple[dict[str, float], list[float]]:
        counts = counts.double()
        right = counts.diag()
        true = counts.sum(dim=1)
        predicted = counts.sum(dim=0)
        iou = right / (true + predicted - right)  # 0 / 0 is NaN: the class does not count
        metrics = {
            "miou": iou.nanmean(),
            "aacc": right.sum() / counts.sum(),
            "macc": (right / true).nanmean(),
        }
        return {name: value.item() for name, value in metrics.items()}, iou.tolist()

    true = counts.sum(dim=1)
    constant = torch.zeros_like(counts)
    constant[:, true.argmax()] = true
    (metrics, by_class), (chance, _) = measured(counts), measured(constant)
    found = [
        Metric(name, value, chance[name], meaning=_PIXEL_MEANINGS[name])
        for name, value in metrics.items()
    ]
    return found + [
        Metric(f"iou[{name}]", iou) for name, iou in zip(names, by_class, strict=True) if iou == iou
    ]


# ---- Captions

_CAPTION_MEANINGS = {
    "cider": "likeness to the true captions by weighted runs of one to four words (CIDEr; above 1 is possible)",
    "bleu4": "share of runs of one to four words that a true caption has too, over the whole set (BLEU-4)",
    "exact": "share of captions that are one of the true ones, word by word",
}
_WORD = re.compile(r"\w+(?=n't\b)|n't\b|'(?:s|re|ve|ll|d|m)\b|\w+(?:[-/.]\w+)*|[&$%#@+=]")


def caption_metrics(captions: Sequence[str], references: Sequence[Sequence[str]]) -> list[Metric]:
    """Return `cider`, `bleu4` (by pycocoevalcap) and `exact` of a caption of each image; ValueError without references.

    Words are lower-cased and without punctuation, nearly as Stanford's tokenizer, which needs Java, makes them for
    COCO. Chance is the most frequent true caption for all images. ModuleNotFoundError without the package.
    """
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider

    if not references or not all(references):
        raise ValueError(
            "an image has no true caption: nothing can be measured; give a split that has captions"
        )
    found, *true = [
        [" ".join(_WORD.findall(text.lower())) for text in texts]
        for texts in (captions, *references)
    ]

    def measured(found: Sequence[str]) -> tuple[float, ...]:
        pair = dict(enumerate(true)), {number: [text] for number, text in enumerate(found)}
        exact = sum(text in texts for text, texts in zip(found, true, strict=True)) / len(found)
        return (
            float(Cider().compute_score(*pair)[0]),
            Bleu(4).compute_score(*pair, verbose=0)[0][3],
            exact,
        )

    (constant, _), *_ = Counter(text for texts in true for text in texts).most_common(1)
    rows = zip(
        _CAPTION_MEANINGS.items(), measured(found), measured([constant] * len(found)), strict=True
    )
    return [Metric(name, value, chance, meaning=text) for (name, text), value, chance in rows]
