"""A recipe for own data: the task from their columns, sizes from the model, batch and length from the row count."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from vlmo import tasks
from vlmo.data.config import StreamConfig
from vlmo.data.loader import LoaderConfig
from vlmo.data.rows import column
from vlmo.data.sources import open_source
from vlmo.folder import read_json
from vlmo.model import VLMoConfig
from vlmo.processing import TransformConfig
from vlmo.recipes.schema import DataConfig, Recipe, TextConfig, model_config
from vlmo.released import model_path
from vlmo.tasks.classification import ClassificationConfig
from vlmo.tasks.vision_language import VisionLanguageConfig
from vlmo.training import OptimizerConfig, ScheduleConfig, TrainerConfig

if TYPE_CHECKING:
    from datasets import Dataset

_TASK_OF_COLUMN: dict[str, type[tasks.Task]] = {
    "question": tasks.VQATask,
    "second_image": tasks.NLVR2Task,
    "mask": tasks.SegmentationTask,
    "label": tasks.ClassificationTask,
}
_SMALL_RATES: dict[type[tasks.Task], tuple[float, int]] = {
    tasks.RetrievalTask: (3e-4, 128),
    tasks.VQATask: (1e-3, 64),
    tasks.NLVR2Task: (1e-3, 64),
    tasks.ClassificationTask: (1e-3, 64),
    tasks.SegmentationTask: (1e-3, 16),
    tasks.CaptioningTask: (1e-3, 64),
}
"""Learning rate and batch of vlmo-small's recipes by task."""
_WIDE = 384
"""Width from which on models are fine-tuned at the paper's rates instead."""
_WIDE_RATES: dict[type[tasks.Task], tuple[float, int]] = {
    tasks.RetrievalTask: (3e-5, 64),
    tasks.VQATask: (3e-5, 64),
    tasks.NLVR2Task: (3e-5, 64),
    tasks.ClassificationTask: (5e-4, 64),
    tasks.SegmentationTask: (3e-5, 16),
    tasks.CaptioningTask: (4e-5, 64),
}
_TOKENIZER_FILE = "tokenizer_config.json"
_EPOCHS = 20
_FEWEST_STEPS = 100
_MOST_STEPS = 5000
_STREAM_STEPS = 1000
"""Steps on streams, whose rows nobody has counted: 128,000 pairs, which a first run on a CPU can take."""


class Chosen(NamedTuple):
    """A recipe, and in a sentence what was chosen."""

    recipe: Recipe
    about: str


def finetune_recipe(
    model: str | Path, source: str | None, *, task: str | None = None, streams: Sequence[str] = ()
) -> Chosen:
    """Return a recipe that fine-tunes a model on own data.

    Args:
        source: Data as in `open_source`.
        task: Name of the task, where the columns do not tell it.
        streams: Patterns of shards to train on; `source`, if there is one, then only serves to
            measure.

    Raises:
        ValueError: There is no such model or task, or the data cannot be read or tell no task.
    """
    folder = Path(model_path(model))
    if source is None and not streams:
        raise ValueError(
            "no data are given; name them with --data, or shards with --data.streams.patterns"
        )
    rows = None if source is None or streams else open_source(source)
    task_class = _task_of(rows, source) if task is None else tasks.find_task(task)
    if task_class.reads.text and not (folder / _TOKENIZER_FILE).is_file():
        raise ValueError(
            f"{model} has no vocabulary, and {task_class.title} reads texts; start from a model that has one"
        )
    recipe = _recipe(folder, task_class, rows=rows, source=source or "", streams=streams)
    measured = "no rows to measure on"
    if recipe.evaluate_on is not None:
        measured = f"measured on its split {recipe.evaluate_split}"
    data = f"streams of {', '.join(streams)}"
    if rows is not None:
        data = f"{len(rows):,} rows of {source}"
    about = f"{recipe.task.title} from {model} on {data}, {measured}."
    return Chosen(replace(recipe, init=str(model)), about)


def _recipe(
    folder: Path,
    task_class: type[tasks.Task],
    *,
    rows: Dataset | None,
    source: str,
    streams: Sequence[str],
) -> Recipe:
    config = VLMoConfig.from_pretrained(folder)
    wide = config.hidden_size >= _WIDE
    lr, batch, steps = _rate_and_length(task_class, rows, wide=wide)
    model = model_config(config)
    # Tasks of images alone use no vision-language experts.
    if not task_class.reads.text:
        model = replace(model, num_fusion_layers=0)
    task, transform = _task_settings(task_class, config)
    length = TextConfig.max_length
    if (folder / _TOKENIZER_FILE).is_file():
        length = read_json(folder / _TOKENIZER_FILE).get("model_max_length", length)
    split = _measured_split(source) if source else None
    return Recipe(
        task=task,
        model=model,
        text=TextConfig(vocab_size=config.vocab_size, max_length=length),
        data=DataConfig(
            source=source, transform=transform, streams=StreamConfig(patterns=tuple(streams))
        ),
        loader=LoaderConfig(global_batch_size=batch, num_workers=2 if wide else 0),
        # The paper's betas, and BEiT's weight decay (the paper has 0.01).
        optimizer=OptimizerConfig(lr=lr, betas=(0.9, 0.98), weight_decay=0.05),
        # 10 %, as in the paper's fine-tuning.
        schedule=ScheduleConfig(warmup_steps=steps // 10),
        trainer=TrainerConfig(max_steps=steps, precision="auto", clip_norm=3.0),
        evaluate_on=source if split else None,
        evaluate_split=split or "test",
    )


def _rate_and_length(
    task_class: type[tasks.Task], rows: Dataset | None, *, wide: bool
) -> tuple[float, int, int]:
    """Return learning rate, batch and number of steps; ValueError for a task without a rate."""
    rates = _WIDE_RATES if wide else _SMALL_RATES
    if task_class not in rates:
        raise ValueError(
            f"the task {task_class.name} is not fine-tuned this way; vlmo recipes lists recipes for it"
        )
    lr, batch = rates[task_class]
    if rows is None:
        return lr, batch, _STREAM_STEPS
    # At most the rows that there are, as a power of two.
    batch = min(batch, 1 << (len(rows).bit_length() - 1))
    steps = _EPOCHS * len(rows) // batch
    return lr, batch, min(max(steps, _FEWEST_STEPS), _MOST_STEPS)


def _task_settings(
    task_class: type[tasks.Task], config: VLMoConfig
) -> tuple[tasks.Task, TransformConfig]:
    """Return the task with the settings that suit the model, and the augmentation of its images."""
    wide = config.hidden_size >= _WIDE
    # Pixels may be answers and captions may tell sides, so images are neither mirrored nor recolored.
    plain = TransformConfig(image_size=config.image_size, rand_augment_ops=0, horizontal_flip=0.0)
    if task_class is tasks.RetrievalTask and config.use_match_head:
        # Softer hard negatives than the paper's, since own data are mostly small.
        losses = VisionLanguageConfig(mlm_weight=0.0, negative_sharpness=0.3)
        return tasks.RetrievalTask(losses=losses), plain
    if task_class is tasks.VQATask:
        # Wide models have the published code's factor for a new head.
        return tasks.VQATask(head_lr_scale=20.0 if wide else 1.0), plain
    if task_class is tasks.ClassificationTask:
        losses = ClassificationConfig(mix_probability=0.5)
        task = tasks.ClassificationTask(losses=losses, layer_decay=0.8)
        return task, TransformConfig(image_size=config.image_size)
    if task_class is tasks.SegmentationTask:
        return tasks.SegmentationTask(channels=512 if wide else 64), TransformConfig()
    return task_class(), plain


def _task_of(rows: Dataset | None, source: str | None) -> type[tasks.Task]:
    """Return the task that the columns tell: retrieval without others; ValueError for images alone."""
    if rows is None:
        return tasks.RetrievalTask
    # Captions come last: rows of every task may have them too.
    for name, task in _TASK_OF_COLUMN.items():
        if name in rows.column_names:
            return task
    if not any(column(rows, "captions")):
        raise ValueError(
            f"{source} has images alone; add captions, questions, labels or masks (docs/data.md)"
        )
    return tasks.RetrievalTask


def _measured_split(source: str) -> str | None:
    # Prepared sets say validation, folders of others often val.
    for split in ("validation", "val", "test"):
        with contextlib.suppress(ValueError):  # there is none
            open_source(source, split=split)
            return split
    return None
