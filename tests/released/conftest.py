import pytest
from tests.integrations.toy_gallery import trained_folder


@pytest.fixture(scope="session")
def toy_release(tmp_path_factory):
    """A folder of released models with one tiny model in it, `toy`."""
    return trained_folder(tmp_path_factory.mktemp("released") / "toy").parent
