import pytest
from huggingface_hub import constants
from tests.integrations.toy_gallery import trained_folder
from tests.released.toy_hub import serving_hub
from transformers.utils import hub as transformers_hub


@pytest.fixture(scope="session")
def toy_release(tmp_path_factory):
    """A folder of released models with one tiny model in it, `toy`."""
    return trained_folder(tmp_path_factory.mktemp("released") / "toy").parent


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """An empty stand-in of the hub, and nothing of it in the cache; what `HF_ENDPOINT` and its likes would set."""
    with serving_hub() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.address)
        template = hub.address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setattr(transformers_hub, "_hf_api", None)  # made at its first use, with the address of then
        yield hub
