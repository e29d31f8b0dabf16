"""VQA's accuracy of answers to questions about images."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from vlmo.processing.answers import leave_one_out_score, normalize_answer

ACCURACY = "accuracy"
_ONE_ANSWER_STANDS_FOR = 10  # annotators, as many as VQA has


@dataclass(frozen=True)
class Question:
    """A question with its known answers.

    Attributes:
        answers: The annotators' own words: ten in VQA, one where a set has one right answer, none in a test split.
        soft_scores: Score of each answer, for sets that keep no annotators' words; read if `answers` is empty.
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
        """True if an answer can be scored."""
        return bool(self.answers or self.soft_scores)

    def score(self, answer: str) -> float:
        """Return the official accuracy of an answer, 0 to 1; with one right answer, 1 for that one.

        Without the annotators' words it is the answer's soft score, 0 for an answer that has none. ValueError if there
        are too few answers for VQA's accuracy, or none.
        """
        if not self.answers and self.soft_scores:
            return self.soft_scores.get(answer, 0.0)
        times = _ONE_ANSWER_STANDS_FOR if len(self.answers) == 1 else 1
        return leave_one_out_score(answer, self.answers * times)


def vqa_metrics(questions: Sequence[Question], answers: Sequence[str]) -> dict[str, float]:
    """Return `accuracy`, the mean over all questions with known answers, and that of each answer and question type.

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
    """Return `vqa_metrics` of a constant guess: the most frequent answer of each part, for all its questions."""
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
    """Return the names of the metrics that a question counts for."""
    parts = [ACCURACY]
    parts += [f"{ACCURACY}[answer: {question.answer_type}]"] if question.answer_type else []
    parts += [f"{ACCURACY}[question: {question.question_type}]"] if question.question_type else []
    return parts


def _order(part: tuple[str, object]) -> tuple[int, str]:
    """Sort key: all questions first, then answer types, then question types, as in the alphabet."""
    return len(part[0]) > len(ACCURACY), part[0]
