"""The step's benchmark: both sides compute the same, and the result holds what it promises."""

from __future__ import annotations

import json

import pytest

import stage3_step
from stage3_step import OURS, PLAIN, Options

TINY = Options(preset="tiny", pairs=5)


def test_both_sides_have_the_same_losses_and_gradients() -> None:
    model = stage3_step.make_model(TINY).double()
    steps = {}
    for side in (OURS, PLAIN):
        steps[side] = stage3_step.make_step(side, model, precision="float32", options=TINY)
    losses = {side: step() for side, step in steps.items()}
    assert losses[OURS] == pytest.approx(losses[PLAIN], abs=1e-5)
    assert all(value > 0 for value in losses[OURS].values())
    assert stage3_step.compare_gradients(model, steps) < 1e-5  # the plain step's scores are float32
    assert all(p.grad is None for p in model.parameters())


def test_result_is_written(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(stage3_step, "peak_memory_apart", lambda side, **_: {OURS: 3, PLAIN: 4}[side])
    out = tmp_path / "results" / "step.json"
    stage3_step.main(["--preset", "tiny", "--pairs", "4", "--rounds", "1", "--threads", "1", "--out", str(out)])
    result = json.loads(out.read_text())
    assert 0 < result["operations_ratio"] < 1
    assert list(result["precisions"]) == ["float32", "bf16"]
    for figures in result["precisions"].values():
        assert figures["largest_difference_of_losses"] < 0.05
        assert figures["memory_ratio"] == 0.75
        assert sum(row["share"] for row in figures["profile"][OURS]) <= 1
        assert all(0 < share < 1 for share in figures["share_of_matrix_rate"].values())
    assert "bf16: time" in capsys.readouterr().out


def test_sides_that_differ_are_refused() -> None:
    losses = {OURS: {"loss": 1.0}, PLAIN: {"loss": 1.001}}
    with pytest.raises(RuntimeError, match=r"the losses differ by 0\.001 in float32"):
        stage3_step.check_losses(losses, precision="float32")
    assert stage3_step.check_losses(losses, precision="bf16") == pytest.approx(0.001)
    with pytest.raises(RuntimeError, match="differ by nan"):
        stage3_step.check_losses({OURS: {"loss": float("nan")}, PLAIN: {"loss": 1.0}}, precision="bf16")
