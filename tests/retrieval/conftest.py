from __future__ import annotations

import pytest
from tests.integrations.toy_gallery import trained_folder
from tests.retrieval.toy_index import build, write_folder

from vlmo.retrieval import Encoder, Searcher


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    return trained_folder(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def encoder(model):
    return Encoder(model)


@pytest.fixture(scope="session")
def gallery(encoder, tmp_path_factory):
    """A folder of drawings and an index of it; tests that change one make their own."""
    base = tmp_path_factory.mktemp("gallery")
    folder = write_folder(base / "images")
    build(encoder, folder, out=base / "index")
    return folder, base / "index"


@pytest.fixture(scope="session")
def searcher(encoder, gallery):
    return Searcher(encoder, gallery[1])
