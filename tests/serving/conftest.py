from collections.abc import Iterator

import pytest
from fastapi.testclient import TestClient

from tests.serving.toy_service import make_gallery
from vlmo.serving.app import create_app
from vlmo.serving.parts import Parts, load_parts


@pytest.fixture(scope="session")
def gallery(tmp_path_factory):
    return make_gallery(tmp_path_factory.mktemp("gallery"))


@pytest.fixture(scope="session")
def parts(gallery) -> Parts:
    return load_parts(gallery.model, index=gallery.index, vqa=gallery.vqa, captioning=gallery.captioning)


@pytest.fixture(scope="module")
def client(parts) -> Iterator[TestClient]:
    with TestClient(create_app(parts), raise_server_exceptions=False) as client:
        yield client
