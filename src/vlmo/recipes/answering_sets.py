"""Rows of questions and of sentences about two pictures: what a model says about them, and how good that is."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from datasets import Dataset
from torch import nn

from vlmo.data.examples import Examples
from vlmo.data.question_examples import (
    QuestionExamples,
    ReasoningExamples,
    answers_of,
    check_answers,
    check_task,
    check_truth,
)
from vlmo.data.schema import QUESTION_FEATURES, REASONING_FEATURES, column, select_rows
from vlmo.data.sources import open_source
from vlmo.data.validation import filter_invalid_rows
from vlmo.distributed import gather_objects, rank, world_size
from vlmo.evaluation import nlvr2, vqa
from vlmo.evaluation.inference import Advance, PairModel
from vlmo.folder import Measurement
from vlmo.processing import TransformConfig, VLMoProcessor, eval_transform
from vlmo.processing.answers import MIN_ANNOTATORS
from vlmo.recipes.task_result import Prediction, TaskResult, task_measurements
from vlmo.types import Batch, normalize_pixels

VQA, NLVR2 = "vqa", "nlvr2"
BATCH_SIZE = 256
_QUESTIONS = "VQA's accuracy: an answer scores by how many of ten people gave it, mean over leaving out each of them"
_ONE_ANSWER = "share of questions that get the one right answer"
_SOFT = "mean score that the set gives to the answer (0, 0.3, 0.6, 0.9, 1); the ten people's words are not in it"
_NLVR2_MEANINGS = {
    nlvr2.ACCURACY: "share of sentences that are rightly judged true or false of their two pictures",
    nlvr2.CONSISTENCY: "share of sentences that are judged rightly of all pairs of pictures that share them",
}
_GUESS = "beside it, what the most frequent answer gets"


@dataclass(frozen=True)
class QuestionSet:
    """Questions of a split."""

    rows: Dataset
    processor: VLMoProcessor
    source: str
    split: str

    @property
    def questions(self) -> list[vqa.Question]:
        """What is known of each."""
        names = ("question_id", "image_id", "question", "question_type", "answer_type", "answers")
        columns = zip(*(column(self.rows, name) for name in names), self._soft_scores(), strict=True)
        return [
            vqa.Question(
                question_id=question_id,
                image_id=image_id,
                question=question,
                question_type=question_type or "",
                answer_type=answer_type or "",
                answers=tuple(answers or ()),
                soft_scores=soft_scores,
            )
            for question_id, image_id, question, question_type, answer_type, answers, soft_scores in columns
        ]

    def _soft_scores(self) -> list[dict[str, float]]:
        """Score of each answer by name, for rows that have no annotators' words."""
        parts = (column(self.rows, name) for name in ("answers", "answer_labels", "answer_scores"))
        rows = [
            ([], []) if answers else (labels or [], scores or [])
            for answers, labels, scores in zip(*parts, strict=True)
        ]
        if not any(labels for labels, _ in rows):
            return [{} for _ in rows]
        names = answers_of(self.source)
        return [
            {names[label]: round(score, 4) for label, score in zip(labels, scores, strict=True)}
            for labels, scores in rows
        ]

    def batches(self, *, batch_size: int = BATCH_SIZE) -> Iterator[Batch]:
        """What the model reads, in the rows' order."""
        examples = QuestionExamples(self.rows, **_reading(self.processor), num_answers=None)
        return in_batches(examples, batch_size=batch_size)

    def predict(
        self, model: PairModel, *, names: Mapping[int, str], batch_size: int = BATCH_SIZE, advance: Advance | None
    ) -> list[Prediction]:
        """The model's answer to each question; with its score where the right answers are known.

        Several processes take a share each, and all get the whole.
        """

        def answer(own: QuestionSet) -> list[Prediction]:
            answers = vqa.answer_questions(model, own.batches(batch_size=batch_size), names=names, advance=advance)
            return [_answered(question, given[0]) for question, given in zip(own.questions, answers, strict=True)]

        return _shared(self, answer)

    def score(self, predictions: list[Prediction]) -> TaskResult:
        """Figures of such predictions.

        Raises:
            ValueError: No question has a known answer.
        """
        questions = self.questions
        metrics = vqa.vqa_metrics(questions, [prediction["answer"] for prediction in predictions])
        return TaskResult(
            task=VQA,
            source=self.source,
            split=self.split,
            metrics=metrics,
            chance=vqa.guessed_metrics(questions),
            meanings={name: _meaning(name, questions) for name in metrics},
            predictions=predictions,
        )


@dataclass(frozen=True)
class ReasoningSet:
    """Sentences about two pictures of a split."""

    rows: Dataset
    processor: VLMoProcessor
    source: str
    split: str

    @property
    def sentences(self) -> list[nlvr2.Sentence]:
        """What is known of each."""
        names = ("image_id", "captions", "sentence_group", "label")
        columns = zip(*(column(self.rows, name) for name in names), strict=True)
        return [
            nlvr2.Sentence(
                identifier=identifier,
                sentence=captions[0],
                group=group,
                label=bool(label) if label in {0, 1} else None,
            )
            for identifier, captions, group, label in columns
        ]

    def batches(self, *, batch_size: int = BATCH_SIZE) -> Iterator[Batch]:
        """What the model reads, in the rows' order."""
        examples = ReasoningExamples(self.rows, **_reading(self.processor), labelled=False)
        return in_batches(examples, batch_size=batch_size)

    def predict(self, model: PairModel, *, batch_size: int = BATCH_SIZE, advance: Advance | None) -> list[Prediction]:
        """The model's judgement of each sentence, with the label where it is known; shared among processes."""

        def judge(own: ReasoningSet) -> list[Prediction]:
            judged = nlvr2.judge_sentences(model, own.batches(batch_size=batch_size), advance=advance)
            return [_judged(sentence, given) for sentence, given in zip(own.sentences, judged, strict=True)]

        return _shared(self, judge)

    def score(self, predictions: list[Prediction]) -> TaskResult:
        """Figures of such predictions.

        Raises:
            ValueError: No label is known.
        """
        sentences = self.sentences
        return TaskResult(
            task=NLVR2,
            source=self.source,
            split=self.split,
            metrics=nlvr2.nlvr2_metrics(sentences, [prediction["prediction"] for prediction in predictions]),
            chance=nlvr2.guessed_metrics(sentences),
            meanings=_NLVR2_MEANINGS,
            predictions=predictions,
        )


AnySet = TypeVar("AnySet", QuestionSet, ReasoningSet)


def read_questions(
    source: str, *, split: str, processor: VLMoProcessor, quarantine: Path, limit: int | None = None
) -> QuestionSet:
    """Questions of a source that can be used; the others are named in `quarantine`.

    Args:
        limit: Read the first rows only.

    Raises:
        ValueError: They are rows of another task, or too many cannot be used.
    """
    rows = open_source(source, split=split)
    check_task(rows, QUESTION_FEATURES, task="questions about pictures")
    rows = _first(rows, limit)
    _check_questions(rows, source=source)
    rows = filter_invalid_rows(rows, quarantine=quarantine, needs_caption=False, unique_ids=False)
    return QuestionSet(rows, processor=processor, source=source, split=split)


def read_sentences(
    source: str, *, split: str, processor: VLMoProcessor, quarantine: Path, limit: int | None = None
) -> ReasoningSet:
    """Sentences of a source that can be used, as `read_questions`."""
    rows = open_source(source, split=split)
    check_task(rows, REASONING_FEATURES, task="sentences about two pictures")
    rows = _first(rows, limit)
    check_truth(rows, needs_all=False)
    rows = filter_invalid_rows(rows, quarantine=quarantine)
    return ReasoningSet(rows, processor=processor, source=source, split=split)


@dataclass(frozen=True)
class TaskEvaluator:
    """What a run calls to measure its model; the figures are those of the whole split, without its parts."""

    rows: QuestionSet | ReasoningSet

    def __call__(self, model: nn.Module) -> dict[str, float]:
        """Figures, fractions."""
        result = self._result(model)
        return {name: value for name, value in result.metrics.items() if "[" not in name}

    def measurements(self, metrics: Mapping[str, float], *, measured_by: str) -> list[Measurement]:
        """Figures that this evaluator gave, as the model's card shows them."""
        rows = self.rows
        if isinstance(rows, QuestionSet):
            task, chance = VQA, vqa.guessed_metrics(rows.questions)
            meanings = {name: _meaning(name, rows.questions) for name in metrics}
        else:
            task, chance, meanings = NLVR2, nlvr2.guessed_metrics(rows.sentences), _NLVR2_MEANINGS
        return task_measurements(
            metrics,
            task=task,
            chance=chance,
            meanings=meanings,
            source=rows.source,
            split=rows.split,
            measured_by=measured_by,
        )

    def _result(self, model: nn.Module) -> TaskResult:
        reader: Any = model
        rows = self.rows
        if isinstance(rows, QuestionSet):
            return rows.score(rows.predict(reader, names=reader.config.id2label, advance=None))
        return rows.score(rows.predict(reader, advance=None))


def _shared(rows: AnySet, predict: Callable[[AnySet], list[Prediction]]) -> list[Prediction]:
    """Predictions for all rows in their order; each process makes those of every `world_size`-th row."""
    total, processes = len(rows.rows), world_size()
    if processes == 1:
        return predict(rows)
    own = range(rank(), total, processes)
    parts = gather_objects(predict(dataclasses.replace(rows, rows=select_rows(rows.rows, own))) if own else [])
    return [parts[row % processes][row // processes] for row in range(total)]


def in_batches(examples: Examples, *, batch_size: int) -> Iterator[Batch]:
    """Examples in their order, as they are in epoch 0."""
    for start in range(0, len(examples), batch_size):
        stop = min(start + batch_size, len(examples))
        batch = examples.collate([examples[0, row] for row in range(start, stop)])
        batch["pixel_values"] = normalize_pixels(batch["pixel_values"])
        yield batch


def _reading(processor: VLMoProcessor) -> dict[str, Any]:
    transform = eval_transform(TransformConfig(image_size=processor.image_size))
    return {"transform": transform, "tokenizer": processor.tokenizer, "seed": 0}


def _check_questions(rows: Dataset, *, source: str) -> None:
    """Refuses answers that could not be scored once the model has given its own.

    Raises:
        ValueError: A question has two or three annotators, or the number of an answer that the set's list lacks.
    """
    names = column(rows, "question_id")
    for name, answers in zip(names, column(rows, "answers"), strict=True):
        if answers and 1 < len(answers) < MIN_ANNOTATORS:
            raise ValueError(
                f"question {name!r} has {len(answers)} answers ({', '.join(answers)}); expected ten of ten people, one "
                "that is right, or none"
            )
    labels = column(rows, "answer_labels")
    if any(labels):
        check_answers(rows, labels, num_answers=len(answers_of(source)))


def _first(rows: Dataset, limit: int | None) -> Dataset:
    if limit is not None and limit < 1:
        raise ValueError(f"limit is {limit}; give the number of rows to read, from 1 up, or none for all")
    return rows if limit is None else select_rows(rows, range(min(limit, len(rows))))


def _answered(question: vqa.Question, given: vqa.Answer) -> Prediction:
    row: Prediction = {
        "question_id": question.question_id,
        "image_id": question.image_id,
        "question": question.question,
        "answer": given.answer,
        "confidence": round(given.confidence, 4),
    }
    if question.answers:
        row["annotators"] = list(question.answers)
    elif question.soft_scores:
        row["soft_scores"] = dict(question.soft_scores)
    return row | {"score": round(question.score(given.answer), 4)} if question.is_known else row


def _judged(sentence: nlvr2.Sentence, given: nlvr2.Judgement) -> Prediction:
    row: Prediction = {
        "identifier": sentence.identifier,
        "sentence": sentence.sentence,
        "prediction": given.is_true,
        "confidence": round(given.confidence, 4),
    }
    return row if sentence.label is None else row | {"label": sentence.label, "group": sentence.group}


def _meaning(metric: str, questions: list[vqa.Question]) -> str:
    meaning = _QUESTIONS if any(len(question.answers) > 1 for question in questions) else _ONE_ANSWER
    meaning = _SOFT if any(question.soft_scores for question in questions) else meaning
    _, bracket, part = metric.partition("[")
    kind, _, name = part.rstrip("]").partition(": ")
    return f"{meaning}; {_GUESS}" if not bracket else f"of these, {kind} type {name!r}"
