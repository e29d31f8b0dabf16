import pytest
from tests.integrations.toy_gallery import trained_folder
from tests.released.toy_server import serving, write_published

from vlmo.released import download


@pytest.fixture(scope="session")
def toy_release(tmp_path_factory):
    """A folder of released models with one tiny model in it, `toy`."""
    return trained_folder(tmp_path_factory.mktemp("released") / "toy").parent


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    return write_published(tmp_path_factory.mktemp("published") / "files")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("VLMO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(download, "_PAUSE_S", 0.0)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "cache"


@pytest.fixture
def site(published, cache, monkeypatch):
    with serving(published) as site:
        monkeypatch.setenv("VLMO_WEIGHTS", site.address)
        yield site
