"""VQA: questions about an image, answered with one of a list of answers."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from PIL import Image
from torch import Tensor, nn

from vlmo.data.examples import Examples, RowExamples
from vlmo.data.rows import column, select_rows
from vlmo.distributed import is_main
from vlmo.evaluation.metrics import Metric, Question, vqa_metrics
from vlmo.folder.atomic import atomic_file
from vlmo.folder.card import Usage
from vlmo.model.config import FusionStart
from vlmo.processing.answers import MIN_ANNOTATORS
from vlmo.tasks.evaluation_set import EvaluationSet
from vlmo.tasks.labels import (
    are_numbers,
    best_labels,
    check_task,
    eval_options,
    head_lr_scale,
    label_settings,
    names_of_model,
    names_of_source,
    pair_logits,
)
from vlmo.tasks.result import Prediction
from vlmo.tasks.run_context import RunContext
from vlmo.tasks.task import Inputs, Task
from vlmo.types import Batch
from vlmo.visualization import heat_map

if TYPE_CHECKING:
    from datasets import Dataset

    from vlmo.model import VLMoForVisualQuestionAnswering

_LOGGER = logging.getLogger(__name__)
_SHOWN_PIXELS = 384


def question_examples(dataset: Dataset, *, num_answers: int | None, **options: Any) -> RowExamples:
    """Return questions about images, with a score for each answer of the set (`num_answers`; None leaves `labels` out).

    Raises:
        ValueError: Rows of another task, no row with an answer, or an answer that is not in the list.
    """
    check_task(dataset, "QUESTION_FEATURES", task="questions about images")
    options["texts"] = [[question] for question in column(dataset, "question")]
    if num_answers is None:
        return RowExamples(dataset, **options)
    numbers: list[list[int]] = column(dataset, "answer_labels")
    scores: list[list[float]] = column(dataset, "answer_scores")
    check_answers(dataset, numbers, num_answers=num_answers)

    def targets(row: int) -> Tensor:
        values = torch.zeros(num_answers)
        values[torch.tensor(numbers[row], dtype=torch.int64)] = torch.tensor(scores[row])
        return values

    return RowExamples(dataset, labels=targets, **options)


def check_answers(dataset: Dataset, labels: Sequence[Sequence[int]], *, num_answers: int) -> None:
    """Raise ValueError if an answer's number is not in the list of `num_answers`, or no row has an answer."""
    if not any(labels):
        raise ValueError("no row has an answer of the set's list; give a part of the set that has answers")
    for row, numbers in enumerate(labels):
        if numbers and not 0 <= min(numbers) <= max(numbers) < num_answers:
            name = column(dataset, "question_id")[row]
            raise ValueError(
                f"question {name!r} has answer numbers {list(numbers)}; the set's list has {num_answers} answers, "
                f"0 to {num_answers - 1}"
            )


@dataclass(frozen=True)
class QuestionSet(EvaluationSet):
    """Questions of a split; an output is the prediction for a question."""

    task: ClassVar[str] = "vqa"
    hub_task: ClassVar[str] = "visual-question-answering"
    needs: ClassVar[dict[str, Any]] = {"needs_caption": False, "unique_ids": False}

    @cached_property
    def questions(self) -> list[Question]:
        """The questions with their known answers; soft scores stand where the annotators' words are not kept."""
        names = ("question_id", "image_id", "question", "question_type", "answer_type", "answers")
        columns = [column(self.rows, name) for name in (*names, "answer_labels", "answer_scores")]
        questions = []
        for name, image, asked, kind, answer_kind, answers, labels, scores in zip(*columns, strict=True):
            soft_scores = {}
            if labels and not answers:
                known = zip(labels, scores, strict=True)
                soft_scores = {self.answer_names[label]: round(score, 4) for label, score in known}
            given = tuple(answers or ())
            questions.append(Question(name, image, asked, kind or "", answer_kind or "", given, soft_scores))
        return questions

    @cached_property
    def answer_names(self) -> list[str]:
        """Every answer of the set's list."""
        return names_of_source(self.source)

    @classmethod
    def check_rows(cls, rows: Dataset, source: str) -> None:
        """Raise ValueError for rows that are no questions, and for answers that could not be scored afterwards."""
        check_task(rows, "QUESTION_FEATURES", task="questions about images")
        for name, answers in zip(column(rows, "question_id"), column(rows, "answers"), strict=True):
            if answers and 1 < len(answers) < MIN_ANNOTATORS:
                raise ValueError(
                    f"question {name!r} has {len(answers)} answers ({', '.join(answers)}); expected ten of ten people, "
                    "one that is right, or none"
                )
        if any(labels := column(rows, "answer_labels")):
            check_answers(rows, labels, num_answers=len(names_of_source(source)))

    def check(self, model: Any) -> None:
        """Give a model whose answers are only numbered those of the set; ValueError if the set has not as many."""
        own = names_of_model(model)
        if not are_numbers(own):
            return
        try:
            names = self.answer_names
        except ValueError:
            names = []
        if len(names) != len(own):
            raise ValueError(
                f"the model's {len(own):,} answers have no names, and {self.source} lists {len(names):,}; name them in "
                "the order of its training: --labels of vlmo import, or of vlmo models NAME"
            )
        for name, value in label_settings(names).items():
            setattr(model.config, name, value)
        if is_main():
            _LOGGER.info("the model's %s answers have no names; they are those of %s", f"{len(own):,}", self.source)

    def predict(self, model: Any, rows: range) -> list[Prediction]:
        """Return the best answer to each question; with its score if the right answers are known."""
        chosen = select_rows(self.rows, rows)
        examples = question_examples(chosen, num_answers=None, **eval_options(self.processor))
        best = pair_logits(model, examples).sigmoid().max(dim=-1)
        found = zip(self.questions[rows.start : rows.stop], best.values.tolist(), best.indices.tolist(), strict=True)
        return [_answered(question, model.config.id2label[number], share) for question, share, number in found]

    def metrics(self, outputs: list[Prediction]) -> list[Metric]:
        """Return VQA's accuracy: of all questions, and by answer type and question type."""
        return vqa_metrics(self.questions, [prediction["answer"] for prediction in outputs])

    @staticmethod
    def submission(predictions: Sequence[Prediction]) -> str:
        """Return JSON, a list of `{"question_id", "answer"}`; identifiers that are numbers are written as numbers."""
        rows = [
            {"question_id": int(name) if (name := row["question_id"]).isdecimal() else name, "answer": row["answer"]}
            for row in predictions
        ]
        return json.dumps(rows, ensure_ascii=False) + "\n"


def _answered(question: Question, answer: str, confidence: float) -> Prediction:
    row: Prediction = {
        "question_id": question.question_id,
        "image_id": question.image_id,
        "question": question.question,
        "answer": answer,
        "confidence": round(confidence, 4),
    }
    if question.answers:
        row["annotators"] = list(question.answers)
    elif question.soft_scores:
        row["soft_scores"] = dict(question.soft_scores)
    return row | {"score": round(question.score(answer), 4)} if question.is_known else row


class QuestionObjective(nn.Module):
    """VQA: a score of every answer to a question (VLMo, "Vision-Language Classification")."""

    def __init__(self, model: VLMoForVisualQuestionAnswering) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return `loss` (= `vqa`) and `vqa_score`, the labels' own score of the best answer.

        Reads `pixel_values`, `input_ids`, `attention_mask` and `labels`. Every process has equally many rows, so that
        the mean over processes of each value is that of the global batch.
        """
        labels = batch["labels"]
        output = self.model(batch["pixel_values"], batch["input_ids"], batch["attention_mask"], labels)
        score = labels.gather(1, output.logits.argmax(dim=-1, keepdim=True)).mean()
        return {"loss": output.loss, "vqa": output.loss.detach(), "vqa_score": score}


@dataclass(frozen=True)
class VQATask(Task):
    """Fine-tuning on questions, VQA."""

    name: ClassVar[str] = "vqa"
    title: ClassVar[str] = "fine-tuning on questions (VQA)"
    unique_ids: ClassVar[bool] = False
    evaluation: ClassVar[type[EvaluationSet] | None] = QuestionSet
    num_classes: ClassVar[int | None] = 3129
    architectures = ("VLMoForVisualQuestionAnswering",)
    usage: ClassVar[Usage | None] = Usage(
        "answers a question about an image with one of a fixed set of answers",
        "visual-question-answering",
        '"image.png", question="what color is it?"',
    )
    inputs: ClassVar[str] = "one --image and a --question"
    draws: ClassVar[bool] = True
    head_lr_scale: float = 20.0
    """Factor on the learning rate of the answer head, which starts at random."""
    fusion_experts_from: FusionStart = "language"
    """Expert of the same layer that starts `vision_language` experts which the start folder lacks."""

    def objective(self, run: RunContext) -> nn.Module:
        """Return the loss over the answers of the data's list."""
        model = self.build_model(run.model | label_settings(names_of_source(run.source)))
        run.start(model, fusion_experts_from=self.fusion_experts_from)
        return QuestionObjective(model)

    def examples(self, run: RunContext) -> Examples:
        """Return questions with their images and the score of each answer."""
        options = self.contents(run) | {"tokenizer": run.text_processor.tokenizer}
        options["cache_images"] = run.recipe.data.cache_images
        return question_examples(run.rows, num_answers=len(names_of_source(run.source)), **options)

    def lr_scale(self, model: nn.Module) -> dict[str, float]:
        """Return the factor of the head."""
        return head_lr_scale(model, head="answer_head", scale=self.head_lr_scale)

    @classmethod
    def accepts(cls, inputs: Inputs) -> bool:
        """Return True for one image with a question."""
        return len(inputs.images) == 1 and inputs.question is not None and not inputs.texts

    @classmethod
    def answer(cls, model: Any, processor: Any, images: Sequence[Image.Image], inputs: Inputs) -> list[Prediction]:
        """Return the best answers, each with its confidence, the sigmoid of its logit.

        The image that can be saved shows the attention of the question's first token, out of whose state the answer is
        read; the mean over the fusion layers.
        """
        encoded: Any = processor(images=images[0], text=inputs.question, return_tensors="pt").to(model.device)
        scores = model(**encoded).logits[0].float().sigmoid()
        if inputs.save is not None:
            from vlmo.model.attention_maps import attention_maps

            seen = heat_map(images[0], attention_maps(model, **encoded)[0, 0].float().cpu(), size=_SHOWN_PIXELS)
            with atomic_file(inputs.save) as aside:
                seen.save(aside, format="PNG")
        return best_labels(model, scores, top=inputs.top, kind="answer")
