"""A run that is stopped is, in the end, the run that never was; `attacks/training.py` kills runs."""

from __future__ import annotations

import random
import signal
import time
from pathlib import Path

import pytest
from attacks.training import is_equal
from safetensors.torch import load_file
from tests.forkserver import PATIENCE_S, Process, start
from tests.killing import wait_until
from tests.training import toy_run
from tests.training.saved_tensors import saved_tensors
from tests.training.toy_run import curve

from vlmo.training import read_metrics

STEPS, SAVE_EVERY = 36, 4
PAUSE_S = 0.02  # in each forward: a step is then long enough to be hit
CHANGES = {
    "max_steps": STEPS,
    "log_every": 1,
    "save_every": SAVE_EVERY,
    "eval_every": 6,
    "accumulation": 2,
    "pause_s": PAUSE_S,
}


def start_run(run_dir: Path, *, waits: bool = True) -> Process:
    """A process that runs to its end unless it is sent a signal; without `waits` its pauses take no time."""
    return start(toy_run.main, run_dir, env={"TOY_RUN_WAITS": str(int(waits))}, **CHANGES)


def finish(run_dir: Path, *, waits: bool = True) -> Path:
    """Runs to the end in a process of its own, as what other tests leave in this one may change how sums round."""
    process = start_run(run_dir, waits=waits)
    assert process.wait() == 0, process.stderr
    assert process.stdout == f"finished {STEPS}\n"
    return run_dir


def send_after(run_dir: Path, process: Process, *, step: int, number: int) -> None:
    """Sends a signal while the step after `step` is trained, at a moment that is left to chance."""
    wait_until(
        lambda: any(line["step"] >= step for line in read_metrics(run_dir)),
        within_s=PATIENCE_S,
        meanwhile=process.is_alive,
    )
    time.sleep(random.SystemRandom().uniform(0, 2 * PAUSE_S))
    process.send_signal(number)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    return finish(tmp_path_factory.mktemp("whole") / "run", waits=False)


def assert_same_run(run_dir: Path, expected: Path) -> None:
    assert curve(run_dir) == curve(expected)
    assert is_equal(*(saved_tensors(folder / "state" / f"step_{STEPS:08d}") for folder in (run_dir, expected)))
    assert is_equal(*(load_file(folder / "model" / "model.safetensors") for folder in (run_dir, expected)))


def test_sigterm_finishes_the_step_saves_and_exits_with_0(whole, tmp_path) -> None:
    run_dir = tmp_path / "stopped"
    process = start_run(run_dir)
    send_after(run_dir, process, step=5, number=signal.SIGTERM)
    assert process.wait() == 0, process.stderr
    status, steps = process.stdout.split()
    assert status == "stopped"
    assert 5 < int(steps) < STEPS
    assert (run_dir / "state" / f"step_{int(steps):08d}").exists()
    assert_same_run(finish(run_dir, waits=False), whole)
