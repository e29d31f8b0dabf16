"""VQA: questions about an image, answered with one of a list of answers."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from PIL import Image
from torch import Tensor, nn

from vlmo.data.examples import Contents, Examples, RowExamples
from vlmo.data.rows import column, select_rows
from vlmo.distributed import is_main
from vlmo.evaluation.metrics import Metric, Question, vqa_metrics
from vlmo.folder.atomic import atomic_file
from vlmo.folder.card import Usage
from vlmo.processing.answers import MIN_ANNOTATORS
from vlmo.tasks.evaluation_set import EvaluationSet
from vlmo.tasks.inputs import Accepts, Inputs, Reads
from vlmo.tasks.labels import (
    are_numbers,
    best_labels,
    check_task,
    eval_contents,
    label_settings,
    names_of_model,
    names_of_source,
    pair_logits,
)
from vlmo.tasks.result import Prediction
from vlmo.tasks.task import RunContext, Task
from vlmo.types import Batch
from vlmo.visualization import heat_map

if TYPE_CHECKING:
    from datasets import Dataset

    from vlmo.model import VLMoForVisualQuestionAnswering

_LOGGER = logging.getLogger(__name__)
_SHOWN_PIXELS = 384


def question_examples(
    dataset: Dataset, contents: Contents, *, num_answers: int | None
) -> RowExamples:
    """Return questions about images, with a score for each answer of the set (`num_answers`; None leaves `labels` out).

    Raises:
        ValueError: Rows of another task, no row with an answer, or an answer that is not in the list.
    """
    check_task(dataset, "QUESTION_FEATURES", task="questions about images")
    answered = [
        row
        for row, answers in enumerate(column(dataset, "answers"))
        if answers or num_answers is None
    ]
    if unknown := len(dataset) - len(answered):
        dataset = select_rows(dataset, answered)
        if is_main():
            _LOGGER.info("%s questions without an answer are left out of training", f"{unknown:,}")
    texts = [[question] for question in column(dataset, "question")]
    if num_answers is None:
        return RowExamples(dataset, contents, texts=texts)
    numbers = column(dataset, "answer_labels")
    scores = column(dataset, "answer_scores")
    if not any(numbers):
        raise ValueError(
            "no row has an answer of the set's list; give a part of the set that has answers"
        )
    for name, given in zip(column(dataset, "question_id"), numbers, strict=True):
        if given and not 0 <= min(given) <= max(given) < num_answers:
            known = f"the set's list has {num_answers} answers, 0 to {num_answers - 1}"
            raise ValueError(f"question {name!r} has answer numbers {list(given)}; {known}")

    def targets(row: int) -> Tensor:
        values = torch.zeros(num_answers)
        values[torch.tensor(numbers[row], dtype=torch.int64)] = torch.tensor(scores[row])
        return values

    return RowExamples(dataset, contents, texts=texts, labels=targets)


@dataclass(frozen=True)
class QuestionSet(EvaluationSet):
    """Questions of a split; an output is the prediction for a question."""

    task: ClassVar[str] = "vqa"
    hub_task: ClassVar[str] = "visual-question-answering"
    reads = Reads(unique_ids=False)

    @cached_property
    def questions(self) -> list[Question]:
        """The questions with their known answers."""
        names = ("question_id", "image_id", "question", "question_type", "answer_type", "answers")
        rows = zip(*(column(self.rows, name) for name in names), strict=True)
        return [
            Question(name, image, asked, kind or "", of or "", tuple(answers or ()))
            for name, image, asked, kind, of, answers in rows
        ]

    @classmethod
    def check_rows(cls, rows: Dataset, _source: str) -> None:
        """Raise ValueError for rows that are no questions, and for answers that could not be scored afterwards."""
        check_task(rows, "QUESTION_FEATURES", task="questions about images")
        for name, answers in zip(column(rows, "question_id"), column(rows, "answers"), strict=True):
            if answers and 1 < len(answers) < MIN_ANNOTATORS:
                expected = "expected ten of ten people, one that is right, or none"
                raise ValueError(
                    f"question {name!r} has {len(answers)} answers ({', '.join(answers)}); {expected}"
                )

    def check(self, model: Any) -> None:
        """Give a model whose answers are only numbered those of the set; ValueError if the set has not as many."""
        own = names_of_model(model)
        names = []
        if not are_numbers(own):
            return
        with contextlib.suppress(ValueError):  # the set has no list
            names = names_of_source(self.source)
        if len(names) != len(own):
            raise ValueError(
                f"the model's {len(own):,} answers have no names, and {self.source} lists {len(names):,}; name them in "
                "the order of its training: --labels of vlmo import, or of vlmo models NAME"
            )
        for name, value in label_settings(names).items():
            setattr(model.config, name, value)
        if is_main():
            _LOGGER.info(
                "the model's %s answers have no names; they are those of %s",
                f"{len(own):,}",
                self.source,
            )

    def predict(self, model: Any, rows: range) -> list[Prediction]:
        """Return the best answer to each question; with its score if the right answers are known."""
        chosen = select_rows(self.rows, rows)
        examples = question_examples(chosen, eval_contents(self.processor), num_answers=None)
        best = pair_logits(model, examples).sigmoid().max(dim=-1)
        predictions = list[Prediction]()
        questions = self.questions[rows.start : rows.stop]
        for asked, share, number in zip(
            questions, best.values.tolist(), best.indices.tolist(), strict=True
        ):
            answer = model.config.id2label[number]
            row: Prediction = {
                name: vars(asked)[name] for name in ("question_id", "image_id", "question")
            }
            row |= {"answer": answer, "confidence": round(share, 4)}
            if asked.answers:
                row |= {"annotators": list(asked.answers), "score": round(asked.score(answer), 4)}
            predictions.append(row)
        return predictions

    def metrics(self, outputs: list[Prediction]) -> list[Metric]:
        """Return VQA's accuracy: of all questions, and by answer type and question type."""
        return vqa_metrics(self.questions, [prediction["answer"] for prediction in outputs])

    @staticmethod
    def submission(predictions: Sequence[Prediction]) -> str:
        """Return JSON, a list of `{"question_id", "answer"}`; identifiers that are numbers are written as numbers."""
        rows = [
            {
                "question_id": int(name) if (name := row["question_id"]).isdecimal() else name,
                "answer": row["answer"],
            }
            for row in predictions
        ]
        return json.dumps(rows, ensure_ascii=False) + "\n"


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
        output = self.model(
            batch["pixel_values"], batch["input_ids"], batch["attention_mask"], labels
        )
        score = labels.gather(1, output.logits.argmax(dim=-1, keepdim=True)).mean()
        return {"loss": output.loss, "vqa": output.loss.detach(), "vqa_score": score}


@dataclass(frozen=True)
class VQATask(Task):
    """Fine-tuning on questions, VQA."""

    name: ClassVar[str] = "vqa"
    title: ClassVar[str] = "fine-tuning on questions (VQA)"
    reads = Reads(unique_ids=False)
    evaluation: ClassVar[type[EvaluationSet] | None] = QuestionSet
    num_classes: ClassVar[int | None] = 3129
    architectures = ("VLMoForVisualQuestionAnswering",)
    usage: ClassVar[Usage | None] = Usage(
        "answers a question about an image with one of a fixed set of answers",
        "visual-question-answering",
        '"image.png", question="what color is it?"',
    )
    accepts = Accepts("one --image and a --question", question=True, saves=True)
    head: ClassVar[str] = "answer_head"
    head_lr_scale: float = 20.0
    """Factor on the learning rate of the answer head, which starts at random."""

    def label_names(self, run: RunContext) -> list[str]:
        """Return the answers of the data's list."""
        return names_of_source(run.data.source)

    def step(self, model: Any) -> nn.Module:
        """Return the loss over all answers."""
        return QuestionObjective(model)

    def examples(self, run: RunContext) -> Examples:
        """Return the questions that have an answer, with their images and the score of each answer."""
        contents = replace(self.contents(run), tokenizer=run.tokenizer)
        return question_examples(run.rows, contents, num_answers=len(self.label_names(run)))

    def batch_without_data(self, batch: Batch) -> Batch:
        """Return questions with a score of each answer."""
        return {**batch, "labels": torch.zeros(len(batch["input_ids"]), self.num_classes or 0)}

    @classmethod
    def answer(
        cls, model: Any, processor: Any, images: Sequence[Image.Image], inputs: Inputs
    ) -> list[Prediction]:
        """Return the best answers, each with its confidence, the sigmoid of its logit.

        The image that can be saved shows the attention of the question's first token, out of whose state the answer is
        read; the mean over the fusion layers.
        """
        encoded: Any = processor(images=images[0], text=inputs.question, return_tensors="pt").to(
            model.device
        )
        scores = model(**encoded).logits[0].float().sigmoid()
        if inputs.save is not None:
            from vlmo.model.attention_maps import attention_maps

            seen = heat_map(
                images[0], attention_maps(model, **encoded)[0, 0].float().cpu(), size=_SHOWN_PIXELS
            )
            with atomic_file(inputs.save) as aside:
                seen.save(aside, format="PNG")
        return best_labels(model, scores, top=inputs.top, kind="answer")
