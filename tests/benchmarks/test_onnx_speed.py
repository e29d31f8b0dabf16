"""The speed script: it times what it says, and compares engines turn by turn."""

from __future__ import annotations

import json

import pytest
import torch

import onnx_speed
import timing
from vlmo.model import VLMoConfig


def test_ratio_is_the_median_of_the_turns(monkeypatch) -> None:
    rates = iter([10.0, 20.0, 30.0, 90.0, 40.0, 40.0])  # PyTorch first, then the other first, and so on
    monkeypatch.setattr(timing, "rate", lambda *_, **__: next(rates))
    calls = {onnx_speed.TORCH: lambda: None, onnx_speed.FLOAT32: lambda: None}
    found = onnx_speed.by_turns(calls, rows=1, turns=3, seconds=0.0)
    assert found[onnx_speed.TORCH] == {"rows_per_second": 40.0, "ratio_to_pytorch": 1.0, "turns": [10.0, 90.0, 40.0]}
    assert found[onnx_speed.FLOAT32] == {"rows_per_second": 30.0, "ratio_to_pytorch": 1.0, "turns": [20.0, 30.0, 40.0]}


@pytest.mark.slow
def test_every_graph_is_timed_and_the_result_written(tmp_path, capsys, monkeypatch) -> None:
    one_layer = VLMoConfig.tiny(num_hidden_layers=1, use_match_head=False)  # quicker to export
    monkeypatch.setattr(VLMoConfig, "tiny", lambda: one_layer)
    out = tmp_path / "results" / "speed.json"
    arguments = ["--preset", "tiny", "--batches", "1", "3", "--turns", "1", "--seconds", "0", "--threads", "1"]
    onnx_speed.main([*arguments, "--text-length", "8", "--out", str(out)])
    result = json.loads(out.read_text())
    assert list(result["graphs"]) == ["image_encoder", "text_encoder"]
    for graph in result["graphs"].values():
        assert graph["float32"]["largest_difference"] < 1e-5
        for batch in ("batch 1", "batch 3"):
            assert set(graph[batch]) == {"pytorch", "onnxruntime", "onnxruntime_int8"}
            assert graph[batch]["pytorch"]["ratio_to_pytorch"] == 1
            assert all(engine["rows_per_second"] > 0 for engine in graph[batch].values())
    assert (result["model"]["opset"], result["hardware"]["threads"], result["recall"]) == (23, 1, None)
    assert torch.get_num_threads() == 1
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 + 2 * 2
    assert lines[-1].startswith("| text_encoder | 3 | ")
