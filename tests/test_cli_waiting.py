from __future__ import annotations

import subprocess
import sys

import pytest

from vlmo.cli import waiting

ACTIVE = {"OMP_WAIT_POLICY": "ACTIVE"}


@pytest.mark.parametrize(
    ("cores", "loadavg", "given", "chosen"),
    [
        # High averages of a moment ago do not count.
        (2, "9.00 9.00 9.00 1/412 7646", {}, {"GOMP_SPINCOUNT": "20000"}),
        (2, "0.00 0.00 0.00 2/412 7646", {}, {"OMP_WAIT_POLICY": "PASSIVE"}),
        (16, "0.00 0.00 0.00 3/412 7646", {}, {"GOMP_SPINCOUNT": "20000"}),
        (2, "a system that does not say what runs", {}, {"GOMP_SPINCOUNT": "20000"}),
        (2, "0.00 0.00 0.00 3/412 7646", ACTIVE, ACTIVE),
        (2, "0.00 0.00 0.00 3/412 7646", {"GOMP_SPINCOUNT": "7"}, {"GOMP_SPINCOUNT": "7"}),
    ],
)
def test_threads_sleep_where_others_run_unless_the_user_chose(
    cores, loadavg, given, chosen, monkeypatch, tmp_path
):
    (tmp_path / "loadavg").write_text(loadavg)
    monkeypatch.setattr(waiting, "_RUNNING", tmp_path / "loadavg")
    monkeypatch.setattr(waiting.os, "cpu_count", lambda: cores)
    monkeypatch.setattr(waiting.os, "environ", given)
    waiting.choose_waiting()
    assert given == chosen


def test_a_busy_loop_beside_this_process_is_seen():
    with subprocess.Popen(
        [sys.executable, "-c", "print(flush=True)\nwhile True: pass"], stdout=subprocess.PIPE
    ) as busy:
        assert busy.stdout is not None
        busy.stdout.readline()
        found = waiting.running_others()
        busy.kill()
    assert found >= 1
