"""A model folder and data for each task, made once."""

from pathlib import Path

import pytest
from tests.recipes.conftest import pictures, sets, visual_tokenizer
from tests.tasks.toy_folders import write_folders

__all__ = ["pictures", "sets", "visual_tokenizer"]


@pytest.fixture(scope="session")
def folders(tmp_path_factory) -> dict[str, Path]:
    return write_folders(tmp_path_factory.mktemp("folders"))


@pytest.fixture(scope="module")
def sources(sets, pictures) -> dict[str, Path]:
    return {"retrieval": pictures, "captioning": pictures, **sets}
