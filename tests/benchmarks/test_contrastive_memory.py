"""The memory script: it measures the step in a process of its own, and says what misses the bars."""

from __future__ import annotations

from typing import Any

import pytest

import contrastive_memory
from contrastive_memory import Options

GIB = 2**30


def step(pairs: int, *, above: float, peak: float, loss: float = 1.0) -> dict[str, Any]:
    figures = {"peak_above_state_bytes": above * GIB, "peak_bytes": peak * GIB}
    return {"pairs": pairs, "losses": {"loss": loss}, "gradient_norm": 1.0} | figures


def test_verdict_names_growth_memory_and_losses_that_are_not_finite() -> None:
    options = Options(tolerance=0.1, limit_gib=4)
    good = [step(8, above=1, peak=2), step(16, above=1.09, peak=3.9)]
    found = contrastive_memory.verdict(good, options)
    assert found["faults"] == []
    assert found["growth_above_state"] == pytest.approx([0, 0.09])
    assert found["growth_of_peak_with_pictures"] == pytest.approx([0, 0.95])
    bad = [step(8, above=1, peak=2, loss=float("nan")), step(16, above=1.2, peak=4.1)]
    assert contrastive_memory.verdict(bad, options)["faults"] == [
        "16 pairs take +20.0% above the state, the bar is +10%",
        "16 pairs take 4.1 GiB, the bar is 4 GiB",
        "8 pairs: not finite",
    ]


def test_a_step_is_measured(scripts_run_here) -> None:
    arguments = ["--layers", "1", "--image-size", "32", "--text-length", "4", "--chunk", "2", "--threads", "1"]
    found = contrastive_memory.in_own_process(4, [*arguments, "--matching"])
    assert found["pairs"] == 4
    assert found["picture_bytes"] == 4 * 3 * 32 * 32
    assert set(found["losses"]) == {"loss", "itc", "itm", "itm_accuracy", "temperature"}
    assert found["peak_bytes"] > found["state_bytes"] > 0
    assert found["gradient_norm"] > 0
