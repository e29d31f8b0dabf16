"""The tasks by name, and what can be done with any model folder: evaluate, predict, write a submission."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from vlmo.data.decoding import decode_image
from vlmo.distributed import is_main
from vlmo.folder import architectures
from vlmo.folder.atomic import write_file
from vlmo.folder.card import Usage
from vlmo.released import notes_folder, published_model
from vlmo.tasks.beit3 import BEiT3Task
from vlmo.tasks.captioning import CaptioningTask
from vlmo.tasks.classification import ClassificationTask
from vlmo.tasks.evaluation_set import EvaluationSet
from vlmo.tasks.inputs import Inputs
from vlmo.tasks.labels import are_numbers, names_of_model
from vlmo.tasks.language import LanguageTask
from vlmo.tasks.nlvr2 import NLVR2Task
from vlmo.tasks.result import Prediction, TaskResult
from vlmo.tasks.retrieval import RetrievalTask
from vlmo.tasks.segmentation import SegmentationTask
from vlmo.tasks.task import Task
from vlmo.tasks.tokenizer import TokenizerTask
from vlmo.tasks.vision import VisionTask
from vlmo.tasks.vision_language import VisionLanguageTask
from vlmo.tasks.vqa import VQATask
from vlmo.terminal import escaped, nearest

logger = logging.getLogger(__name__)

_OWN = (
    TokenizerTask,
    VisionTask,
    LanguageTask,
    VisionLanguageTask,
    RetrievalTask,
    VQATask,
    NLVR2Task,
    ClassificationTask,
    SegmentationTask,
    CaptioningTask,
    BEiT3Task,
)
TASKS: dict[str, type[Task]] = {task.name: task for task in _OWN}
"""Every task by its name. Add one of your own with `register`."""
_BACKBONE = Usage(
    "gives states of images, texts or pairs", "image-feature-extraction", '"image.png"'
)
_PERCENT = ("confidence", "share", "match")


def register(task: type[Task]) -> type[Task]:
    """Add a task to those that commands know; usable as a decorator."""
    TASKS[task.name] = task
    return task


def evaluated_tasks() -> dict[str, type[Task]]:
    """Return the tasks that measure model folders and predict with them."""
    return {name: task for name, task in TASKS.items() if task.accepts}


def find_task(name: str) -> type[Task]:
    """Return the task with this name, one that measures model folders; ValueError names the nearest."""
    known = evaluated_tasks()
    if name not in known:
        near = nearest(name, known)
        raise ValueError(
            f"no task {name!r} for --task; did you mean {near}? All: {', '.join(known)}"
        )
    return known[name]


def task_of(folder: str | Path) -> type[Task]:
    """Return the task that the model of a folder is for; ValueError if it is none, or for no task."""
    kinds = architectures(folder)
    known = evaluated_tasks()
    for kind in kinds:
        for task in known.values():
            if kind in task.architectures:
                return task
    raise ValueError(
        f"{folder} holds {', '.join(kinds) or 'no named class'}, which is for none of the tasks "
        f"{', '.join(known)}. Fine-tune it: vlmo finetune {folder} --data DATA (docs/data.md)"
    )


def usage_of(folder: str | Path) -> Usage | None:
    """Return purpose and code of a folder's model for its card, as its task declares them; None for other classes."""
    kinds = architectures(folder)
    if "VLMoModel" in kinds:
        return _BACKBONE
    return next((task.usage for task in TASKS.values() if task.architectures[0] in kinds), None)


def evaluate(
    folder: str | Path,
    *,
    task: str | None = None,
    source: str | None = None,
    split: str = "test",
    limit: int | None = None,
    batch_size: int | None = None,
    device: str | None = None,
    console: Console | None = None,
    **options: Any,
) -> TaskResult:
    """Return the metrics of a model folder on a split. Several processes share the rows.

    Args:
        task: Name of the task; None takes the one that the model is for.
        source: The data; None takes the task's default, if it has one.
        batch_size: Rows that go through the model at a time; None takes the task's.
        options: Options of the task, such as `rerank`; None stands for the task's choice. Of a published classifier,
            `center_crop` is that of its publication.

    Raises:
        ValueError: The folder or an option is for another task, or the data cannot be used.
    """
    if batch_size is not None and batch_size < 1:
        raise ValueError(
            f"batch_size is {batch_size}; give the number of rows that go through the model, from 1 up"
        )
    found = task_of(folder) if task is None else find_task(task)
    published = published_model(folder)
    given = {name: value for name, value in options.items() if value is not None}
    if published is not None and published.task == found.name:
        given = published.options | given
    if unread := [
        name for name in given if found.evaluation is None or name not in found.evaluation.options
    ]:
        raise ValueError(f"--{unread[0].replace('_', '-')} is no option of the task {found.name}")
    model, rows = _load(
        folder, found, device=device, source=source, options=given, split=split, limit=limit
    )
    result = rows.result(rows.outputs(model, batch_size=batch_size, console=console))
    return replace(result, published=published)


def _load(
    folder: str | Path,
    task: type[Task],
    *,
    device: str | None,
    source: str | None,
    options: dict[str, Any],
    **read: Any,
) -> tuple[Any, EvaluationSet]:
    """Return the model of a folder and the rows that it is measured on; ValueError if they do not fit."""
    assert task.evaluation is not None  # commands refuse other tasks
    source = source_of(source, task=task)
    model, processor = task.load(folder, device=device)
    rows = task.evaluation.read(
        source=source, notes=notes_folder(folder), processor=processor, **read
    )
    rows = rows.with_options(model, **options)
    rows.check(model)
    return model, rows


def write_submission(
    folder: str | Path,
    file: str | Path,
    *,
    task: str | None = None,
    source: str | None = None,
    split: str = "test",
    device: str | None = None,
    console: Console | None = None,
) -> int:
    """Write a split's predictions for its task's evaluation server (ValueError without one); return their number."""
    found = task_of(folder) if task is None else find_task(task)
    if found.evaluation is None or found.evaluation.submission is None:
        able = " and ".join(
            name for name, each in TASKS.items() if each.evaluation and each.evaluation.submission
        )
        raise ValueError(f"a submission is for the task {able}; this is {found.name}")
    model, rows = _load(folder, found, device=device, source=source, options={}, split=split)
    predictions = rows.predictions(rows.outputs(model, console=console))
    if is_main():
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        write_file(Path(file), found.evaluation.submission(predictions))
    return len(predictions)


def source_of(source: str | None, *, task: type[Task]) -> str:
    """Return the data to measure a task on; ValueError if none are given, and the task has no default."""
    default = task.evaluation and task.evaluation.default_data
    if source is None and default is None:
        raise ValueError(
            f"the task {task.name} needs data: give --data with a built-in name or a path (docs/data.md)"
        )
    return source or str(default)


@dataclass(frozen=True)
class Predicted:
    """Predictions of a task's model for one set of inputs, the best first, and the file with an image of the result."""

    task: str
    rows: list[Prediction] = field(default_factory=list)
    image: Path | None = None

    def table(self) -> Table:
        """Return the rows as a table, shares in percent."""
        table = Table(title=self.task)
        names = list(self.rows[0]) if self.rows else []
        for name in names:
            numbers = all(isinstance(row[name], float) for row in self.rows)
            table.add_column(
                f"{name}, %" if name in _PERCENT else name, justify="right" if numbers else "left"
            )
        for row in self.rows:
            table.add_row(*(_shown(name, row[name]) for name in names))
        return table


def _shown(name: str, value: Any) -> str:
    if isinstance(value, float):
        return f"{100 * value:.1f}" if name in _PERCENT else f"{value:.3f}"
    return escaped(Path(value).name if name == "image" else str(value))


def predict(folder: str | Path, inputs: Inputs, *, device: str | None = None) -> Predicted:
    """Return what the model of a folder predicts for these images and texts.

    Raises:
        ValueError: The folder is for no task, or for one that needs other inputs; a text is empty, or an image cannot
            be read.
    """
    task = task_of(folder)
    save = inputs.save
    texts = [*inputs.texts, *([] if inputs.question is None else [inputs.question])]
    accepts = task.accepts
    assert accepts is not None  # as the task is one that predicts
    if not accepts.fit(inputs):
        asks = "a" if inputs.question is not None else "no"
        given = f"{len(inputs.images)} images, {len(inputs.texts)} texts and {asks} question"
        given += ", with --caption" if inputs.caption else ""
        raise ValueError(
            f"the model of {folder} is for {task.name} and needs {accepts.words}; given were {given}"
        )
    if save is not None and (not accepts.saves or save.suffix.lower() != ".png"):
        able = " and ".join(
            name for name, each in TASKS.items() if each.accepts and each.accepts.saves
        )
        raise ValueError(
            f"--save {save}: a PNG file of the tasks {able}; the model of {folder} is for {task.name}"
        )
    if inputs.top < 1 or not all(text.strip() for text in texts):
        raise ValueError(
            f"top is {inputs.top} and the texts are {texts}; give a number from 1 up, and no empty texts"
        )
    images = [
        decode_image({"bytes": None, "path": str(file.expanduser())}) for file in inputs.images
    ]
    model, processor = task.load(folder, device=device)
    if task.num_classes is not None and are_numbers(names_of_model(model)):
        hint = "--labels of vlmo models NAME, or of vlmo import, names them"
        logger.warning("%s has no names for its answers or classes: %s", folder, hint)
    if save is not None:
        save.parent.mkdir(parents=True, exist_ok=True)
    with torch.inference_mode():
        return Predicted(task.name, rows=task.answer(model, processor, images, inputs), image=save)
