from __future__ import annotations

import subprocess
import sys

import pytest

from vlmo.cli import waiting


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """A machine of two cores with so many threads that run, this one among them."""

    def running(count: int) -> None:
        (tmp_path / "loadavg").write_text(f"9.00 9.00 9.00 {count}/412 7646\n")

    monkeypatch.setattr(waiting, "_RUNNING", tmp_path / "loadavg")
    monkeypatch.setattr(waiting.os, "cpu_count", lambda: 2)
    return running


@pytest.mark.parametrize(
    ("running", "given", "chosen"),
    [
        (1, {}, {"GOMP_SPINCOUNT": "20000"}),  # high load averages of a moment ago do not count
        (2, {}, {"OMP_WAIT_POLICY": "PASSIVE"}),
        (3, {"OMP_WAIT_POLICY": "ACTIVE"}, {"OMP_WAIT_POLICY": "ACTIVE"}),
        (3, {"GOMP_SPINCOUNT": "7"}, {"GOMP_SPINCOUNT": "7"}),
    ],
)
def test_threads_sleep_where_others_run_unless_the_user_chose(machine, running, given, chosen):
    machine(running)
    waiting.choose_waiting(given)
    assert given == chosen


def test_one_other_among_many_cores_changes_nothing(machine, monkeypatch):
    monkeypatch.setattr(waiting.os, "cpu_count", lambda: 16)
    machine(3)
    waiting.choose_waiting(found := {})
    assert found == {"GOMP_SPINCOUNT": "20000"}


def test_a_system_that_does_not_say_what_runs_counts_as_idle(monkeypatch, tmp_path):
    monkeypatch.setattr(waiting, "_RUNNING", tmp_path / "missing")
    assert waiting.running_others() == 0


def test_a_busy_loop_beside_this_process_is_seen():
    with subprocess.Popen(
        [sys.executable, "-c", "print(flush=True)\nwhile True: pass"], stdout=subprocess.PIPE
    ) as busy:
        assert busy.stdout is not None
        busy.stdout.readline()
        found = waiting.running_others()
        busy.kill()
    assert found >= 1


def test_the_command_chooses_before_torch_is_imported():
    program = """
import os, sys
import vlmo.cli
choose = vlmo.cli.choose_waiting
def check():
    assert "torch" not in sys.modules
    choose()
    assert {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & set(os.environ)
    print("chosen")
vlmo.cli.choose_waiting = check
sys.argv = ["vlmo", "--version"]
vlmo.cli.main()
"""
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": ":".join(sys.path)}
    ended = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert ended.stdout.startswith("chosen")
