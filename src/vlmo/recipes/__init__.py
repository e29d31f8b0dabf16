"""Recipes: names and numbers of runs."""

from vlmo.recipes.registry import RECIPES, describe, find_recipe, register
from vlmo.recipes.schema import Entry, Recipe

__all__ = ["RECIPES", "Entry", "Recipe", "describe", "find_recipe", "register"]
