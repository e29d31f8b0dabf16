"""What the service tells about itself."""

from __future__ import annotations

import time
from datetime import timedelta

from fastapi.testclient import TestClient

from tests.integrations.toy_gallery import drawings
from vlmo.retrieval import Index, build_index, store
from vlmo.serving.app import create_app
from vlmo.serving.parts import Parts

READ_EVERY_S = 0.2
"""Until a reader looks for what a writer has done."""


def test_samples_are_those_of_the_index_as_it_is_now(parts, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(store, "_READ_EVERY", timedelta(seconds=READ_EVERY_S))
    for number, image in enumerate(drawings()[:3]):
        image.save(tmp_path / f"{number}.png")
    build_index(parts.encoder, [tmp_path], out=tmp_path / "index")
    with TestClient(create_app(Parts(parts.encoder, Index(tmp_path / "index", in_memory=True)))) as client:
        assert sorted(each["name"] for each in client.get("/v1/about").json()["samples"]) == ["0.png", "1.png", "2.png"]
        (tmp_path / "1.png").unlink()
        build_index(parts.encoder, out=tmp_path / "index")
        time.sleep(READ_EVERY_S + 0.05)
        assert sorted(each["name"] for each in client.get("/v1/about").json()["samples"]) == ["0.png", "2.png"]
