"""Recipes made small enough to train in a test."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from vlmo.model import VLMoConfig
from vlmo.recipes.configs import TextConfig, VisualTokenizerConfig, model_config
from vlmo.recipes.pretraining_stages import TokenizerStage, VisionStage
from vlmo.recipes.recipe import Recipe
from vlmo.recipes.vision_stages import SegmentationStage

STEPS = 3


def shrunk(
    recipe: Recipe, *, source: Path, visual_tokenizer: Path, task_sets: Mapping[type, Path] | None = None
) -> Recipe:
    """The recipe with its own stage, losses, optimizer and schedule, on a tiny model and tiny data.

    Args:
        source: Pictures with captions.
        task_sets: Data of the stages that need more than these.
    """
    sizes = VLMoConfig.tiny(
        position_embedding=recipe.model.position_embedding,
        layer_scale_init=recipe.model.layer_scale_init,
        num_fusion_layers=min(1, recipe.model.num_fusion_layers),
        drop_path_rate=recipe.model.drop_path_rate,
    )
    stage = recipe.stage
    if isinstance(stage, VisionStage):
        stage = dataclasses.replace(stage, visual_tokenizer=str(visual_tokenizer))
    if isinstance(stage, TokenizerStage):
        small = VisualTokenizerConfig(hidden_size=16, intermediate_size=16, num_tokens=16, code_size=4)
        stage = dataclasses.replace(stage, tokenizer=small)
    if isinstance(stage, SegmentationStage):
        stage = dataclasses.replace(stage, channels=16)
    data = (task_sets or {}).get(type(stage), source)
    return dataclasses.replace(
        recipe,
        stage=stage,
        model=model_config(sizes),
        text=TextConfig(vocab_size=90, learn_from=(str(source),), max_length=16),
        data=dataclasses.replace(recipe.data, source=str(data)),
        loader=dataclasses.replace(recipe.loader, global_batch_size=16, num_workers=0),
        trainer=dataclasses.replace(recipe.trainer, max_steps=STEPS, log_every=1),
        init=None,
        evaluate_on=None if recipe.evaluate_on is None else str(data),
        evaluate_split=recipe.evaluate_split if recipe.evaluate_on is None else "train",
    )
