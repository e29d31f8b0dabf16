import asyncio
import gc
import json
import logging
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from fastapi.testclient import TestClient
from PIL import Image

from tests.integrations.toy_gallery import drawings
from tests.killing import wait_until
from tests.retrieval.toy_index import encoded, rows
from tests.serving.toy_service import in_base64
from vlmo.data.tables import MAX_TEXT
from vlmo.retrieval import Encoder, Index, build_index, building, embedding, store
from vlmo.serving.app import create_app
from vlmo.serving.decoder import Decoders
from vlmo.serving.parts import Parts
from vlmo.serving.schemas import SearchRequest
from vlmo.serving.settings import Settings

READ_EVERY_S = 0.2  # until a reader looks for what a writer has done
PATIENCE_S = 60
IMAGE = {"image": in_base64(encoded(drawings()[0]))}


def test_pairs_of_several_clients_are_scored_together(parts, monkeypatch) -> None:
    sizes, match = [], Encoder.match_pairs

    def slow(encoder, pairs):
        sizes.append(len(pairs))
        time.sleep(0.05)
        return match(encoder, pairs)

    monkeypatch.setattr(Encoder, "match_pairs", slow)
    body = {"text": "a red circle", "rerank": 12, "top": 24}
    with TestClient(create_app(parts)) as client, ThreadPoolExecutor(4) as threads:

        def search(_: int) -> list[str]:
            return [hit["id"] for hit in client.post("/v1/search", json=body).json()["hits"]]

        expected = search(0)
        sizes.clear()
        assert list(threads.map(search, range(4))) == [expected] * 4
        metrics = client.get("/metrics").text
    assert sum(sizes) == 4 * 12
    assert max(sizes) > 12  # a client sends 12
    assert 'vlmo_batch_rows_bucket{kind="pairs",le="32.0"}' in metrics
    assert 'vlmo_requests_total{method="POST",route="/v1/search",status="200"} 5.0' in metrics
    assert 'vlmo_request_seconds_count{route="/v1/search"} 5.0' in metrics
    assert "vlmo_queue_length 0.0" in metrics


@pytest.mark.parametrize("kind", ["takeout", "table", "words in images", "earlier index"])
def test_answer_stays_small_however_long_texts_are(kind, parts, tmp_path, monkeypatch) -> None:
    long, names = "word " * 200_000, [f"{number}.png" for number in range(20)]
    table = {"captions": ["a circle", long, *20_000 * ["ab"]], "note": long, long: 1}
    takeout = {"description": long, "photoTakenTime": {"timestamp": "1577880000"}}
    for name, image in zip(names, drawings(), strict=False):
        image.save(tmp_path / name)
        if kind == "takeout":
            (tmp_path / f"{name}.json").write_text(json.dumps(takeout))
    if kind in {"table", "earlier index"}:
        lines = [json.dumps({"image": name, **table}) for name in names]
        (tmp_path / "captions.jsonl").write_text("\n".join(lines))
    monkeypatch.setattr(building, "load_reader", lambda: None)
    monkeypatch.setattr(embedding, "read_text", lambda _: long)
    if kind == "earlier index":
        monkeypatch.setattr(embedding, "cut_texts", lambda *texts: texts)
    build_index(parts.encoder, [tmp_path], out=tmp_path / "index", ocr=kind == "words in images")
    with TestClient(create_app(Parts(parts.encoder, Index(tmp_path / "index")))) as client:
        answer = client.post("/v1/search", json={"text": "a red circle", "top": 20})
    hits = answer.json()["hits"]
    assert len(answer.content) < 20 * 3 * MAX_TEXT
    assert [hit["metadata"]["album"] for hit in hits] == 20 * [tmp_path.name]
    for hit in hits:
        texts = [*hit["captions"], *map(str, hit["metadata"].values())]
        assert max(texts, key=len).endswith("…")
    stored = sum(len(row["full_text"]) for row in rows(tmp_path / "index").values())
    assert kind == "earlier index" or stored < 20 * 2 * MAX_TEXT


def test_samples_are_those_of_the_index_as_it_is_now(parts, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(store, "_READ_EVERY", timedelta(seconds=READ_EVERY_S))
    for number, image in enumerate(drawings()[:3]):
        image.save(tmp_path / f"{number}.png")
    build_index(parts.encoder, [tmp_path], out=tmp_path / "index")
    index = Index(tmp_path / "index", in_memory=True)
    with TestClient(create_app(Parts(parts.encoder, index))) as client:

        def samples() -> set[str]:
            return {each["name"] for each in client.get("/v1/about").json()["samples"]}

        assert samples() == {"0.png", "1.png", "2.png"}
        (tmp_path / "1.png").unlink()
        build_index(parts.encoder, out=tmp_path / "index")
        time.sleep(READ_EVERY_S + 0.05)
        assert samples() == {"0.png", "2.png"}


def test_searches_by_words_wait_for_no_upload(parts, monkeypatch) -> None:
    begun, go = threading.Semaphore(0), threading.Event()

    def decode(*_: object) -> None:
        begun.release()
        assert go.wait(PATIENCE_S)
        raise ValueError("bytes in memory: nothing")

    monkeypatch.setattr(Decoders, "decode", decode)
    app = create_app(parts, Settings(queue=6))
    with TestClient(app) as client, ThreadPoolExecutor(3) as threads:
        try:
            uploads = [threads.submit(client.post, "/v1/search", json=IMAGE) for _ in range(3)]
            assert begun.acquire(timeout=PATIENCE_S)
            assert begun.acquire(timeout=PATIENCE_S)
            running = app.state.vlmo.service._uploads.running
            wait_until(lambda: len(running) == 3, within_s=PATIENCE_S)
            refused = client.post("/v1/embeddings", json={"input": [IMAGE]})
            found = client.post("/v1/search", json={"text": "a red circle", "rerank": 8}).json()
        finally:
            go.set()
        assert [upload.result().status_code for upload in uploads] == [422] * 3
        # There is room again.
        assert client.post("/v1/embeddings", json={"input": [IMAGE]}).status_code == 422
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
    assert "images" in refused.json()["error"]["message"]
    assert found["num_reranked"] == 8


def test_search_that_is_cancelled_after_any_step_leaves_nothing_unawaited(parts) -> None:
    app = create_app(parts)
    with TestClient(app) as client:
        (hit,) = client.post("/v1/search", json={"text": "a red circle", "top": 1}).json()["hits"]
        request = SearchRequest(like=[hit["id"]])

        async def search_and_leave(steps: int) -> asyncio.Task:
            task = asyncio.ensure_future(app.state.vlmo.service.search(request))
            for _ in range(steps):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
            return task

        assert all(asyncio.run(search_and_leave(steps)).cancelled() for steps in range(6))
    gc.collect()  # pytest fails for a coroutine that is found then


@pytest.mark.parametrize(("share_of_pixels", "share_of_time"), [(0.8, 0.0), (0.0, 0.8)])
def test_images_of_a_request_share_a_limit(parts, monkeypatch, share_of_pixels, share_of_time):
    def decode(decoders: Decoders, _: bytes) -> Image.Image:
        image = Image.new("L", (100, round(100 * share_of_pixels) or 1)).convert("RGB")
        image.info["cpu_seconds"] = share_of_time * decoders.cpu_seconds
        return image

    monkeypatch.setattr(Decoders, "decode", decode)
    with TestClient(create_app(parts, Settings(max_pixels=10_000))) as client:
        assert client.post("/v1/embeddings", json={"input": [IMAGE] * 4}).status_code == 200
        refused = client.post("/v1/embeddings", json={"input": [IMAGE] * 6})
    assert refused.status_code == 422
    assert "40,000 pixels, or 16 s" in refused.json()["error"]["message"]


@pytest.mark.parametrize("damage", ["gone", "damaged"])
def test_index_that_cannot_be_read_any_more_is_503_with_the_reason_in_the_log(
    parts, gallery, tmp_path, monkeypatch, caplog, damage
) -> None:
    monkeypatch.setattr(store, "_READ_EVERY", timedelta(seconds=READ_EVERY_S))
    index = Index(shutil.copytree(gallery.index, tmp_path / "index"), in_memory=True)
    with TestClient(create_app(Parts(parts.encoder, index))) as client:
        found = client.post("/v1/search", json={"text": "a", "top": 1}).json()["hits"][0]["id"]
        if damage == "gone":
            shutil.rmtree(tmp_path / "index")
        else:
            for file in (tmp_path / "index").rglob("*.manifest"):
                file.write_bytes(b"no manifest")
        time.sleep(READ_EVERY_S + 0.05)
        asked = [
            client.post("/v1/search", json={"text": "a", "rerank": 8}),
            client.post("/v1/search", json={"text": "a", "where": "number > 3"}),
            client.post("/v1/similar", json={"id": found}),
        ]
        paths = (f"images/{found}", f"thumbnails/{found}", "about")
        asked += [client.get(f"/v1/{path}") for path in paths]
    for answer in asked:
        assert answer.status_code == 503
        assert answer.json()["error"]["message"] == "the index cannot be read"
        assert str(tmp_path) not in answer.text
    logged = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(logged) == len(asked)
    assert all(str(tmp_path) in record.message and record.exc_info is None for record in logged)
