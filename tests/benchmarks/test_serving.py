"""The load script: it asks what it says, counts what comes back, and its index has the wanted size."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
from PIL import Image
from tests.forkserver import start_command
from tests.integrations.toy_gallery import trained_folder
from tests.retrieval.toy_index import encoded

import serving


@pytest.fixture
def _small_and_quick(monkeypatch) -> None:
    """Fifty images, `vlmo serve` in a process that has imported torch, and a clock that requests move on."""
    clock = itertools.count(0.0, 0.01)
    monkeypatch.setattr(serving, "time", SimpleNamespace(monotonic=lambda: next(clock), sleep=time.sleep))

    def start(command, **_):
        assert command[:4] == [sys.executable, "-m", "vlmo.cli", "serve"]
        process = start_command(*command[3:])
        process.poll = lambda: process.exitcode
        return process

    images = [encoded(Image.new("RGB", (72, 72), (5 * number, 0, 0))) for number in range(50)]
    rows = [{"image": {"bytes": image}, "captions": [f"red {number}"]} for number, image in enumerate(images)]
    monkeypatch.setattr(serving, "open_source", lambda *_, **__: rows)
    monkeypatch.setattr(serving, "subprocess", SimpleNamespace(Popen=start, DEVNULL=subprocess.DEVNULL))


@pytest.mark.slow
@pytest.mark.usefixtures("_small_and_quick")
def test_load_and_soak_are_measured_and_written(tmp_path) -> None:
    model = trained_folder(tmp_path / "model", steps=1)
    common = ["--model", str(model), "--vectors", "300", "--drawings", "40", "--clients", "3", "--rerank", "4"]
    common += ["--index", str(tmp_path / "index"), "--out", str(tmp_path / "out.json")]
    serving.main([*common, "--seconds", "0.5", "--soak", "2"])
    result = json.loads((tmp_path / "out.json").read_text())
    assert result["index"]["images"] == 300
    plain, reranked = result["search"]
    assert (plain["rerank"], reranked["rerank"]) == (0, 4)
    for figures in (plain, reranked):
        assert figures["errors"] == 0
        assert figures["statuses"] == {"200": figures["requests"]}
        assert 0 < figures["p50_ms"] <= figures["p95_ms"] <= figures["p99_ms"]
        assert figures["requests"] >= 3
        assert 1 <= figures["rows_per_call"] <= 32
    soak = result["soak"]
    assert soak["errors"] == 0
    assert len(soak["resident_mb"]) >= 2
    assert soak["resident_mb_highest"] >= soak["resident_mb_of_the_last_fifth"] > 50
