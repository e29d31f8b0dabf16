"""VQA: questions about an image, answered with one of a list of answers."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from PIL import Image
from torch import Tensor, nn

from vlmo.data.examples import Contents, Examples, RowExamples
from vlmo.data.rows import arrow_table, column, select_rows
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
from vlmo.tasks.task import Losses, Objective, RunContext, Task
from vlmo.types import Batch
from vlmo.visualization import heat_map

if TYPE_CHECKING:
    from datasets import Dataset

    from vlmo.model import VLMoForVisualQuestionAnswering
    from vlmo.processing import VLMoProcessor

_SNIPPET = """\
from PIL import Image
from vlmo import VLMoForVisualQuestionAnswering, VLMoProcessor

folder = "path/to/this/folder"
model = VLMoForVisualQuestionAnswering.from_pretrained(folder).eval()
processor = VLMoProcessor.from_pretrained(folder)
image = Image.open("image.png")
inputs = processor(images=image, text="what color is it?", return_tensors="pt")
result = model.config.id2label[int(model(**inputs).logits.argmax())]
"""
_LOGGER = logging.getLogger(__name__)
# Longer side of the saved image.
_SHOWN_PIXELS = 384


def question_examples(
    dataset: Dataset, contents: Contents, *, num_answers: int | None
) -> RowExamples:
    """Return questions about images, with scores of all answers of the set as `labels`.

    Questions without an answer are left out; `num_answers` of None keeps them, and has no labels.

    Raises:
        ValueError: Rows of another task, no row with an answer, or an answer that is not in the
            list.
    """
    check_task(dataset, "QUESTION_FEATURES", task="questions about images")
    labels = None
    if num_answers is not None:
        answered = [row for row, answers in enumerate(column(dataset, "answers")) if answers]
        num_unanswered = len(dataset) - len(answered)
        if num_unanswered and is_main():
            _LOGGER.info(
                "%s questions without an answer are left out of training", f"{num_unanswered:,}"
            )
        dataset = select_rows(dataset, answered)
        labels = _answer_scores(dataset, num_answers)
    texts = [[question] for question in column(dataset, "question")]
    return RowExamples(dataset, contents, texts=texts, labels=labels)


def _answer_scores(dataset: Dataset, num_answers: int) -> Callable[[int], Tensor]:
    """Return a function from a row to the scores of all answers of the set."""
    numbers = column(dataset, "answer_labels")
    scores = column(dataset, "answer_scores")
    if not any(numbers):
        raise ValueError(
            "no row has an answer of the set's list; give a part of the set that has answers "
            "(in a table of your own a column answer or answers)"
        )
    for name, row_numbers in zip(column(dataset, "question_id"), numbers, strict=True):
        if row_numbers and not 0 <= min(row_numbers) <= max(row_numbers) < num_answers:
            raise ValueError(
                f"question {name!r} has answer numbers {list(row_numbers)}; the set's list has "
                f"{num_answers} answers, 0 to {num_answers - 1}"
            )

    def scores_of_row(row: int) -> Tensor:
        indices = torch.tensor(numbers[row], dtype=torch.int64)
        # Made when the row is read: kept, it would be 3,129 numbers a question.
        return torch.zeros(num_answers).index_put_((indices,), torch.tensor(scores[row]))

    return scores_of_row


class QuestionSet(EvaluationSet):
    """Questions of a split; an output is the prediction for a question."""

    task = "vqa"
    hub_task = "visual-question-answering"
    reads = Reads(unique_ids=False)

    @cached_property
    def questions(self) -> list[Question]:
        """The questions with their known answers."""
        # Types and answers are None where a set has none.
        names = ["question_id", "image_id", "question", "question_type", "answer_type", "answers"]
        return [
            Question(
                row["question_id"],
                row["image_id"],
                row["question"],
                row["question_type"] or "",
                row["answer_type"] or "",
                tuple(row["answers"] or ()),
            )
            for row in arrow_table(self.rows, names).to_pylist()
        ]

    @classmethod
    def check_rows(cls, rows: Dataset, _source: str) -> None:
        """Raise ValueError for rows that are no questions, or answers that cannot be scored."""
        check_task(rows, "QUESTION_FEATURES", task="questions about images")
        for row in arrow_table(rows, ["question_id", "answers"]).to_pylist():
            answers = row["answers"] or ()
            if 1 < len(answers) < MIN_ANNOTATORS:
                raise ValueError(
                    f"question {row['question_id']!r} has {len(answers)} answers "
                    f"({', '.join(answers)}); expected ten of ten people, one that is right, "
                    "or none"
                )

    def check(self, model: VLMoForVisualQuestionAnswering) -> None:
        """Give a model whose answers are only numbered those of the set.

        ValueError if the set has not as many.
        """
        # Published files number their answers and name none.
        count = len(names_of_model(model))
        if not are_numbers(names_of_model(model)):
            return
        names = []
        # The set has no list.
        with contextlib.suppress(ValueError):
            names = names_of_source(self.source)
        if len(names) != count:
            raise ValueError(
                f"the model's {count:,} answers have no names, and {self.source} lists "
                f"{len(names):,}; name them in the order of its training: --labels of vlmo import, "
                "or of vlmo models NAME"
            )
        model.config.update(label_settings(names))
        if is_main():
            _LOGGER.info(
                "the model's %s answers have no names; they are those of %s",
                f"{count:,}",
                self.source,
            )

    def predict(self, model: VLMoForVisualQuestionAnswering, rows: range) -> list[Prediction]:
        """Return the best answers to questions, with scores if the right answers are known."""
        dataset = select_rows(self.rows, rows)
        examples = question_examples(dataset, eval_contents(self.processor), num_answers=None)
        # Several answers may be right: training is by binary cross-entropy, not softmax.
        best = pair_logits(model, examples).sigmoid().max(dim=-1)
        names = names_of_model(model)
        predictions = []
        for question, share, number in zip(
            self.questions[rows.start : rows.stop],
            best.values.tolist(),
            best.indices.tolist(),
            strict=True,
        ):
            answer = names[number]
            row: Prediction = {
                "question_id": question.question_id,
                "image_id": question.image_id,
                "question": question.question,
                "answer": answer,
                "confidence": round(share, 4),
            }
            if question.answers:
                row["annotators"] = list(question.answers)
                row["score"] = round(question.score(answer), 4)
            predictions.append(row)
        return predictions

    def metrics(self, outputs: list[Prediction]) -> list[Metric]:
        """Return VQA's accuracy: of all questions, and by answer type and question type."""
        return vqa_metrics(self.questions, [row["answer"] for row in outputs])

    @staticmethod
    def submission(predictions: Sequence[Prediction]) -> str:
        """Return JSON, a list of `{"question_id", "answer"}`; digits are written as a number."""
        rows = []
        for row in predictions:
            name = row["question_id"]
            number = int(name) if name.isdecimal() else name
            rows.append({"question_id": number, "answer": row["answer"]})
        return json.dumps(rows, ensure_ascii=False) + "\n"


class QuestionObjective(Objective):
    """VQA: scores of all answers to a question (VLMo, "Vision-Language Classification")."""

    def forward(self, batch: Batch) -> Losses:
        """Return `loss` (= `vqa`) and `vqa_score`, the labels' own score of the best answer.

        Reads `pixel_values`, `input_ids`, `attention_mask` and `labels`. Processes have equally
        many rows, so that the mean over processes of a value is that of the global batch.
        """
        labels = batch["labels"]
        output = self.model(
            batch["pixel_values"], batch["input_ids"], batch["attention_mask"], labels
        )
        # (rows, 1): what the likeliest answers score.
        score = labels.gather(1, output.logits.argmax(dim=-1, keepdim=True)).mean()
        return {"loss": output.loss, "vqa": output.loss.detach(), "vqa_score": score}


@dataclass(frozen=True)
class VQATask(Task):
    """Fine-tuning on questions, VQA.

    Attributes:
        head_lr_scale: Factor on the learning rate of the answer head, which starts at random.
    """

    name = "vqa"
    title = "fine-tuning on questions (VQA)"
    reads = Reads(unique_ids=False)
    evaluation = QuestionSet
    # Answers that occur nine times or more in VQAv2.
    num_classes = 3129
    architectures = ("VLMoForVisualQuestionAnswering",)
    usage = Usage(
        "answers a question about an image with one of a fixed set of answers", snippet=_SNIPPET
    )
    accepts = Accepts("one --image and a --question", question=True, saves=True)
    head = "answer_head"
    head_lr_scale: float = 20.0

    def label_names(self, run: RunContext) -> list[str]:
        """Return the answers of the data's list."""
        return names_of_source(run.data.source)

    def step(self, model: VLMoForVisualQuestionAnswering) -> nn.Module:
        """Return the loss over all answers."""
        return QuestionObjective(model)

    def examples(self, run: RunContext) -> Examples:
        """Return the questions that have an answer, with their images and the answers' scores."""
        # Questions are texts of their own: rows need no caption.
        contents = replace(self.contents(run), tokenizer=run.tokenizer)
        return question_examples(run.rows, contents, num_answers=len(self.label_names(run)))

    def batch_without_data(self, batch: Batch) -> Batch:
        """Return questions with scores of all answers."""
        return {**batch, "labels": torch.zeros(len(batch["input_ids"]), self.num_classes or 0)}

    @classmethod
    def answer(
        cls,
        model: VLMoForVisualQuestionAnswering,
        processor: VLMoProcessor,
        images: Sequence[Image.Image],
        inputs: Inputs,
    ) -> list[Prediction]:
        """Return the best answers with their confidence, the sigmoid of the logit.

        The image that can be saved shows the attention of the question's first token, out of whose
        state the answer is read; the mean over the fusion layers.
        """
        encoded = processor(images=images[0], text=inputs.question, return_tensors="pt")
        encoded = encoded.to(model.device)
        scores = model(**encoded).logits[0].float().sigmoid()
        if inputs.save is not None:
            from vlmo.model.attention_maps import attention_maps

            # Of the one pair, and of its question's first token.
            attention = attention_maps(model, **encoded)[0, 0].float().cpu()
            with atomic_file(inputs.save) as aside:
                heat_map(images[0], attention, size=_SHOWN_PIXELS).save(aside, format="PNG")
        return best_labels(model, scores, top=inputs.top, kind="answer")
