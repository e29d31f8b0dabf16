"""Questions about pictures: what a model answers, and VQA's accuracy of it."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from vlmo.evaluation.inference import Advance, PairModel, top_logits
from vlmo.processing.answers import leave_one_out_score, normalize_answer
from vlmo.types import Batch

ACCURACY = "accuracy"
_ONE_ANSWER_STANDS_FOR = 10  # annotators, as many as VQA has


@dataclass(frozen=True)
class Question:
    """A question and what is known of it.

    Attributes:
        answers: The annotators' own words: ten in VQA, one where a set has one right answer, none in a test split.
        soft_scores: Score of each answer of a set that keeps no annotators' words; read where `answers` is empty.
    """

    question_id: str
    image_id: str
    question: str
    question_type: str = ""
    answer_type: str = ""
    answers: tuple[str, ...] = ()
    soft_scores: Mapping[str, float] = field(default_factory=dict)

    @property
    def is_known(self) -> bool:
        """Whether an answer can be scored."""
        return bool(self.answers or self.soft_scores)

    def score(self, answer: str) -> float:
        """Official accuracy of an answer, 0 to 1; where there is one right answer, whether it is that one.

        Without the annotators' words it is the answer's soft score, 0 for an answer that has none.

        Raises:
            ValueError: There are too few answers for VQA's accuracy, or none.
        """
        if not self.answers and self.soft_scores:
            return self.soft_scores.get(answer, 0.0)
        times = _ONE_ANSWER_STANDS_FOR if len(self.answers) == 1 else 1
        return leave_one_out_score(answer, self.answers * times)


@dataclass(frozen=True)
class Answer:
    """What a model answers; `confidence` is the sigmoid of the answer's logit."""

    answer: str
    confidence: float


def answer_questions(
    model: PairModel,
    batches: Iterable[Batch],
    *,
    names: Mapping[int, str],
    top: int = 1,
    autocast_dtype: torch.dtype | None = None,
    advance: Advance | None = None,
) -> list[list[Answer]]:
    """The best `top` answers to each question, best first; arguments as in `top_logits`.

    Args:
        names: The answer of each class, `model.config.id2label`.
    """
    logits, classes = top_logits(model, batches, top=top, autocast_dtype=autocast_dtype, advance=advance)
    return [
        [Answer(answer=names[number], confidence=confidence) for number, confidence in zip(row, scores, strict=True)]
        for row, scores in zip(classes.tolist(), logits.sigmoid().tolist(), strict=True)
    ]


def vqa_metrics(questions: Sequence[Question], answers: Sequence[str]) -> dict[str, float]:
    """`accuracy`, the mean over all questions with known answers, then that of each answer type and question type.

    Raises:
        ValueError: No question has a known answer, or lengths differ.
    """
    scored = [
        (question, question.score(answer))
        for question, answer in zip(questions, answers, strict=True)
        if question.is_known
    ]
    if not scored:
        raise ValueError(
            f"none of {len(questions)} questions has a known answer: nothing can be measured. Such a split is for "
            "submissions; measure on another"
        )
    scores = defaultdict(list)
    for question, score in scored:
        for part in _parts(question):
            scores[part].append(score)
    return {part: sum(values) / len(values) for part, values in sorted(scores.items(), key=_order)}


def guessed_metrics(questions: Sequence[Question]) -> dict[str, float]:
    """What `vqa_metrics` gives to the answer that is most frequent in each part, the same for all its questions."""
    parts = defaultdict(list)
    for question in questions:
        for part in _parts(question) if question.is_known else ():
            parts[part].append(question)
    guessed = {}
    for part, members in sorted(parts.items(), key=_order):
        given: Counter[str] = Counter()
        for question in members:
            given.update(normalize_answer(answer) for answer in question.answers)
            given.update({} if question.answers else question.soft_scores)
        most_frequent = given.most_common(1)[0][0]
        guessed[part] = sum(question.score(most_frequent) for question in members) / len(members)
    return guessed


def _parts(question: Question) -> list[str]:
    """Names of the figures that a question counts for."""
    parts = [ACCURACY]
    parts += [f"{ACCURACY}[answer: {question.answer_type}]"] if question.answer_type else []
    parts += [f"{ACCURACY}[question: {question.question_type}]"] if question.question_type else []
    return parts


def _order(part: tuple[str, object]) -> tuple[int, str]:
    """All questions first, then answer types, then question types: that is the order of the alphabet too."""
    return len(part[0]) > len(ACCURACY), part[0]
