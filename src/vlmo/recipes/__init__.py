"""Recipes: names and numbers of runs."""

from vlmo.recipes.paper import PAPER
from vlmo.recipes.quickstart import QUICKSTART
from vlmo.recipes.schema import Entry, Recipe
from vlmo.terminal import nearest

__all__ = ["RECIPES", "Entry", "Recipe", "describe", "find_recipe", "register"]

_ENTRIES: dict[str, Entry] = {}
RECIPES: dict[str, Recipe] = {}
"""Every recipe by its name; `register` adds some."""


def register(name: str, entry: Entry | Recipe) -> None:
    """Make a recipe known by a name, or with its description."""
    _ENTRIES[name] = entry if isinstance(entry, Entry) else Entry(entry, f"{entry.task.title}.")
    RECIPES[name] = _ENTRIES[name].recipe


for _name, _entry in (QUICKSTART | PAPER).items():
    register(_name, _entry)


def find_recipe(name: str) -> Recipe:
    """Return the recipe called `name`; ValueError names the nearest if there is none."""
    if name in RECIPES:
        return RECIPES[name]
    raise ValueError(
        f"no recipe {name!r}; did you mean {nearest(name, RECIPES)}? All: vlmo recipes"
    )


def describe(name: str) -> str:
    """Return the description of the recipe called `name`: what it trains, data, start, command, numbers to expect."""
    find_recipe(name)
    return _ENTRIES[name].describe(name)
