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
