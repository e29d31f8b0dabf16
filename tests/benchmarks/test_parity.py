"""The parity script: every case it measures lies within the bar, and it measures an import."""

from __future__ import annotations

import json

import pytest
from tests.parity.plain_vlmo import Sizes

import parity

BAR = 1e-5  # the project's own, for float32


@pytest.mark.slow
def test_figures_are_within_the_bar_and_written(tmp_path, capsys):
    file = tmp_path / "results" / "parity.json"
    arguments = ["--base", "--repeats", "1", "--threads", "1", "--out", str(file)]
    parity.main(arguments, sizes=Sizes(relative=True))
    written = json.loads(file.read_text())
    shown = capsys.readouterr().out
    assert written["command"] == f"python benchmarks/parity.py {' '.join(arguments)}"
    assert len(written["parity"]) == 11
    for entry in written["parity"]:
        assert entry["checkpoint"] in shown
        for name, figures in entry["outputs"].items():
            assert figures["largest_difference"] <= BAR, (entry["checkpoint"], name)
            assert figures["largest_value"] > 100 * BAR, (entry["checkpoint"], name)  # there is something to compare
    cost = written["import_base"]
    assert cost["seconds"] > 0
    assert 0.1 < cost["peak_gib"] < 3
