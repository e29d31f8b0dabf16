"""Data to train on for a few steps."""

from tests.recipes.conftest import pictures

__all__ = ["pictures"]
