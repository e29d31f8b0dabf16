"""A recipe for own data: the task from their columns, sizes from the model, batch and length from the row count."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

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
    pass

_TASK_OF_COLUMN: dict[str, type[tasks.Task]] = {
    "question": tasks.VQATask,
    "second_image": tasks.NLVR2Task,
    "mask": tasks.SegmentationTask,
    "label": tasks.ClassificationTask,
}
_WIDE = 384
"""Width from which on models are fine-tuned at the paper's rates; those of vlmo-small's recipes below."""
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
        streams: Patterns of shards to train on; `source`, if there is one, then only serves to measure.

    Raises:
        ValueError: There is no such model or task, or the data cannot be read or tell no task.
    """
    folder = Path(model_path(model))
    config = VLMoConfig.from_pretrained(folder)
    if source is None and not streams:
        raise ValueError(
            "no data are given; name them with --data, or shards with --data.streams.patterns"
        )
    rows = None if source is None or streams else open_source(source)
    names = [] if rows is None else rows.column_names
    of_rows = next(
        (each for name, each in _TASK_OF_COLUMN.items() if name in names), tasks.RetrievalTask
    )
    found = of_rows if task is None else tasks.find_task(task)
    if (
        task is None
        and rows is not None
        and found is tasks.RetrievalTask
        and not any(column(rows, "captions"))
    ):
        raise ValueError(
            f"{source} has images alone; add captions, questions, labels or masks (docs/data.md)"
        )
    if found.reads.text and not (folder / "tokenizer_config.json").is_file():
        raise ValueError(
            f"{model} has no vocabulary, and {found.title} reads texts; start from a model that has one"
        )
    wide = config.hidden_size >= _WIDE
    batch = 64
    lr = 3e-5 if wide else 1e-3
    vision = False
    # Pixels may be answers and captions may tell sides, so images are neither mirrored nor recolored.
    transform = TransformConfig(
        image_size=config.image_size, rand_augment_ops=0, horizontal_flip=0.0
    )
    trained: tasks.Task
    if found is tasks.RetrievalTask:
        trained = tasks.RetrievalTask()
        batch = 64 if wide else 128
        lr = 3e-5 if wide else 3e-4
        if config.use_match_head:
            trained = tasks.RetrievalTask(
                losses=VisionLanguageConfig(mlm_weight=0.0, negative_sharpness=0.3)
            )
    elif found is tasks.VQATask:
        trained = tasks.VQATask(head_lr_scale=20.0 if wide else 1.0)
    elif found is tasks.NLVR2Task:
        trained = tasks.NLVR2Task()
    elif found is tasks.ClassificationTask:
        trained = tasks.ClassificationTask(
            losses=ClassificationConfig(mix_probability=0.5), layer_decay=0.8
        )
        transform = TransformConfig(image_size=config.image_size)
        vision = True
        lr = 5e-4 if wide else 1e-3
    elif found is tasks.SegmentationTask:
        trained = tasks.SegmentationTask(channels=512 if wide else 64)
        batch = 16
        transform = TransformConfig()
        vision = True
    elif found is tasks.CaptioningTask:
        trained = tasks.CaptioningTask()
        lr = 4e-5 if wide else 1e-3
    else:
        raise ValueError(
            f"the task {found.name} is not fine-tuned this way; vlmo recipes lists recipes for it"
        )
    steps = _STREAM_STEPS
    if rows is not None:
        batch = min(batch, 1 << (len(rows).bit_length() - 1))
        steps = min(max(_EPOCHS * len(rows) // batch, _FEWEST_STEPS), _MOST_STEPS)
    split = None if source is None else _measured_split(source)
    file = folder / "tokenizer_config.json"
    settings: dict[str, Any] = read_json(file) if file.is_file() else {}
    length = settings.get("model_max_length", TextConfig.max_length)
    recipe = Recipe(
        task=trained,
        model=replace(model_config(config), **{"num_fusion_layers": 0} if vision else {}),
        text=TextConfig(vocab_size=config.vocab_size, max_length=length),
        data=DataConfig(
            source=source or "", transform=transform, streams=StreamConfig(patterns=tuple(streams))
        ),
        loader=LoaderConfig(global_batch_size=batch, num_workers=2 if wide else 0),
        optimizer=OptimizerConfig(lr=lr, betas=(0.9, 0.98), weight_decay=0.05),
        schedule=ScheduleConfig(warmup_steps=steps // 10),
        trainer=TrainerConfig(max_steps=steps, precision="auto", clip_norm=3.0),
        init=str(model),
        evaluate_on=None if split is None else source,
        evaluate_split=split or "test",
    )
    measured = "no rows to measure on" if split is None else f"measured on its split {split}"
    data = f"streams of {', '.join(streams)}" if rows is None else f"{len(rows):,} rows of {source}"
    return Chosen(recipe, f"{trained.title} from {model} on {data}, {measured}.")


def _measured_split(source: str) -> str | None:
    for split in ("validation", "val", "test"):
        try:
            open_source(source, split=split)
        except ValueError:  # there is none
            continue
        return split
    return None
