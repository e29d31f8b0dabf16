"""The dual encoder against CLIP at toy size: every program is timed on the same work, and ratios say what they mean."""

from __future__ import annotations

import json

import torch

import encoder_speed
from encoder_speed import OPEN_CLIP, OURS, TRANSFORMERS


def test_every_program_is_timed_and_the_result_written(tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setattr("timing.PAUSE", 0)
    out = tmp_path / "results" / "encoder_speed.json"
    small = ["--size", "toy", "--turns", "1", "--seconds", "0", "--batches", "1", "3", "--threads", "1"]
    engine = torch.backends.quantized.engine
    encoder_speed.main([*small, "--out", str(out)])
    assert torch.backends.quantized.engine == engine
    result = json.loads(out.read_text())
    assert list(result["precisions"]) == ["float32", "bfloat16"]
    for precision, figures in result["precisions"].items():
        programs = [OURS, OPEN_CLIP, TRANSFORMERS]
        for batch in ("batch 1", "batch 3"):
            for what in ("images", "texts", "pairs"):
                found = figures[batch][what]
                assert set(found["a_second"]) == set(programs)
                assert all(each > 0 for each in found["a_second"].values())
            assert figures[batch]["pairs"]["a_second"][OURS] < figures[batch]["images"]["a_second"][OURS]
            bar = figures[batch]["images"].get("bar")
            assert bar == {"float32": 1.0, "bfloat16": 1.5}[precision]
    assert len(capsys.readouterr().out.splitlines()) == 2 + 2 * 2 * 3
