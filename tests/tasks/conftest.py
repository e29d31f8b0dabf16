"""Toy data and a visual tokenizer, as the tests of recipes have them."""

from tests.recipes.conftest import pictures, visual_tokenizer

__all__ = ["pictures", "visual_tokenizer"]
