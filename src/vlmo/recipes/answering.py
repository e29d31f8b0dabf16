"""Questions (VQA) and sentences about two pictures (NLVR2) with a model folder: figures, submissions, answers."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from vlmo.data.sources import decode_image
from vlmo.drawing.pictures import heat_map
from vlmo.evaluation.inference import Advance
from vlmo.folder import write_file
from vlmo.model import VLMoForVisualQuestionAnswering, VLMoForVisualReasoning
from vlmo.model.attention_maps import attention_maps
from vlmo.recipes.answering_sets import (
    BATCH_SIZE,
    NLVR2,
    VQA,
    QuestionSet,
    ReasoningSet,
    read_questions,
    read_sentences,
)
from vlmo.recipes.task_model import load_processor, load_task_model
from vlmo.recipes.task_result import Prediction, TaskResult
from vlmo.released import notes_folder

_VQA_RECIPE, _NLVR2_RECIPE = "easy-vqa", "easy-vqa-pairs"
_SHOWN_PIXELS = 384


def evaluate_vqa(
    folder: str | Path,
    *,
    source: str,
    split: str,
    limit: int | None = None,
    batch_size: int = BATCH_SIZE,
    device: str | None = None,
    console: Console | None = None,
) -> TaskResult:
    """VQA's accuracy of a model folder on a split: of all questions, and by answer type and question type.

    Args:
        limit: Read the first rows only.
        console: Where the progress bar goes; None shows nothing.

    Raises:
        ValueError: The folder holds no model for questions, the rows are of another task, or have no answers.
    """
    questions, predictions = _answers(
        folder, source=source, split=split, limit=limit, batch_size=batch_size, device=device, console=console
    )
    return questions.score(predictions)


def evaluate_nlvr2(
    folder: str | Path,
    *,
    source: str,
    split: str,
    limit: int | None = None,
    batch_size: int = BATCH_SIZE,
    device: str | None = None,
    console: Console | None = None,
) -> TaskResult:
    """NLVR2's accuracy and consistency of a model folder on a split; arguments and errors as `evaluate_vqa`."""
    sentences, predictions = _judgements(
        folder, source=source, split=split, limit=limit, batch_size=batch_size, device=device, console=console
    )
    return sentences.score(predictions)


def write_vqa_submission(
    folder: str | Path,
    file: str | Path,
    *,
    source: str,
    split: str,
    batch_size: int = BATCH_SIZE,
    device: str | None = None,
    console: Console | None = None,
) -> int:
    """Answers of a split as VQA's evaluation server takes them, JSON; returns their number. No answer need be known."""
    _, predictions = _answers(
        folder, source=source, split=split, limit=None, batch_size=batch_size, device=device, console=console
    )
    _write(file, vqa_submission(predictions))
    return len(predictions)


def write_nlvr2_submission(
    folder: str | Path,
    file: str | Path,
    *,
    source: str,
    split: str,
    batch_size: int = BATCH_SIZE,
    device: str | None = None,
    console: Console | None = None,
) -> int:
    """Judgements of a split as NLVR2's evaluation reads them, CSV; returns their number. No label need be known."""
    _, predictions = _judgements(
        folder, source=source, split=split, limit=None, batch_size=batch_size, device=device, console=console
    )
    _write(file, nlvr2_submission(predictions))
    return len(predictions)


def vqa_submission(predictions: Sequence[Prediction]) -> str:
    """JSON, a list of `{"question_id", "answer"}`; identifiers that are numbers are written as numbers."""
    rows = [
        {"question_id": int(name) if (name := row["question_id"]).isdecimal() else name, "answer": row["answer"]}
        for row in predictions
    ]
    return json.dumps(rows, ensure_ascii=False) + "\n"


def nlvr2_submission(predictions: Sequence[Prediction]) -> str:
    """CSV without a headline: identifier, then True or False."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows((row["identifier"], row["prediction"]) for row in predictions)
    return text.getvalue()


def predict_vqa(
    folder: str | Path,
    *,
    image: str | Path,
    question: str,
    top: int = 5,
    picture: str | Path | None = None,
    device: str | None = None,
) -> list[Prediction]:
    """The best `top` answers to a question about a picture, each with its confidence, the sigmoid of its logit.

    Args:
        picture: PNG file for the picture with what the question's first token looks at, out of whose state the answer
            is read; the mean over the fusion blocks.

    Raises:
        ValueError: The folder holds no model for questions, the question is empty, or the picture cannot be read.
    """
    if not question.strip() or top < 1:
        raise ValueError(
            f"question is {question!r} and top {top}; give a question, and the number of answers from 1 up"
        )
    opened = _open(image)
    model = load_task_model(folder, VLMoForVisualQuestionAnswering, task=VQA, recipe=_VQA_RECIPE, device=device)
    inputs = load_processor(folder)(images=opened, text=question, return_tensors="pt").to(model.device)
    with torch.inference_mode():
        scores = model(**inputs).logits[0].float().sigmoid()
    if picture is not None:
        _draw_attention(model, inputs=inputs, picture=opened).save(_parent_of(picture), format="PNG")
    best = scores.topk(min(top, len(scores)))
    names: Any = model.config.id2label
    return [
        {"answer": names[number], "confidence": round(score, 4)}
        for score, number in zip(best.values.tolist(), best.indices.tolist(), strict=True)
    ]


def predict_nlvr2(
    folder: str | Path, *, left: str | Path, right: str | Path, sentence: str, device: str | None = None
) -> Prediction:
    """Whether a sentence is true of two pictures, with the model's share of "true".

    Raises:
        ValueError: The folder holds no such model, the sentence is empty, or a picture cannot be read.
    """
    if not sentence.strip():
        raise ValueError("the sentence is empty; give one about two pictures")
    opened = [_open(left), _open(right)]
    model = load_task_model(folder, VLMoForVisualReasoning, task=NLVR2, recipe=_NLVR2_RECIPE, device=device)
    inputs = load_processor(folder)(images=opened, text=sentence, return_tensors="pt").to(model.device)
    inputs["pixel_values"] = inputs["pixel_values"][None]
    with torch.inference_mode():
        shares = model(**inputs).logits[0].float().softmax(dim=-1).tolist()
    return {"prediction": shares[1] > shares[0], "confidence": round(shares[1], 4)}


def _answers(
    folder: str | Path,
    *,
    source: str,
    split: str,
    limit: int | None,
    batch_size: int,
    device: str | None,
    console: Console | None,
) -> tuple[QuestionSet, list[Prediction]]:
    model = load_task_model(folder, VLMoForVisualQuestionAnswering, task=VQA, recipe=_VQA_RECIPE, device=device)
    rows = read_questions(source, **_part(folder, split=split, limit=limit))
    with _bar("answering questions", total=len(rows.rows), console=console) as advance:
        names: Any = model.config.id2label
        return rows, rows.predict(model, names=names, batch_size=batch_size, advance=advance)


def _judgements(
    folder: str | Path,
    *,
    source: str,
    split: str,
    limit: int | None,
    batch_size: int,
    device: str | None,
    console: Console | None,
) -> tuple[ReasoningSet, list[Prediction]]:
    model = load_task_model(folder, VLMoForVisualReasoning, task=NLVR2, recipe=_NLVR2_RECIPE, device=device)
    rows = read_sentences(source, **_part(folder, split=split, limit=limit))
    with _bar("judging sentences", total=len(rows.rows), console=console) as advance:
        return rows, rows.predict(model, batch_size=batch_size, advance=advance)


def _part(folder: str | Path, *, split: str, limit: int | None) -> dict[str, Any]:
    return {
        "split": split,
        "processor": load_processor(folder),
        "quarantine": notes_folder(folder) / f"{split}.quarantine.jsonl",
        "limit": limit,
    }


@contextmanager
def _bar(title: str, *, total: int, console: Console | None) -> Iterator[Advance]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=console is None, transient=True) as bar:
        task = bar.add_task(title, total=total)
        yield lambda done: bar.update(task, completed=done)


def _draw_attention(model: VLMoForVisualQuestionAnswering, *, inputs: Any, picture: Image.Image) -> Image.Image:
    return heat_map(picture, attention_maps(model, **inputs)[0, 0], size=_SHOWN_PIXELS)


def _open(file: str | Path) -> Image.Image:
    return decode_image({"bytes": None, "path": str(Path(file).expanduser())})


def _write(file: str | Path, text: str) -> None:
    write_file(_parent_of(file), text)


def _parent_of(file: str | Path) -> Path:
    """The file's path; its folder is there from now on."""
    file = Path(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    return file
