"""Lets tests import the benchmarks, which are scripts."""

from __future__ import annotations

import contextlib
import io
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))


@pytest.fixture
def scripts_run_here(monkeypatch):
    """A script that starts itself in a process of its own is run in this one, which has imported everything."""

    def run(command, **_):
        script = sys.modules[Path(command[1]).stem]
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            script.main(command[2:])
        return SimpleNamespace(stdout=printed.getvalue())

    monkeypatch.setattr(subprocess, "run", run)
