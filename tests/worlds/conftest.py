from tests.recipes.conftest import pictures, sets, visual_tokenizer  # noqa: F401
