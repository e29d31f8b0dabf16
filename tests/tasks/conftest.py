"""A model folder and data for each task, made once."""

from pathlib import Path

import pytest
from tests.recipes.conftest import pictures, visual_tokenizer
from tests.tasks.toy_folders import write_folders
from tests.tasks.toy_vision import write_class_set, write_segment_set
from tests.toy_questions import write_questions, write_sentences

__all__ = ["pictures", "visual_tokenizer"]


@pytest.fixture(scope="session")
def folders(tmp_path_factory) -> dict[str, Path]:
    return write_folders(tmp_path_factory.mktemp("folders"))


@pytest.fixture(scope="session")
def sets(tmp_path_factory) -> dict[str, Path]:
    """Prepared sets by task; of retrieval there are `pictures`."""
    root = tmp_path_factory.mktemp("sets")
    return {
        "vqa": write_questions(root / "questions"),
        "nlvr2": write_sentences(root / "sentences"),
        "classification": write_class_set(root / "classes"),
        "segmentation": write_segment_set(root / "segments"),
    }


@pytest.fixture(scope="module")
def sources(sets, pictures) -> dict[str, Path]:
    return {"retrieval": pictures, **sets}
