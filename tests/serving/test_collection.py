"""What the page asks a collection for beside a search: further results, images to be like or not, groups."""

import shutil

import numpy as np
import pytest
from fastapi.testclient import TestClient

from tests.integrations.toy_gallery import drawings
from tests.retrieval.toy_index import encoded
from tests.serving.toy_service import in_base64, photo_folder, post
from vlmo.retrieval import Index, build_index
from vlmo.serving.app import create_app
from vlmo.serving.parts import Parts

TEXT = "a red circle"


@pytest.fixture(scope="module")
def folder(parts, tmp_path_factory):
    folder = photo_folder(tmp_path_factory.mktemp("collection"), number=24)
    shutil.copy(folder / "Winter" / "photo 003.png", folder / "Winter" / "photo 000.png")
    build_index(parts.encoder, [folder], out=folder / "index")
    return folder


@pytest.fixture(scope="module")
def index(folder) -> Index:
    return Index(folder / "index", in_memory=True)


@pytest.fixture(scope="module")
def client(parts, index):
    with TestClient(create_app(Parts(parts.encoder, index))) as client:
        yield client


def _unit(vector: np.ndarray) -> np.ndarray:
    return vector / np.linalg.norm(vector)


def ids(found: dict) -> list[str]:
    return [hit["id"] for hit in found["hits"]]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("search", {"text": TEXT, "rerank": 8}),
        ("search", {"image": in_base64(encoded(drawings()[2]))}),
        ("search", {"sort": "date"}),
        ("search", {"text": TEXT, "like": "ID", "unlike": "ID"}),
        ("similar", {"id": "ID", "album": "Rome"}),
    ],
)
def test_parts_of_a_result_follow_each_other(client, path, body) -> None:
    chosen = ids(post(client, "/v1/search", sort="date", top=5))
    given = {"like": chosen[2:], "unlike": chosen[:2], "id": chosen[0]}
    body = {name: given[name] if value == "ID" else value for name, value in body.items()}
    whole = ids(post(client, f"/v1/{path}", **body, top=16))
    parts = [ids(post(client, f"/v1/{path}", **body, top=8, offset=offset)) for offset in (0, 8)]
    assert parts[0] + parts[1] == whole
    assert len(whole) > 8
    assert ids(post(client, f"/v1/{path}", **body, top=8, offset=9000)) == []


def test_results_move_towards_and_away_from_images(client, index, parts, monkeypatch) -> None:
    first, second, third = ids(post(client, "/v1/search", text=TEXT, top=3))
    (text,) = parts.encoder.embed_texts([TEXT])
    (image,) = parts.encoder.embed_images(drawings()[2:3])
    a, b, c = map(index.vector, (first, second, third))
    words, upload = {"text": TEXT}, {"image": in_base64(encoded(drawings()[2]))}
    minus = upload | {"weight": -1}
    for body, vector in (
        (words | {"unlike": [first]}, text - 0.15 * a),
        (words | {"unlike": [first, second]}, text - 0.15 * a - 0.15 * b),
        (words | {"like": [first, second], "unlike": [third]}, text + 0.375 * (a + b) - 0.15 * c),
        ({"like": [second], "unlike": [third]}, 0.75 * b - 0.15 * c),
        ({**upload, "like": [first]}, image + 0.75 * a),
        ({"like": [first], "parts": [{"text": TEXT, "weight": -1}]}, 0.75 * a - text),
        (words | {"parts": [minus], "unlike": [first]}, _unit(text - image) - 0.15 * a),
    ):
        found = post(client, "/v1/search", **body, top=24)
        given = [*body.get("like", []), *body.get("unlike", [])]
        nearest = index.nearest(_unit(vector), top=30)
        expected = [hit.similarity for hit in nearest if hit.id not in given]
        similarities = [hit["similarity"] for hit in found["hits"]]
        assert similarities == pytest.approx(expected, abs=1e-5)
        assert not set(ids(found)) & set(given)
        assert found["num_reranked"] == 0
    seen, known = list[str](), index.vector
    monkeypatch.setattr(index, "vector", lambda each: seen.append(each) or known(each))
    post(client, "/v1/search", like=[first], unlike=[second])
    assert sorted(seen) == sorted([first, second])  # once
    response = client.post("/v1/search", json={"like": [first], "unlike": [first] * 5})
    assert (response.status_code, "cancel" in response.json()["error"]["message"]) == (422, True)
    assert ids(post(client, "/v1/search", text=TEXT, unlike=[first], album="Winter", sort="date"))


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({"id": "abc", "sort": "date", "offset": 8}, 422, "leave out offset"),  # of images like one
        ({"unlike": ["abc"]}, 422, "a text or an image"),
        ({"text": "a", "like": ["abc"]}, 404, "no image of this id"),
        ({"text": "a", "like": ["abc"], "rerank": 8}, 422, "leave out rerank"),
        ({"text": "a", "unlike": ["abc"], "mode": "words"}, 422, "leave out rerank and mode"),
        ({"text": "a", "like": ["abc"] * 17}, 422, "at most 16"),
        ({"text": "a", "offset": 9701}, 422, "9700"),
        ({"text": "a", "offset": -1}, 422, "offset"),
        ({"text": "a", "sort": "date", "offset": 8}, 422, "leave out offset"),
        ({"like": ["abc"], "sort": "date", "offset": 8}, 422, "leave out offset"),
    ],
)
def test_wrong_requests_say_what_is_right(client, body, status, words) -> None:
    response = client.post("/v1/similar" if "id" in body else "/v1/search", json=body)
    assert (response.status_code, words in response.json()["error"]["message"]) == (status, True)


def test_groups_are_albums_and_months_with_their_newest_image(client, index) -> None:
    groups = client.get("/v1/groups").json()
    found = [(each["name"], each["count"]) for each in groups["albums"] + groups["months"]]
    albums = [("Italy/Rome", 12), ("Winter", 13)]
    assert found == [*albums, ("2021-03", 4), ("2021-02", 10), ("2021-01", 11)]
    paths = {hit.id: hit.path for hit, _ in index.sample(25)}
    assert paths[groups["albums"][0]["id"]].endswith("photo 022.png")
    assert paths[groups["months"][2]["id"]].endswith("photo 009.png")


def test_images_like_one_by_date_have_no_pages(client) -> None:
    response = client.post("/v1/similar", json={"id": "abc", "sort": "date", "offset": 8})
    assert (response.status_code, "leave out offset" in response.json()["error"]["message"]) == (
        422,
        True,
    )
