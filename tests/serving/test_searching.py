"""Searches that share one model: their budgets hold while others keep it busy."""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

from fastapi.testclient import TestClient

from vlmo.retrieval import Encoder
from vlmo.retrieval import search as search_module
from vlmo.serving import service as service_module
from vlmo.serving.app import create_app
from vlmo.serving.schemas import SearchRequest
from vlmo.serving.service import Service
from vlmo.serving.settings import Settings

PATIENCE_S = 30
"""A wait that only a bug uses up."""
BODY = {"text": "a red circle", "rerank": 24, "top": 24}


def test_budget_ends_the_wait_for_a_model_that_is_busy(parts, monkeypatch) -> None:
    held, go, clock = threading.Event(), threading.Event(), SimpleNamespace(perf_counter=lambda: 0.0)

    def match(_encoder, pairs) -> list[float]:
        held.set()
        assert go.wait(PATIENCE_S)
        return [0.0] * len(pairs)

    monkeypatch.setattr(Encoder, "match_pairs", match)

    async def search():
        service = Service(parts, Settings())
        # Time stands still while the text is encoded: the whole budget is left for the wait.
        monkeypatch.setattr(service_module, "time", clock)
        monkeypatch.setattr(search_module, "time", clock)
        found = await service.search(SearchRequest(text="a red circle", top=12, rerank=12, budget=2))
        assert held.is_set()
        go.set()
        await asyncio.to_thread(service.close)
        return found

    found = asyncio.run(search())
    assert (found.num_reranked, found.complete, len(found.hits)) == (0, False, 12)
    assert "time was up after 0 of 12" in found.note
    assert [hit.similarity for hit in found.hits] == sorted((hit.similarity for hit in found.hits), reverse=True)


def test_pairs_of_several_clients_are_scored_together(parts, monkeypatch) -> None:
    sizes, match = [], Encoder.match_pairs

    def slow(encoder, pairs):
        sizes.append(len(pairs))
        time.sleep(0.05)
        return match(encoder, pairs)

    monkeypatch.setattr(Encoder, "match_pairs", slow)
    with TestClient(create_app(parts)) as client, ThreadPoolExecutor(4) as threads:
        expected = client.post("/v1/search", json=BODY).json()["hits"]
        sizes.clear()
        found = list(threads.map(lambda _: client.post("/v1/search", json=BODY).json()["hits"], range(4)))
    assert [[hit["id"] for hit in hits] for hits in found] == [[hit["id"] for hit in expected]] * 4
    assert sum(sizes) == 4 * 24
    assert max(sizes) > 8  # a client sends 8 at a time
