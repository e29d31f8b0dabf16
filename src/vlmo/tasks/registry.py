"""The tasks by name, and what any model folder can do: evaluate, predict, write a submission."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from vlmo.data.decoding import decode_image, image_at
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
from vlmo.terminal import escaped, suggestion

logger = logging.getLogger(__name__)

TASKS: dict[str, type[Task]] = {}
"""Tasks by name. Add one of your own with `register`."""
_BACKBONE = Usage(
    "gives states of images, texts or pairs", "image-feature-extraction", '"image.png"'
)
# Columns that hold shares, shown in percent.
_PERCENT = ("confidence", "share", "match")


def register(task: type[Task]) -> type[Task]:
    """Add a task to those that commands know; usable as a decorator."""
    TASKS[task.name] = task
    return task


# In the order in which commands and documents list them.
for _task in (
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
):
    register(_task)


def evaluated_tasks() -> dict[str, type[Task]]:
    """Return the tasks that measure model folders and predict with them."""
    return {name: task for name, task in TASKS.items() if task.accepts}


def find_task(name: str) -> type[Task]:
    """Return the task with this name that measures model folders; ValueError names the nearest."""
    tasks = evaluated_tasks()
    if name not in tasks:
        raise ValueError(
            f"no task {name!r} for --task{suggestion(name, tasks)} All: {', '.join(tasks)}"
        )
    return tasks[name]


def task_of(folder: str | Path) -> type[Task]:
    """Return the task that a folder's model is for; ValueError without a model or a task."""
    class_names = architectures(folder)
    tasks = evaluated_tasks()
    for task in tasks.values():
        if not set(class_names).isdisjoint(task.architectures):
            return task
    raise ValueError(
        f"{folder} holds {', '.join(class_names) or 'no named class'}, which is for none of the "
        f"tasks {', '.join(tasks)}. Fine-tune it: vlmo finetune {folder} --data DATA (docs/data.md)"
    )


def usage_of(folder: str | Path) -> Usage | None:
    """Return purpose and code of a folder's model for its card; None for classes of no task."""
    class_names = architectures(folder)
    if "VLMoModel" in class_names:
        return _BACKBONE
    for task in TASKS.values():
        # The first class is the one that the task trains.
        if task.architectures[0] in class_names:
            return task.usage
    return None


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
    **options: float | None,
) -> TaskResult:
    """Return the metrics of a model folder on a split. Several processes share the rows.

    Args:
        task: Name of the task; None takes the one that the model is for.
        source: The data; None takes the task's default, if it has one.
        batch_size: Rows that go through the model at a time; None takes the task's.
        options: Options of the task, such as `rerank`; None stands for the task's choice. Of a
            published classifier, `center_crop` is that of its publication.

    Raises:
        ValueError: The folder or an option is for another task, or the data cannot be used.
    """
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; give a number of rows from 1 up")
    task_class = task_of(folder) if task is None else find_task(task)
    published = published_model(folder)
    # None leaves the choice to the task.
    settings = {name: value for name, value in options.items() if value is not None}
    if published is not None and published.task == task_class.name:
        # Else its published result would be missed by another preparation of images.
        settings = published.options | settings
    model, rows = load_evaluation(
        folder, task_class, source=source, split=split, limit=limit, device=device, options=settings
    )
    result = rows.result(rows.outputs(model, batch_size=batch_size, console=console))
    return replace(result, published=published)


def load_evaluation(
    folder: str | Path,
    task: type[Task],
    *,
    source: str | None,
    split: str,
    options: dict[str, float],
    limit: int | None = None,
    device: str | None = None,
) -> tuple[Any, EvaluationSet]:
    """Return the model of a folder and the rows to measure it on; ValueError if they do not fit."""
    assert task.evaluation is not None  # commands refuse other tasks
    for name in options:
        if name not in task.evaluation.options:
            raise ValueError(f"--{name.replace('_', '-')} is no option of the task {task.name}")
    # Before the model is read, which takes longer.
    source = source_of(source, task=task)
    model, processor = task.load(folder, device=device)
    rows = task.evaluation.read(
        source=source,
        split=split,
        notes=notes_folder(folder),
        processor=processor,
        limit=limit,
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
    """Write a split's predictions for its task's evaluation server; return their number.

    ValueError for a task without a server.
    """
    task_class = task_of(folder) if task is None else find_task(task)
    if not _has_submission(task_class):
        able = " and ".join(name for name, other in TASKS.items() if _has_submission(other))
        raise ValueError(f"a submission is for the task {able}; this is {task_class.name}")
    model, rows = load_evaluation(
        folder, task_class, source=source, split=split, device=device, options={}
    )
    predictions = rows.predictions(rows.outputs(model, console=console))
    # All processes predict, one writes.
    if is_main() and rows.submission is not None:
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        write_file(Path(file), rows.submission(predictions))
    return len(predictions)


def _has_submission(task: type[Task]) -> bool:
    return task.evaluation is not None and task.evaluation.submission is not None


def source_of(source: str | None, *, task: type[Task]) -> str:
    """Return the data to measure a task on, by default its own; ValueError without any."""
    source = source or (task.evaluation and task.evaluation.default_data)
    if source is None:
        raise ValueError(
            f"the task {task.name} needs data: give --data with a built-in name or a path "
            "(docs/data.md)"
        )
    return source


@dataclass(frozen=True)
class Predicted:
    """Predictions for one set of inputs, the best first, and the file of an image of them."""

    task: str
    rows: list[Prediction] = field(default_factory=list)
    image: Path | None = None

    def table(self) -> Table:
        """Return the rows as a table, shares in percent."""
        table = Table(title=self.task)
        # All rows have the same columns.
        for row in self.rows[:1]:
            for name, value in row.items():
                heading = f"{name}, %" if name in _PERCENT else name
                justify = "right" if isinstance(value, float) else "left"
                table.add_column(heading, justify=justify)
        for row in self.rows:
            table.add_row(*(_shown(name, value) for name, value in row.items()))
        return table


def _shown(name: str, value: object) -> str:
    if isinstance(value, float):
        return f"{100 * value:.1f}" if name in _PERCENT else f"{value:.3f}"
    return escaped(Path(str(value)).name if name == "image" else str(value))


def predict(folder: str | Path, inputs: Inputs, *, device: str | None = None) -> Predicted:
    """Return what the model of a folder predicts for these images and texts.

    Raises:
        ValueError: The folder is for no task, or for one that needs other inputs; a text is empty,
            or an image cannot be read.
    """
    task = task_of(folder)
    _check_inputs(inputs, task=task, folder=folder)
    # A damaged image ends it here, before the model is read.
    images = [decode_image(image_at(file.expanduser())) for file in inputs.images]
    model, processor = task.load(folder, device=device)
    if task.num_classes is not None and are_numbers(names_of_model(model)):
        logger.warning(
            "%s has no names for its answers or classes: --labels of vlmo models NAME, or of vlmo "
            "import, names them",
            folder,
        )
    if inputs.save is not None:
        inputs.save.parent.mkdir(parents=True, exist_ok=True)
    # In one place for the answers of all tasks.
    with torch.inference_mode():
        rows = task.answer(model, processor, images, inputs)
    return Predicted(task.name, rows, image=inputs.save)


def _check_inputs(inputs: Inputs, *, task: type[Task], folder: str | Path) -> None:
    accepts = task.accepts
    # `task_of` returns tasks that predict.
    assert accepts is not None
    # Numbers of inputs first: the other checks suppose that they fit.
    if not accepts.fit(inputs):
        question = "no" if inputs.question is None else "a"
        raise ValueError(
            f"the model of {folder} is for {task.name} and needs {accepts.words}; given were "
            f"{len(inputs.images)} images, {len(inputs.texts)} texts and {question} question"
            f"{', with --caption' if inputs.caption else ''}"
        )
    save = inputs.save
    if save is not None and (not accepts.saves or save.suffix.lower() != ".png"):
        able = [name for name, other in TASKS.items() if other.accepts and other.accepts.saves]
        raise ValueError(
            f"--save {save}: a PNG file of the tasks {' and '.join(able)}; the model of {folder} "
            f"is for {task.name}"
        )
    texts = [*inputs.texts]
    if inputs.question is not None:
        texts.append(inputs.question)
    if inputs.top < 1:
        raise ValueError(f"top is {inputs.top}; give a number from 1 up")
    if not all(map(str.strip, texts)):
        raise ValueError(f"the texts are {texts}; give words, and no empty texts")
