"""Recipes: names and numbers of runs."""

from vlmo.recipes.recipe import Recipe, build
from vlmo.recipes.registry import RECIPES, describe, find_recipe

__all__ = ["RECIPES", "Recipe", "build", "describe", "find_recipe"]
