from __future__ import annotations

import json

import busy_machine


def test_speed_is_the_median_of_others_by_that_of_the_choice(monkeypatch, tmp_path):
    times = {"300000": iter([9.0, 2.0, 3.0] * 6), "PASSIVE": iter([4.0] * 18), None: iter([2.0] * 21)}
    monkeypatch.setattr(
        busy_machine,
        "seconds_of",
        lambda _, environment: next(times[environment.get("GOMP_SPINCOUNT", environment.get("OMP_WAIT_POLICY"))]),
    )
    monkeypatch.setattr(busy_machine, "_IMAGES", 3)
    busy_machine.main(["--out", str(tmp_path / "out.json")])
    result = json.loads((tmp_path / "out.json").read_text())["commands"]
    assert set(result) == {"train", "finetune", "index"}
    for command in result.values():
        for load in ("alone", "beside two busy loops"):
            assert command[load]["speed_by_default"] == 1.5
            assert command[load]["speed_by_passive"] == 2.0
