"""Figures of any model folder: finds the task, and refuses what that task does not read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

from rich.console import Console

from vlmo.evaluation.segmentation import Inference
from vlmo.folder import architectures
from vlmo.recipes.answering import evaluate_nlvr2, evaluate_vqa, write_nlvr2_submission, write_vqa_submission
from vlmo.recipes.retrieval import evaluate_folder
from vlmo.recipes.task_result import TaskResult
from vlmo.recipes.vision_tasks import (
    evaluate_classification,
    evaluate_linear_probe,
    evaluate_segmentation,
    evaluate_zero_shot,
)

Task = Literal["retrieval", "vqa", "nlvr2", "classification", "segmentation"]
Method = Literal["head", "linear-probe", "zero-shot"]

TASK_OF_MODEL: dict[str, Task] = {
    "VLMoForPreTraining": "retrieval",
    "VLMoForImageTextRetrieval": "retrieval",
    "VLMoForVisualQuestionAnswering": "vqa",
    "VLMoForVisualReasoning": "nlvr2",
    "VLMoForImageClassification": "classification",
    "VLMoForSemanticSegmentation": "segmentation",
}
"""What each class of model is for."""

DEFAULT_DATA = {"retrieval": "emoji-pairs"}
"""What a task is measured on where nothing is named."""
_READ_BY: dict[str, set[str]] = {
    "retrieval": {"rerank", "rerank_weight"},
    "vqa": set(),
    "nlvr2": set(),
    "classification": {"method"},
    "segmentation": {"inference"},
}


@dataclass(frozen=True)
class TaskOptions:
    """What single tasks read; None leaves the choice to the task."""

    rerank: int | None = None
    """retrieval: candidates of each query that the fusion encoder reorders; 0 leaves it out. Default: 16, or 0 for a
    model without a matching head."""
    rerank_weight: float | None = None
    """retrieval: share of the matching score in the new order, 0 to 1; by default the model's."""
    method: Method | None = None
    """classification: the model's own classifier (default), a linear probe fitted on the split "train", or zero-shot by
    the names of the classes."""
    inference: Inference | None = None
    """segmentation: windows of the training crop's size (slide, default), or whole pictures."""


def task_of(folder: str | Path) -> Task:
    """The task that the model of a folder is for.

    Raises:
        ValueError: It is no model folder, or its model is for none.
    """
    kinds = architectures(folder)
    for kind in kinds:
        if kind in TASK_OF_MODEL:
            return TASK_OF_MODEL[kind]
    raise ValueError(
        f"{folder} holds {', '.join(kinds) or 'no named class'}, which is for none of the tasks "
        f"{', '.join(get_args(Task))}. Start a fine-tuning from it: vlmo train RECIPE --init {folder}"
    )


def evaluate_task(
    folder: str | Path,
    *,
    task: Task | None = None,
    source: str | None = None,
    split: str = "test",
    limit: int | None = None,
    batch_size: int | None = None,
    options: TaskOptions | None = None,
    device: str | None = None,
    console: Console | None = None,
) -> TaskResult:
    """Figures of a model folder on a split.

    Args:
        task: None asks the folder.
        source: The data; may be left out for retrieval only (`emoji-pairs`).
        limit: Read the first rows only.
        batch_size: Rows that go through the model at a time; None takes the task's.
        console: Where the progress bar goes; None shows nothing.

    Raises:
        ValueError: The folder is one of another task, an option belongs to another task, or the data cannot be used.
    """
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; give the number of rows that go through the model, from 1 up")
    task = task or task_of(folder)
    given = _given(options or TaskOptions(), task=task)
    where: dict[str, Any] = {"source": _source(source, task=task), "split": split, "limit": limit, "device": device}
    where |= {"console": console} | ({} if batch_size is None else {"batch_size": batch_size})
    if task == "retrieval":
        return evaluate_folder(folder, **given, **where)
    if task == "vqa":
        return evaluate_vqa(folder, **where)
    if task == "nlvr2":
        return evaluate_nlvr2(folder, **where)
    if task == "segmentation":
        return evaluate_segmentation(folder, **given, **where)
    methods = {"linear-probe": evaluate_linear_probe, "zero-shot": evaluate_zero_shot, "head": evaluate_classification}
    return methods[given.get("method", "head")](folder, **where)


def write_submission(
    folder: str | Path,
    file: str | Path,
    *,
    task: Task | None = None,
    source: str | None = None,
    split: str = "test",
    device: str | None = None,
    console: Console | None = None,
) -> int:
    """Writes a split's predictions as the evaluation server of its task takes them; returns their number.

    Raises:
        ValueError: The task has no such server, or as `evaluate_task`.
    """
    task = task or task_of(folder)
    writers = {"vqa": write_vqa_submission, "nlvr2": write_nlvr2_submission}
    if task not in writers:
        raise ValueError(f"a submission is for the tasks {' and '.join(writers)}; this is {task}")
    source = _source(source, task=task)
    return writers[task](folder, file, source=source, split=split, device=device, console=console)


def _source(source: str | None, *, task: Task) -> str:
    if source is None and task not in DEFAULT_DATA:
        raise ValueError(f"the task {task} needs data: give --data with a built-in name or a path (docs/data.md)")
    return source or DEFAULT_DATA[task]


def _given(options: TaskOptions, *, task: Task) -> Mapping[str, Any]:
    """Options that are not None.

    Raises:
        ValueError: One of them belongs to another task.
    """
    given = {name: value for name, value in asdict(options).items() if value is not None}
    for field in fields(options):
        if field.name in given and field.name not in _READ_BY[task]:
            owner = next(name for name, names in _READ_BY.items() if field.name in names)
            raise ValueError(f"--{field.name.replace('_', '-')} belongs to the task {owner}; this is {task}")
    return given
