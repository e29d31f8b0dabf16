"""Whose words a run reads: the start folder's, a given vocabulary, or one that is learnt."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from vlmo.data.sources import open_source
from vlmo.processing import VLMoProcessor
from vlmo.released import find_model, known_models

if TYPE_CHECKING:
    from vlmo.recipes.recipe import Recipe

LEARN_VOCABULARY = "learn"


def build_processor(recipe: Recipe) -> VLMoProcessor:
    """The start folder's vocabulary if it has one, else the recipe's.

    Raises:
        ValueError: The start folder or the vocabulary cannot be used.
    """
    sizes = {"image_size": recipe.model.image_size, "max_text_length": recipe.text.max_length}
    if recipe.init is not None and not (Path(find_model(recipe.init)) / "config.json").is_file():
        raise ValueError(
            f"init: {recipe.init} is no model folder (no config.json); a run leaves one under model/. {known_models()}"
        )
    if (start := start_with_words(recipe)) is not None:
        return VLMoProcessor.from_pretrained(start).with_sizes(**sizes)
    if recipe.text.vocabulary != LEARN_VOCABULARY:
        return VLMoProcessor.from_vocabulary(recipe.text.vocabulary, **sizes)
    captions = (text for name in recipe.text.learn_from for texts in open_source(name)["captions"] for text in texts)
    return VLMoProcessor.train(captions, vocab_size=recipe.text.vocab_size, **sizes)


def start_with_words(recipe: Recipe) -> Path | None:
    """The start folder if it has a vocabulary; an imported image model has none."""
    start = None if recipe.init is None else Path(find_model(recipe.init))
    return start if start is not None and (start / "tokenizer_config.json").is_file() else None


def num_word_rows(recipe: Recipe, processor: VLMoProcessor) -> int:
    """Rows of the word table: the start folder's, which may be more than it has tokens (BEiT-3: 64,010 for 64,002)."""
    if (start := start_with_words(recipe)) is None:
        return processor.vocab_size
    return max(processor.vocab_size, json.loads((start / "config.json").read_text()).get("vocab_size", 0))
