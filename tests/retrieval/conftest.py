import pytest
from tests.integrations.toy_gallery import trained_folder
from tests.retrieval.toy_index import NUM, build, write_folder

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


@pytest.fixture
def indexed(encoder, tmp_path):
    """Write drawings as files and index them: their folder, and the index, which this test may change."""

    def indexed(numbers=range(NUM), *, table=True, **settings):
        folder = write_folder(tmp_path / "images", numbers=numbers, table=table)
        build(encoder, folder, out=tmp_path / "index", **settings)
        return folder, tmp_path / "index"

    return indexed


@pytest.fixture(scope="session")
def searcher(encoder, gallery):
    return Searcher(encoder, gallery[1])
