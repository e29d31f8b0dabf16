"""The search benchmark on a tiny set: every engine finds, and recall is counted against exact neighbours."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
import torch

import search

ARGUMENTS = ["--dim", "32", "--query-count", "4", "--seconds", "60", "--threads", "1", "--clients", "3"]


class _Knows:
    """Finds the first neighbours of every query, and nothing else."""

    figures = {"build": {"seconds": 0.0}}

    def __init__(self, asked: search.Questions, *, knows: int) -> None:
        self.asked, self.knows, self.calls = asked, knows, 0

    def search(self, query):
        self.calls += 1
        row = int(np.flatnonzero((self.asked.vectors == query).all(axis=1))[0])
        return self.asked.truth[row, : self.knows]

    def as_client(self) -> None: ...


def asked() -> search.Questions:
    vectors = np.random.default_rng(0).standard_normal((40, 8)).astype(np.float32)
    return search.Questions(vectors, np.arange(400).reshape(40, 10))


def test_recall_is_the_share_of_the_true_neighbours() -> None:
    found = search.one_by_one(_Knows(asked(), knows=7), asked(), seconds=10)
    assert (found["queries"], found["recall@10"]) == (40, 0.7)


def test_clients_ask_each_query_once() -> None:
    engine = _Knows(asked(), knows=10)
    found = search.at_once(engine, asked().vectors, clients=4, seconds=10)
    assert (found["queries"], engine.calls) == (40, 40)
    assert found["a_second"] > 0


@pytest.mark.parametrize(("recall", "p99", "met"), [(0.97, 49.0, True), (0.96, 49.0, False), (0.99, 50.0, False)])
def test_bar_is_for_the_worst_kind_of_query(recall, p99, met) -> None:
    kinds = {"texts": {"recall@10": recall, "p99_ms": 1.0}, "pictures": {"recall@10": 1.0, "p99_ms": p99}}
    assert search.against_bar({"lancedb index": {"one by one": kinds}})["met"] is met


@pytest.mark.slow
def test_every_engine_is_measured_and_the_result_written(tmp_path, capsys) -> None:
    out, before = tmp_path / "results" / "search.json", os.sched_getaffinity(0)
    search.main([*ARGUMENTS, "--sizes", "600", "300", "--work", str(tmp_path), "--out", str(out)])
    result = json.loads(out.read_text())
    assert list(result["sizes"]) == ["300", "600"]
    for engines in result["sizes"].values():
        assert list(engines) == [
            "lancedb exact",
            "lancedb index",
            "faiss exact",
            "faiss RaBitQ",
            "faiss SQ8",
            "faiss HNSW",
        ]
        for name, found in engines.items():
            for kind in ("texts", "pictures"):
                recall = found["one by one"][kind]["recall@10"]
                assert recall == 1 if name.endswith("exact") else recall > 0.9, (name, kind)
            assert found["3 clients"]["queries"] == 8, name
        assert engines["lancedb index"]["bytes"]["index"] > 0
        assert engines["lancedb exact"]["bytes"]["vectors"] > 300 * 32 * 4
    assert result["bar"]["recall@10"] > 0.9
    assert list(result["vectors"]["hardness_among_600"]) == ["texts", "pictures"]
    assert (os.sched_getaffinity(0), torch.get_num_threads()) == (before, 1)
    assert list(tmp_path.iterdir()) == [out.parent]  # nothing is left of vectors and tables
    assert len(capsys.readouterr().out.splitlines()) == 2 + 2 * 6 * 2


def test_own_vectors_are_searched(tmp_path) -> None:
    np.save(tmp_path / "own.npy", np.random.default_rng(0).standard_normal((330, 16)).astype(np.float32))
    own = ["--vectors", str(tmp_path / "own.npy"), "--work", str(tmp_path)]
    result = search.main([*ARGUMENTS, *own, "--sizes", "326", "--graphs-up-to", "0"])
    assert result["vectors"]["source"] == "own.npy"
    assert "faiss HNSW" not in result["sizes"]["326"]
    assert result["sizes"]["326"]["lancedb exact"]["one by one"]["rows"]["recall@10"] == 1
    with pytest.raises(SystemExit, match="has 326 to search"):
        search.main([*ARGUMENTS, *own, "--sizes", "327"])
