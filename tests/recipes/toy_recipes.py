"""Recipes made small enough to train in a test."""

import dataclasses
from pathlib import Path

from vlmo.model import VLMoConfig
from vlmo.recipes.configs import TextConfig, VisualTokenizerConfig, model_config
from vlmo.recipes.pretraining_stages import TokenizerStage, VisionStage
from vlmo.recipes.recipe import Recipe

STEPS = 3


def shrunk(recipe: Recipe, *, source: Path, visual_tokenizer: Path) -> Recipe:
    """The recipe with its own stage, losses, optimizer and schedule, on a tiny model and tiny data."""
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
    return dataclasses.replace(
        recipe,
        stage=stage,
        model=model_config(sizes),
        text=TextConfig(vocab_size=90, learn_from=(str(source),), max_length=16),
        data=dataclasses.replace(recipe.data, source=str(source)),
        loader=dataclasses.replace(recipe.loader, global_batch_size=16, num_workers=0),
        trainer=dataclasses.replace(recipe.trainer, max_steps=STEPS, log_every=1),
        init=None,
    )
