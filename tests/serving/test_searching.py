"""Searches that share one model: their budgets hold while others keep it busy."""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor

from fastapi.testclient import TestClient

from vlmo.retrieval import Encoder
from vlmo.serving.app import create_app
from vlmo.serving.batcher import Batcher
from vlmo.serving.searching import SharedSearcher, turn
from vlmo.serving.settings import Settings

PATIENCE_S = 30
"""A wait that only a bug uses up."""
LOAD = 12
CALL_S = 0.2
"""Of the model under load: many times what the rest of a search takes."""
BUDGET_S = 0.7
LATE_S = 1.3
"""The work of all clients takes more than twice as long."""


def test_budget_ends_the_wait_for_a_model_that_is_busy(parts) -> None:
    held, go = threading.Event(), threading.Event()

    def match(rows) -> list[float]:
        held.set()
        assert go.wait(PATIENCE_S)
        return [0.0] * len(rows)

    batcher = Batcher({"pairs": match}, max_batch=8, max_wait=0.0)
    searcher = SharedSearcher(parts.encoder, parts.index, batcher=batcher, kind="pairs")
    other = batcher.submit("pairs", [(None, "another client's")])
    assert held.wait(PATIENCE_S)
    vector = parts.encoder.embed_texts(["a red circle"])[0]
    try:
        found = searcher.run(
            lambda each: each.search_vector(vector, text="a red circle", top=12, rerank=12, budget=0.3),
            deadline=time.monotonic() + 0.3,
        )
        assert not other.done()
    finally:
        go.set()
        batcher.close()
    assert (found.num_reranked, found.num_late, found.complete) == (0, 12, False)
    assert "time was up after 0 of 12" in found.note
    assert [hit.similarity for hit in found.hits] == sorted((hit.similarity for hit in found.hits), reverse=True)


def test_turn_that_does_not_come_in_time_is_given_up() -> None:
    async def wait() -> bool:
        turns = asyncio.Semaphore(1)
        async with turn(turns, deadline=None), turn(turns, deadline=time.monotonic() + 0.05):
            late = turns.locked()
        return late and not turns.locked()  # who had none gives none back

    assert asyncio.run(asyncio.wait_for(wait(), PATIENCE_S))


def test_budget_is_kept_while_others_rerank(parts, monkeypatch) -> None:
    match = Encoder.match

    def slow(encoder, pictures, texts):
        time.sleep(CALL_S)
        return match(encoder, pictures, texts)

    monkeypatch.setattr(Encoder, "match", slow)
    body = {"text": "a red circle", "rerank": 24, "top": 24}
    app = create_app(parts, Settings(max_batch=16))
    with TestClient(app) as client, ThreadPoolExecutor(LOAD) as threads:
        others = [threads.submit(client.post, "/v1/search", json=body) for _ in range(LOAD)]
        while f"vlmo_queue_length {LOAD}.0" not in client.get("/metrics").text:
            assert not others[0].done()
        found = client.post("/v1/search", json={**body, "budget": BUDGET_S}).json()
        assert not all(other.done() for other in others)
    assert [other.result().status_code for other in others] == [200] * LOAD
    assert len(found["hits"]) == 24
    assert not found["complete"]
    assert found["seconds"]["total"] < LATE_S


def test_first_search_of_a_service_knows_how_long_a_judgement_takes(parts, monkeypatch) -> None:
    seen, match = [], Encoder.match

    def slow(encoder, pictures, texts):
        seen.extend(texts)
        time.sleep(0.05 * len(texts))
        return match(encoder, pictures, texts)

    monkeypatch.setattr(Encoder, "match", slow)
    with TestClient(create_app(parts)) as client:
        found = client.post("/v1/search", json={"text": "a red circle", "rerank": 24, "budget": 0.045}).json()
    assert found["num_reranked"] == 0
    assert set(seen) == {"a picture"}  # what the warm-up asks
