import io
import re
import socket

import numpy as np
import pytest
import torch
from fastapi.testclient import TestClient
from PIL import Image

from tests.integrations.toy_gallery import CAPTIONS, NUM_IMAGES, drawings
from tests.retrieval.toy_index import encoded
from tests.serving.toy_service import in_base64, post
from tests.toy_heic import heic
from vlmo import VLMoForImageCaptioning, VLMoForVisualQuestionAnswering, VLMoProcessor
from vlmo.retrieval import Index, Searcher
from vlmo.retrieval.store import Store
from vlmo.serving.app import create_app
from vlmo.serving.parts import Parts, load_parts
from vlmo.serving.schemas import MAX_IMAGES, MAX_RERANK, MAX_TEXTS, MAX_TOP

TOLERANCE = 1e-5  # rows of one call and of several differ by the order of sums
BAR = in_base64(encoded(drawings()[14]))  # a yellow one, which is wider than high
JSON = {"content-type": "application/json"}
ABILITIES = ("search", "rerank", "answer", "caption")
JPEG_NOISE = 6.0  # mean difference of 255 that JPEG makes on drawings with hard edges


def error(client: TestClient, path: str, **body) -> tuple[int, str]:
    response = client.post(path, json=body)
    assert set(response.json()) == {"error", "detail"}
    return response.status_code, response.json()["error"]["message"]


@pytest.mark.parametrize("options", [{"rerank": 0}, {}, {"top": 6, "rerank": 12, "weight": 0.7}])
def test_search_by_words_gives_what_the_searcher_gives(client, parts, options) -> None:
    found = post(client, "/v1/search", text="a red circle", **options)
    expected = Searcher(parts.encoder, parts.index).search("a red circle", **options)
    assert [hit["id"] for hit in found["hits"]] == [hit.id for hit in expected.hits]
    for name in ("similarity", "score"):
        values = [getattr(hit, name) for hit in expected.hits]
        np.testing.assert_allclose([hit[name] for hit in found["hits"]], values, atol=1e-3)
    assert found["num_reranked"] == expected.num_reranked <= options.get("rerank", NUM_IMAGES)
    assert found["note"] is None
    assert found["seconds"].keys() >= {"encode", "index", "total"}
    for hit in found["hits"]:
        odds = hit["match"]
        assert hit["probability"] == (odds and pytest.approx(1 / (1 + np.exp(-odds))))
    first = found["hits"][0]
    assert first["captions"] == ["a red circle", "circle in red"]
    assert (first["name"], first["width"], first["height"]) == ("a_red_circle.png", 72, 64)
    photo = {"taken": "2020-01-11T12:00:00", "taken_from": "file", "album": "images"}
    assert first["metadata"] == {"color": "red", "number": 1, "even": False, **photo}


def test_search_adds_and_subtracts_parts(client, parts) -> None:
    body, options = {"text": "a red circle"}, {"mode": "vectors", "top": 24}
    more = [{"text": "circle", "weight": -0.5}, {"image": BAR}]
    found = post(client, "/v1/search", **body, **options, parts=more)
    same = [("circle", -0.5), (drawings()[14], 1)]
    searcher = Searcher(parts.encoder, parts.index)
    expected = searcher.search("a red circle", parts=same, **options)
    assert [hit["id"] for hit in found["hits"]] == [hit.id for hit in expected.hits]
    for wrong in (
        {"parts": more},
        {**body, "parts": more, "rerank": 2},
        {**body, "parts": [{"text": "a", "weight": 11}]},
        {"text": "red", "parts": [{"text": "red", "weight": -1}]},
    ):
        assert error(client, "/v1/search", **wrong)[0] == 422


def test_search_finds_words(client, parts, monkeypatch) -> None:
    found = post(client, "/v1/search", text="circles of pink", mode="words", top=24)
    named = {each[0] for each in CAPTIONS if {"pink", "circle"} & {*each[0].split()}}
    assert {hit["captions"][0] for hit in found["hits"]} == named
    assert (found["hits"][0]["captions"][0], found["hits"][0]["words"]) == ("a pink circle", 1.0)
    assert post(client, "/v1/search", text="pink circle", top=1)["num_matched"] == 1
    assert error(client, "/v1/search", image=BAR, mode="words")[0] == 422
    monkeypatch.setattr(Store, "has_words", False)
    monkeypatch.setattr(parts.index, "_memory", None)  # it is read anew
    assert error(client, "/v1/search", text="pink", mode="hybrid")[0] == 422
    assert post(client, "/v1/search", text="pink circle", top=1)["num_matched"] == 0


def test_search_by_image_finds_that_image_first_however_it_is_sent(client) -> None:
    for image in (BAR, f"data:image/png;base64,{BAR}"):
        hits = post(client, "/v1/search", image=image, top=3)["hits"]
        assert (len(hits), hits[0]["captions"][0]) == (3, CAPTIONS[14][0])
        assert hits[0]["similarity"] == pytest.approx(1, abs=TOLERANCE)


def test_addresses_are_refused_and_never_fetched(client, monkeypatch) -> None:
    monkeypatch.setattr(socket, "create_connection", lambda *_, **__: pytest.fail("connected"))
    for url in ("http://127.0.0.1/x.png", "HTTPS://images.example/x.png", "file:///etc/hostname"):
        assert error(client, "/v1/search", image=url)[0] == 422


def test_search_keeps_to_its_filter(client) -> None:
    for where, numbers in (
        ("color = 'blue' and number >= 9 and not even", [9, 11]),
        ("color = 'mauve'", []),
        ("", [*range(NUM_IMAGES)]),
    ):
        found = post(client, "/v1/search", text="a red circle", top=24, where=where)["hits"]
        assert sorted(hit["metadata"]["number"] for hit in found) == numbers


def test_photographs_of_a_time_and_an_album_are_found_and_listed_by_date(client) -> None:
    time = {"from": "2020-03", "to": "2020-04-10"}
    for query in ({}, {"text": "a red circle"}, {"image": BAR}):
        found = post(client, "/v1/search", sort="date", top=24, album="Images", **time, **query)
        times = [hit["metadata"]["taken"] for hit in found["hits"]]
        assert times == ["2020-04-10T12:00:00", "2020-03-11T12:00:00", "2020-03-10T12:00:00"]
    assert post(client, "/v1/search", text="a", album="elsewhere")["hits"] == []
    (last,) = post(client, "/v1/search", sort="date", top=1)["hits"]
    similar = post(client, "/v1/similar", id=last["id"], sort="date", **time)["hits"]
    assert [hit["metadata"]["taken"] for hit in similar] == times


GOOD = """
lower(color) like '%re%'
contains(upper(color), 'RE') and ends_with(color, 'd') or starts_with(color, 're')
array_has(captions, 'a red circle') or width > 1 and height < 10000
`number` between -1 and 30 and even is not null and color in ('red', 'blue')
color = 'it''s; drop table images'
"""
BAD = ["color = 'a'; drop table b", "1 = 1) or (1 = 1", "color = 1 and", "path like '/%'", "\x00"]


def test_filters_that_pass_the_check_are_understood_by_the_index(client) -> None:
    long, deep = "number = 1 or " * 33 + "even", "(" * 20 + "even" + ")" * 20
    for where in (*GOOD.strip().splitlines(), long, deep):
        post(client, "/v1/search", text="a red circle", where=where)


@pytest.mark.parametrize("where", BAD)
def test_filters_that_are_none_are_refused_and_change_nothing(client, parts, where) -> None:
    response = client.post("/v1/search", json={"text": "a red circle", "where": where})
    assert response.status_code == 422
    reason = response.json()["error"]["message"]
    for secret in ("\n", str(parts.index.folder), "stamp"):  # a column that is not for clients
        assert secret not in reason
    columns = "album, captions, color, even, height, id, number, taken, taken_from, width"
    assert response.json()["detail"].endswith(f"there are {columns}")
    assert parts.index.num_images == NUM_IMAGES


NO_IMAGE = "data:image/png;base64,aGk="
WRONG = {
    "search": [
        ({}, "give a text or an image"),
        ({"text": "a", "image": "aGk="}, "give a text or an image"),
        ({"text": "  "}, "text: the text is empty"),
        ({"text": "a" * 1001}, "text: String should have at most 1000 characters"),
        ({"text": "a", "top": 0}, "top"),
        ({"text": "a", "top": 201}, "top"),
        ({"text": "a", "rerank": 129}, "rerank"),
        ({"text": "a", "weight": 1.5}, "weight"),
        ({"text": "a", "nonsense": 1}, "nonsense"),
        ({"text": "a", "from": "June"}, "the date is 'June'; give one"),
        ({"text": "a", "near": "48.85"}, "near is '48.85'; give degrees"),
        ({"text": "a", "near": "48.85,2.35,20km"}, "has no column latitude"),
        ({"text": "a", "sort": "size"}, "sort: Input should be 'date'"),
        ({"image": "aGk=", "rerank": 5}, "the fusion encoder scores single texts"),
        ({"text": "red", "mode": "words", "rerank": 5}, "not by words alone"),
        ({"sort": "date", "rerank": 5}, "the fusion encoder scores single texts"),
        ({"image": "not base64!"}, "no base64"),
        ({"image": "data:,"}, "empty"),
        ({"image": "aGk="}, "no usable image"),
    ],
    "vqa": [({"question": "what?"}, "give an image or the id")],
    "caption": [({}, "give an image or the id"), ({"image": "aGk="}, "no usable image")],
    "embeddings": [
        ({"input": []}, "input: List should have at least 1 item"),
        ({"input": ["a"] * (MAX_TEXTS + 1)}, f"at most {MAX_TEXTS}"),
        ({"input": [{"image": "aGk="}] * (MAX_IMAGES + 1)}, f"send at most {MAX_IMAGES}"),
        ({"input": ""}, "input.0.text: String should have at least 1 character"),
        ({"input": "a" * 1001}, "at most 1000 characters"),
        ({"input": [1, 2, 3]}, "token ids are not accepted"),
        ({"input": [{"image": "https://images.example/x.png"}]}, "addresses are not fetched"),
        ({"input": "http://127.0.0.1/x.png"}, "addresses are not fetched"),
        ({"input": ["a", "File:///x.png"]}, "addresses are not fetched"),
        ({"input": [{"image": "aGk="}]}, "no usable image"),
        ({"input": ["data:image/png;base64,aGk="]}, "no usable image"),
        ({"input": [{"text": "a", "image": "aGk="}]}, "a text or an image, one of them"),
        ({"input": [{"video": "a"}]}, "input.0.video"),
        ({"input": "a", "encoding_format": "int8"}, "'float' or 'base64'"),
        ({"input": "a", "dimensions": 4096}, "dimensions is 4096, but the vectors here have "),
    ],
    "rerank": [
        ({"query": "a", "documents": []}, "documents: List should have at least 1 item"),
        ({"query": "a", "documents": [NO_IMAGE] * (MAX_RERANK + 1)}, f"at most {MAX_RERANK}"),
        ({"query": "a", "documents": ["a red apple"]}, "query and document 0 are both texts"),
        ({"query": "a", "documents": ["http://127.0.0.1/x.png"]}, "addresses are not fetched"),
        ({"query": "a", "documents": [{"image": "aGk="}, {"text": "b"}]}, "1 are both texts"),
        ({"query": {"image": "aGk="}, "documents": [{"image": "aGk="}]}, "are both images"),
        ({"query": "a", "documents": [NO_IMAGE]}, "no usable image"),
        ({"query": "a", "documents": [NO_IMAGE], "top_n": 0}, "top_n"),
        ({"query": "a", "documents": [NO_IMAGE], "weight": 1.5}, "weight"),
        ({"query": 5, "documents": [NO_IMAGE]}, "expected a text or"),
    ],
}


WRONG_REQUESTS = [(path, *case) for path, cases in WRONG.items() for case in cases]


@pytest.mark.parametrize(("path", "body", "reason"), WRONG_REQUESTS)
def test_request_names_what_is_wrong_and_sends_nothing_back(client, path, body, reason) -> None:
    response = client.post(f"/v1/{path}", json=body)
    assert response.status_code == 422, response.text
    assert response.json().keys() == {"error", "detail"}
    error = response.json()["error"]
    message = error.pop("message")
    assert error == {"type": "invalid_request_error", "code": "422"}
    assert reason in message
    assert message not in response.json()["detail"]  # nothing is said twice
    assert len(message) < 200


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"k" * 15_000_000: 1}, "k: Extra inputs are not permitted"),
        ({"text": "a", "parts": [{"k" * 100_000: 1}]}, "k: Extra inputs are not permitted"),
        ({"text": "a", "from": "k" * 1_000_000}, "the date is 'kkk"),
        ({"text": "a", "where": "k" * 499 + "()"}, "String should have at most 500 characters"),
        ({"text": "a", "where": "k" * 490 + "()"}, "kkk..."),
    ],
)
def test_no_name_or_value_comes_back_whole(client, body, message) -> None:
    response = client.post("/v1/search", json=body)
    assert response.status_code == 422
    assert message in response.json()["error"]["message"]
    assert len(response.content) < 2000


@pytest.mark.parametrize(
    ("path", "body", "fields"),
    [
        ("caption", {"text": "a"}, "send image, id;"),
        ("search", {"text": "a", "start": "2021"}, "send from, to, near, "),
        ("search", {"text": "a", "top": 0}, None),
        ("search", {"text": "a", "parts": [{"nonsense": 1}]}, None),  # another object's field
    ],
)
def test_fields_are_listed_for_an_unknown_field_alone(client, path, body, fields) -> None:
    response = client.post(f"/v1/{path}", json=body)
    detail = response.json()["detail"]
    assert (response.status_code, "openapi.json" in detail) == (422, True)
    assert detail.startswith(fields) if fields else "send" not in detail


def test_text_of_any_script_is_taken_but_for_lone_surrogates(client) -> None:
    texts = ["赤い丸", "دائرة حمراء", "🔴" * 500, "a\x00b", "e\u0301" * 400, "\u202eabc", "\ufffe"]
    for text in texts:
        assert len(post(client, "/v1/search", text=text, top=2)["hits"]) == 2
    response = client.post("/v1/search", content=b'{"text": "\\ud800"}', headers=JSON)
    assert response.status_code == 422


def test_similar_leaves_the_image_itself_out(client) -> None:
    first = post(client, "/v1/search", text="a red circle", top=1)["hits"][0]
    found = post(client, "/v1/similar", id=first["id"], top=NUM_IMAGES, where="color = 'red'")
    assert len(found["hits"]) == 3
    assert first["id"] not in {hit["id"] for hit in found["hits"]}


def test_images_and_thumbnails_are_jpeg_of_that_image(client) -> None:
    first = post(client, "/v1/search", image=BAR, top=1)["hits"][0]
    for route in ("images", "thumbnails"):
        response = client.get(f"/v1/{route}/{first['id']}")
        assert response.headers["content-type"] == "image/jpeg"
        assert response.headers["vary"] == "Authorization"
        assert response.headers["cache-control"] == "private, max-age=60"  # a file may change
        shown = Image.open(io.BytesIO(response.content))
        assert (shown.format, shown.size) == ("JPEG", drawings()[14].size)
        difference = np.float32(shown) - np.float32(drawings()[14])
        assert np.abs(difference).mean() < JPEG_NOISE


@pytest.mark.parametrize("number", ["0" * 24, "..%2f..%2fetc%2fpasswd", "x' or '1'='1", "%00", "é"])
def test_unknown_ids_are_not_found(client, number) -> None:
    for route in ("images", "thumbnails"):
        response = client.get(f"/v1/{route}/{number}")
        assert (response.status_code, "error" in response.json()) == (404, True)
    status, reason = error(client, "/v1/similar", id=number)
    assert status == 404
    assert "id" in reason


def test_image_whose_file_is_gone_is_not_found_and_its_path_not_told(
    gallery, parts, client
) -> None:
    hit = Searcher(parts.encoder, parts.index).search("a pink cross", top=1).hits[0]
    file = gallery.index.parent / "images" / hit.path.rsplit("/", maxsplit=1)[-1]
    aside = file.with_suffix(".aside")
    file.rename(aside)
    try:
        response = client.get(f"/v1/images/{hit.id}")
        with TestClient(create_app(parts)) as fresh:  # which has no pixels of it
            body = {"text": "a pink cross", "rerank": NUM_IMAGES, "top": NUM_IMAGES}
            searched = fresh.post("/v1/search", json=body)
    finally:
        aside.rename(file)
    assert response.status_code == 404
    assert searched.json()["note"] == "1 images could not be read and were not reranked"
    assert searched.json()["num_reranked"] == NUM_IMAGES - 1
    for each in (response, searched):
        assert str(gallery.index.parent) not in each.text


@torch.no_grad()
def test_answers_are_those_of_the_model(client, gallery) -> None:
    question = "what color is it?"
    model = VLMoForVisualQuestionAnswering.from_pretrained(gallery.vqa).eval()
    processor = VLMoProcessor.from_pretrained(gallery.vqa)
    inputs = processor(images=drawings()[14], text=question, return_tensors="pt")
    best = model(**inputs).logits[0].sigmoid().topk(3)
    by_file = post(client, "/v1/vqa", image=BAR, question=question, top=3)["answers"]
    first = post(client, "/v1/search", image=BAR, top=1)["hits"][0]
    by_id = post(client, "/v1/vqa", id=first["id"], question=question, top=3)["answers"]
    names = [model.config.id2label[number] for number in best.indices.tolist()]
    for answers in (by_file, by_id):
        assert [answer["answer"] for answer in answers] == names
        scores = [answer["score"] for answer in answers]
        np.testing.assert_allclose(scores, best.values, atol=TOLERANCE)
    assert error(client, "/v1/vqa", question=question, id="0" * 24)[0] == 404


def test_captions_are_those_of_the_model(client, gallery) -> None:
    model = VLMoForImageCaptioning.from_pretrained(gallery.captioning).eval()
    processor = VLMoProcessor.from_pretrained(gallery.captioning)
    inputs = processor(images=drawings()[14], return_tensors="pt")
    ids = model.generate(**inputs, tokenizer=processor.tokenizer)
    (expected,) = processor.batch_decode(ids, skip_special_tokens=True)
    first = post(client, "/v1/search", image=BAR, top=1)["hits"][0]
    for body in ({"image": BAR}, {"id": first["id"]}):
        assert post(client, "/v1/caption", **body) == {"caption": expected}
    assert error(client, "/v1/caption", id="0" * 24)[0] == 404


def test_requests_for_what_is_missing_say_what_to_start(parts, gallery) -> None:
    with TestClient(create_app(Parts(encoder=parts.encoder))) as client:
        for path, body, reason in (
            ("search", {"text": "a"}, "this service has no index"),
            ("similar", {"id": "a"}, "this service has no index"),
            ("vqa", {"image": BAR, "question": "a"}, "this service answers no questions"),
            ("caption", {"image": BAR}, "this service describes no images"),
        ):
            assert error(client, f"/v1/{path}", **body) == (404, reason)
        assert client.get("/v1/thumbnails/a").status_code == 404
        assert post(client, "/v1/embeddings", input="a")["model"] == gallery.model.name
        about = client.get("/v1/about").json()
        assert not any(about[f"can_{ability}"] for ability in ABILITIES)
    with TestClient(create_app(Parts(answerer=parts.answerer))) as client:
        assert error(client, "/v1/embeddings", input="a")[0] == 404
        documents = [f"data:image/png;base64,{BAR}"]
        assert error(client, "/v1/rerank", query="a", documents=documents)[0] == 404
        assert post(client, "/v1/vqa", image=BAR, question="what?")["answers"]
    with TestClient(create_app(load_parts(gallery.captioning))) as client:
        assert post(client, "/v1/caption", image=BAR).keys() == {"caption"}


def test_about_describes_the_index_and_the_limits(client, parts) -> None:
    about = client.get("/v1/about").json()
    assert (about["num_images"], about["model"]) == (NUM_IMAGES, parts.encoder.fingerprint)
    texts = dict.fromkeys(("color", "album", "taken", "taken_from"), "text")
    assert about["columns"] == {"even": "true or false", "number": "number", **texts}
    assert all(about[f"can_{ability}"] for ability in ABILITIES)
    assert len({sample["id"] for sample in about["samples"]}) == 12
    assert about["limits"] == {"request_bytes": 16 * 2**20, "pixels": 25_000_000, "top": MAX_TOP}


def test_pages_and_description_are_served_without_others_help(client) -> None:
    kinds = {"/": "html", "/docs": "html", "/static/page.js": "javascript", "/favicon.ico": "svg"}
    for path, kind in kinds.items():
        response = client.get(path)
        assert response.status_code == 200
        assert kind in response.headers["content-type"]
        assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", response.text)
    route = client.get("/openapi.json").json()["paths"]["/v1/search"]["post"]
    schema = route["requestBody"]["content"]["application/json"]["schema"]
    assert schema["properties"]["top"]["maximum"] == 200


def test_less_likely_images_are_apart(client) -> None:
    body = {"text": "a red circle", "rerank": 0, "mode": "vectors"}
    everything = post(client, "/v1/search", top=6, **body)["hits"]
    line = everything[2]["presence"]
    found = post(client, "/v1/search", top=6, min_probability=line, **body)
    assert (found["hits"], found["less_likely"]) == (everything[:3], everything[3:])
    later = post(client, "/v1/search", top=2, offset=4, min_probability=line, **body)
    assert (later["hits"], later["less_likely"]) == ([], everything[4:])


def test_search_for_unknown_words_says_no_match(client, parts, monkeypatch) -> None:
    body = {"text": "a red circle", "top": 3, "rerank": 12, "mode": "vectors"}
    found = post(client, "/v1/search", **body)
    assert (found["no_match"], found["note"]) == (False, None)
    monkeypatch.setattr(parts.encoder, "is_unknown", lambda *_, **__: True)
    unknown = post(client, "/v1/search", **body)
    assert unknown["no_match"]
    assert unknown["note"].startswith("no match: the model does not know these words")
    assert unknown["hits"] == found["hits"]


def test_filter_of_photographs_names_the_columns_of_an_index_without_dates(
    client, monkeypatch
) -> None:
    monkeypatch.setattr(Index, "columns", {"year": "number"})
    answer = client.post("/v1/search", json={"text": "a red circle", "from": "2020"})
    assert answer.status_code == 422
    assert answer.json()["detail"].endswith("there are captions, height, id, width, year")


@pytest.mark.parametrize("kind", ["heic", "avif"])
def test_photographs_of_phones_are_taken(client, kind) -> None:
    image = drawings()[14].convert("RGB")
    data = heic(image, quality=95) if kind == "heic" else encoded(image, "AVIF", quality=95)
    hits = post(client, "/v1/search", image=in_base64(data), top=1)["hits"]
    assert hits[0]["captions"][0] == CAPTIONS[14][0]
