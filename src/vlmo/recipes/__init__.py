"""Recipes: names and numbers of runs."""

from vlmo.recipes.registry import RECIPES, describe, find_recipe
from vlmo.recipes.schema import Recipe

__all__ = ["RECIPES", "Recipe", "describe", "find_recipe"]
