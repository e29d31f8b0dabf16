"""The parity script: every case it measures lies within the bar, and it measures an import."""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace

import pytest
from tests.forkserver import start
from tests.parity.plain_vlmo import Sizes

import parity

BAR = 1e-5  # the project's own, for float32


def execute(code: str, arguments: list[str]) -> None:
    sys.argv = ["-c", *arguments]
    exec(code, {})


@pytest.fixture
def _import_that_starts_quickly(monkeypatch) -> None:
    """The measured import in a process that has imported torch already."""

    def run(command, *, env, **_):
        assert command[:2] == [sys.executable, "-c"]
        process = start(execute, command[2], command[3:], env=env)
        assert process.wait() == 0, process.stderr
        return SimpleNamespace(stderr=process.stderr)

    monkeypatch.setattr(parity, "subprocess", SimpleNamespace(run=run))


@pytest.mark.slow
@pytest.mark.usefixtures("_import_that_starts_quickly")
def test_figures_are_within_the_bar_and_written(tmp_path, capsys):
    file = tmp_path / "results" / "parity.json"
    arguments = ["--base", "--repeats", "1", "--threads", "1", "--out", str(file)]
    parity.main(arguments, sizes=Sizes(relative=True))
    written = json.loads(file.read_text())
    shown = capsys.readouterr().out
    assert written["command"] == "python benchmarks/parity.py --base --repeats 1 --threads 1 --out parity.json"
    assert len(written["parity"]) == 11
    for entry in written["parity"]:
        assert entry["checkpoint"] in shown
        for name, figures in entry["outputs"].items():
            assert figures["largest_difference"] <= BAR, (entry["checkpoint"], name)
            assert figures["largest_value"] > 100 * BAR, (entry["checkpoint"], name)  # there is something to compare
    cost = written["import_base"]
    assert cost["seconds"] > 0
    assert 0.1 < cost["peak_gib"] < 3
