"""Runs of recipes: `build` makes the trainer of one; the dry run estimates what it needs."""

from vlmo.run.build import build

__all__ = ["build"]
