"""Every recipe by name. A recipe's docstring is its card."""

from __future__ import annotations

import difflib
from collections.abc import Callable

from vlmo.recipes import emoji, pretraining
from vlmo.recipes.recipe import Recipe, build

RECIPES: dict[str, Callable[[], Recipe]] = {
    function.__name__.replace("_", "-"): function
    for function in (
        emoji.emoji_tokenizer,
        emoji.emoji_stage1,
        emoji.emoji_stage2,
        emoji.emoji_stage3,
        emoji.emoji_stageless,
        emoji.emoji_small,
        pretraining.base_stage1,
        pretraining.base_stage2,
        pretraining.base_stage3,
        pretraining.base_plus_stage1,
        pretraining.base_plus_stage2,
        pretraining.base_plus_stage3,
        pretraining.large_stage1,
        pretraining.large_stage2,
        pretraining.large_stage3,
    )
}


def find_recipe(name: str) -> Callable[[], Recipe]:
    """The recipe called `name`.

    Raises:
        ValueError: There is none; the message names the nearest one.
    """
    if name in RECIPES:
        return RECIPES[name]
    nearest = difflib.get_close_matches(name, RECIPES, n=1, cutoff=0)
    raise ValueError(f"no recipe {name!r}; did you mean {nearest[0]!r}? All: vlmo recipes")


__all__ = ["RECIPES", "Recipe", "build", "find_recipe"]
