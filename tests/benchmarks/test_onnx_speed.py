"""The speed script: it times what it says, and compares engines turn by turn."""

from __future__ import annotations

import json

import pytest
import torch
from tests.toy_onnx import copy_graphs, dual_encoder

import onnx_speed
import timing


def test_ratio_is_the_median_of_the_turns(monkeypatch) -> None:
    rates = iter([10.0, 20.0, 30.0, 90.0, 40.0, 40.0])  # PyTorch first, then the other first, and so on
    monkeypatch.setattr(timing, "rate", lambda *_, **__: next(rates))
    calls = {onnx_speed.TORCH: lambda: None, "onnxruntime": lambda: None}
    found = onnx_speed.by_turns(calls, rows=1, turns=3, seconds=0.0)
    assert found[onnx_speed.TORCH] == {"rows_per_second": 40.0, "ratio_to_pytorch": 1.0, "turns": [10.0, 90.0, 40.0]}
    assert found["onnxruntime"] == {"rows_per_second": 30.0, "ratio_to_pytorch": 1.0, "turns": [20.0, 30.0, 40.0]}


@pytest.mark.slow
def test_every_graph_is_timed_and_the_result_written(shared_folder, tmp_path, capsys, monkeypatch) -> None:
    exported = dual_encoder(shared_folder)
    copy_graphs(exported.folder, monkeypatch)
    out = tmp_path / "results" / "speed.json"
    arguments = ["--batches", "1", "3", "--turns", "1", "--seconds", "0", "--threads", "1", "--text-length", "8"]
    onnx_speed.main(["--folder", str(exported.source), *arguments, "--out", str(out)])
    result = json.loads(out.read_text())
    assert list(result["graphs"]) == ["image_encoder", "text_encoder", "fusion_encoder"]
    for graph in result["graphs"].values():
        assert graph["float32"]["largest_difference"] < 1e-5
        assert min([1, *graph["cosine"].values()]) > 0.98
        for batch in ("batch 1", "batch 3"):
            assert set(graph[batch]) == {"pytorch", *onnx_speed.GRAPHS}
            assert graph[batch]["pytorch"]["ratio_to_pytorch"] == 1
            assert all(engine["rows_per_second"] > 0 for engine in graph[batch].values())
    assert (result["model"]["opset"], result["hardware"]["threads"], result["recall"]) == (23, 1, None)
    assert torch.get_num_threads() == 1
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 + 2 * 3 * 5
    assert lines[-1].startswith("| fusion_encoder | 3 | openvino_int8 | ")
