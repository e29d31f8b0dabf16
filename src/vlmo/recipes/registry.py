"""Every recipe by name."""

from __future__ import annotations

import difflib

from vlmo.recipes.paper import PAPER
from vlmo.recipes.schema import Entry, Recipe
from vlmo.recipes.small import SMALL

_ENTRIES = SMALL | PAPER
RECIPES: dict[str, Recipe] = {name: entry.recipe for name, entry in _ENTRIES.items()}
"""Every recipe by its name; code of one's own may add some."""


def find_recipe(name: str) -> Recipe:
    """Return the recipe called `name`.

    Raises:
        ValueError: There is none; the message has the nearest name.
    """
    if name in RECIPES:
        return RECIPES[name]
    nearest = difflib.get_close_matches(name, RECIPES, n=1, cutoff=0)
    raise ValueError(f"no recipe {name!r}; did you mean {nearest[0]!r}? All: vlmo recipes")


def describe(name: str) -> str:
    """Return the description of the recipe called `name`: what it trains, data, start, command, numbers to expect."""
    recipe = find_recipe(name)
    entry = _ENTRIES.get(name) or Entry(recipe, f"{recipe.task.title}, a recipe of a module given by --import.", "-")
    return entry.describe(name)
