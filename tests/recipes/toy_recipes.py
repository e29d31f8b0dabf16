"""Recipes made small enough to train in a test."""

import csv
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.toy_shards import pack

from vlmo.data.config import StreamConfig
from vlmo.data.loader import LoaderConfig
from vlmo.model import VLMoConfig
from vlmo.recipes.schema import DataConfig, Recipe, TextConfig, model_config
from vlmo.tasks import (
    BEiT3Task,
    SegmentationTask,
    Task,
    TokenizerTask,
    VisionTask,
    VisualTokenizerConfig,
)
from vlmo.tasks.beit3 import AloneConfig
from vlmo.tasks.retrieval import PairTask
from vlmo.training import OptimizerConfig, ScheduleConfig, TrainerConfig

STEPS = 10
TRAINER = {"max_steps": STEPS, "log_every": 1, "precision": "float32"}


def shrunk(
    recipe: Recipe, *, source: Path, visual_tokenizer: Path, sets: Mapping[str, Path] | None = None
) -> Recipe:
    """The recipe with its own stage, losses, optimizer and schedule, on a tiny model and tiny data.

    Args:
        source: Pictures with captions.
        sets: Data of the tasks that need more than these.
    """
    sizes = VLMoConfig.tiny(
        position_embedding=recipe.model.position_embedding,
        layer_scale_init=recipe.model.layer_scale_init,
        num_fusion_layers=min(1, recipe.model.num_fusion_layers),
        drop_path_rate=recipe.model.drop_path_rate,
        experts=recipe.model.experts,
        attention=recipe.model.attention,
    )
    task = recipe.task
    if isinstance(task, VisionTask | BEiT3Task):
        task = dataclasses.replace(task, visual_tokenizer=str(visual_tokenizer))
    if isinstance(task, BEiT3Task):
        task = dataclasses.replace(task, images=AloneConfig(), texts=AloneConfig())
    if isinstance(task, TokenizerTask):
        sides = {"hidden_size": 16, "intermediate_size": 16}
        small = VisualTokenizerConfig(**sides, num_tokens=16, code_size=4)
        task = dataclasses.replace(task, tokenizer=small)
    if isinstance(task, PairTask):
        task = dataclasses.replace(task, teacher=None)
    if isinstance(task, SegmentationTask):
        task = dataclasses.replace(task, channels=16)
    data = (sets or {}).get(task.name, source)
    streams = StreamConfig()
    if recipe.data.streams.patterns:
        streams = StreamConfig(patterns=(str(write_shards(source)),), lanes=2, shuffle=8)
    return dataclasses.replace(
        recipe,
        task=task,
        model=model_config(sizes),
        text=TextConfig(vocab_size=90, learn_from=(str(source),), max_length=16),
        data=dataclasses.replace(recipe.data, source=str(data), weights=(), streams=streams),
        loader=dataclasses.replace(recipe.loader, global_batch_size=16, num_workers=0),
        # A rate that moves the weights within these steps.
        schedule=dataclasses.replace(recipe.schedule, warmup_steps=2),
        trainer=dataclasses.replace(recipe.trainer, **TRAINER),
        init=None,
        evaluate_on=None if recipe.evaluate_on is None else str(data),
        evaluate_split=recipe.evaluate_split if recipe.evaluate_on is None else "train",
    )


def tiny(
    task: Task,
    source: Path,
    *,
    sizes: Mapping[str, Any] | None = None,
    steps: int = 2,
    batch: int = 8,
    lr: float = 1e-3,
    **changes: Any,
) -> Recipe:
    """A recipe of a tiny model on `source`, measured on its split `test`; `changes` are to the recipe."""
    recipe = Recipe(
        task=task,
        model=model_config(VLMoConfig.tiny(**sizes or {})),
        data=DataConfig(source=str(source)),
        loader=LoaderConfig(global_batch_size=batch, num_workers=0),
        trainer=TrainerConfig(max_steps=steps, log_every=1),
        text=TextConfig(max_length=16),
        optimizer=OptimizerConfig(lr=lr),
        schedule=ScheduleConfig(warmup_steps=steps // 10),
        evaluate_on=str(source),
    )
    return dataclasses.replace(recipe, **changes)


def write_shards(source: Path, *, count: int = 4) -> Path:
    """The pictures of a folder with captions.csv as tars, in a folder beside it."""
    folder = source.with_name(f"{source.name}-shards")
    if folder.exists():
        return folder
    folder.mkdir()
    rows = list(csv.DictReader((source / "captions.csv").read_text().splitlines()))
    for shard in range(count):
        members = {}
        for row in rows[shard::count]:
            members[row["file_name"]] = (source / row["file_name"]).read_bytes()
            members[row["file_name"].replace(".png", ".txt")] = row["caption"].encode()
        (folder / f"{shard:05d}.tar").write_bytes(pack(members))
    return folder
