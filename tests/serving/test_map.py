"""The map over HTTP: drawn once, on a thread, until the index changes."""

import base64
import importlib.util
import io
import shutil
import threading

from fastapi.testclient import TestClient
from PIL import Image

from tests.killing import wait_until
from tests.retrieval.toy_index import build, write_folder
from vlmo.retrieval import Index
from vlmo.retrieval.map import Map
from vlmo.serving import map as drawing
from vlmo.serving.app import create_app
from vlmo.serving.parts import Parts


def ask(client: TestClient) -> dict:
    response = client.get("/v1/map")
    assert response.status_code == 200, response.text
    return response.json()


def drawn(client: TestClient) -> dict:
    wait_until(lambda: "images" in ask(client), within_s=60)
    return ask(client)


def test_map_has_images_with_places_and_thumbnails_and_named_groups(client, parts) -> None:
    assert ask(client)["step"]
    found = drawn(client)
    assert len({each["id"] for each in found["images"]}) == parts.index.num_images
    assert all(0 <= each[axis] <= 1 for each in found["images"] + found["groups"] for axis in "xy")
    assert len(found["groups"]) == 2
    assert all(each["name"] for each in found["groups"])
    shown = found["images"][0]
    assert {"name", "captions", "metadata", "width", "height"} <= shown.keys()
    assert "/" not in shown["name"]
    data = base64.b64decode(shown["thumbnail"].removeprefix("data:image/jpeg;base64,"))
    assert max(Image.open(io.BytesIO(data)).size) <= 72


def test_map_is_drawn_once_until_the_index_changes_and_stays_while_that_grows(parts, monkeypatch):
    go, versions, state = threading.Event(), [], {"version": (1,), "complete": True}

    def draw(_encoder, index, *, on_step) -> Map:
        versions.append(index.version)
        on_step("placing 24 images")
        assert go.wait(20)
        return Map([], [(str(versions[-1]), 0, 0)])

    monkeypatch.setattr(drawing, "draw_map", draw)
    monkeypatch.setattr(Index, "version", property(lambda _: state["version"]))
    monkeypatch.setattr(Index, "complete", property(lambda _: state["complete"]))
    with TestClient(create_app(parts)) as client:
        wait_until(lambda: ask(client).get("step") == "placing 24 images", within_s=20)
        state["version"] = (2,)
        assert "step" in ask(client)  # one at a time
        go.set()
        state["complete"] = False
        wait_until(lambda: "images" in ask(client), within_s=20)
        assert (ask(client)["groups"][0]["name"], versions) == ("(1,)", [(1,)])
        state["complete"] = True
        assert drawn(client)["groups"][0]["name"] == "(2,)"
        assert (drawn(client)["groups"][0]["name"], versions) == ("(2,)", [(1,), (2,)])


def test_what_cannot_be_drawn_is_one_line_until_the_index_changes(parts, tmp_path, monkeypatch):
    def reason(client: TestClient) -> str:
        wait_until(lambda: client.get("/v1/map").status_code != 200, within_s=20)
        response = client.get("/v1/map")
        assert response.status_code == 404
        assert response.json()["error"]["message"] == "there is no map"
        return response.json()["detail"]

    images, out = write_folder(tmp_path / "one", table=False, numbers=range(1)), tmp_path / "index"
    build(parts.encoder, images, out=out)
    with TestClient(create_app(Parts(parts.encoder, Index(out)))) as client:
        assert reason(client) == "a map needs two images that differ, and the index has 1"
        shutil.copy(next(images.glob("*.png")), images / "again.png")
        build(parts.encoder, images, out=out)
        wait_until(lambda: client.get("/v1/about").json()["num_images"] == 2, within_s=20)
        assert reason(client).endswith("has 1")
        write_folder(tmp_path / "more", table=False, numbers=range(1, 3))
        build(parts.encoder, tmp_path / "more", out=out)
        wait_until(lambda: len(client.get("/v1/map").json().get("images", ())) == 4, within_s=20)
    find = importlib.util.find_spec

    def without_sklearn(name):
        return None if name == "sklearn" else find(name)

    monkeypatch.setattr(importlib.util, "find_spec", without_sklearn)
    with TestClient(create_app(parts)) as client:
        assert "pip install '.[map]'" in reason(client)
    with TestClient(create_app(Parts(answerer=parts.answerer))) as client:
        assert client.get("/v1/map").status_code == 404
