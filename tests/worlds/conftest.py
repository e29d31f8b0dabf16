from tests.recipes.conftest import pictures, task_sets, visual_tokenizer  # noqa: F401
