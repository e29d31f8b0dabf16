from __future__ import annotations

import json
from pathlib import Path

import quickstart_seeds
from vlmo.demo.quickstart import STEPS

LOSSES = {loss for step in STEPS.values() for loss in step.losses}


def table(dual: float, fusion: float) -> dict[str, dict[str, float]]:
    return {"Dual encoder": {"R@1": dual}, "Fusion encoder": {"R@1": fusion}}


def test_each_cell_has_median_and_range_over_seeds(monkeypatch, tmp_path):
    found = {3: table(0.1, 0.8), 4: table(0.3, 0.9), 5: table(0.2, 0.5)}
    lines = [{"step": n, "loss": 1.0, **dict.fromkeys(LOSSES, 20.0 - n)} for n in range(1, 21)]
    monkeypatch.setattr(quickstart_seeds, "read_metrics", lambda _: lines)
    seeds = []

    def trained(_: Path, *, seed: int, **__: object) -> dict[str, dict[str, float]]:
        seeds.append(seed)
        return found[seed]

    monkeypatch.setattr(quickstart_seeds, "run_quickstart", trained)
    out = tmp_path / "out.json"
    command = ["--seeds", "3", "4", "5", "--run-dir", str(tmp_path / "runs")]
    quickstart_seeds.main([*command, "--out", str(out)])
    assert seeds == [3, 4, 5]
    result = json.loads(out.read_text())
    dual, fusion = (result["summary"][f"{name} encoder"]["R@1"] for name in ("Dual", "Fusion"))
    assert dual == {"median": 0.2, "lowest": 0.1, "highest": 0.3}
    assert fusion == {"median": 0.8, "lowest": 0.5, "highest": 0.9}
    assert result["stages"]["shapes-stage1"]["mim"] == dict.fromkeys(dual, 0.5)
    assert result["seeds"]["5"] == found[5]
