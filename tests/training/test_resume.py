"""A run that is killed, stopped or cut off is, in the end, the run that never was."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from saved_tensors import saved_tensors

from vlmo.training import read_metrics

SCRIPT = Path(__file__).parent / "toy_run.py"
STEPS, SAVE_EVERY = 36, 4
ARGUMENTS = [f"max_steps={STEPS}", "log_every=1", f"save_every={SAVE_EVERY}", "eval_every=6", "accumulation=2"]
PAUSE_S = 0.02  # in each forward: a step is then long enough to be hit
PATIENCE_S = 180.0  # a busy machine may take minutes to start Python


def start(run_dir: Path, *, waits: bool = True) -> subprocess.Popen[str]:
    """A process that runs to its end unless it is sent a signal; without `waits` its pauses take no time."""
    command = [sys.executable, str(SCRIPT), str(run_dir), *ARGUMENTS, f"pause_s={PAUSE_S}"]
    environment = os.environ | {"TOY_RUN_WAITS": str(int(waits))}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def finish(run_dir: Path, *, waits: bool = True) -> Path:
    """Runs to the end in a process of its own, as what other tests leave in this one may change how sums round."""
    output, errors = start(run_dir, waits=waits).communicate(timeout=PATIENCE_S)
    assert output == f"finished {STEPS}\n", errors
    return run_dir


def send_after(run_dir: Path, process: subprocess.Popen[str], *, step: int, number: int) -> None:
    """Sends a signal while the step after `step` is trained, at a moment that is left to chance."""
    deadline = time.monotonic() + PATIENCE_S
    while not any(line["step"] >= step for line in read_metrics(run_dir)):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.005)
    time.sleep(random.SystemRandom().uniform(0, 2 * PAUSE_S))
    process.send_signal(number)


def curve(run_dir: Path) -> list[dict[str, Any]]:
    """Losses, learning rates, gradient norms and sample ids of each step, and evaluations."""
    timing = {"seconds", "samples_per_s"}
    return [{name: value for name, value in line.items() if name not in timing} for line in read_metrics(run_dir)]


def is_equal(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b) and a.dtype == b.dtype
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(is_equal(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(is_equal, a, b))
    return a == b


def assert_same_run(run_dir: Path, expected: Path) -> None:
    assert curve(run_dir) == curve(expected)
    assert is_equal(*(saved_tensors(folder / "state" / f"step_{STEPS:08d}") for folder in (run_dir, expected)))
    assert is_equal(*(torch.load(folder / "model" / "model.pt", weights_only=True) for folder in (run_dir, expected)))


@pytest.mark.slow
def test_run_killed_at_a_random_step_is_bit_equal_to_one_that_was_not(tmp_path) -> None:
    run_dir, step = tmp_path / "killed", random.SystemRandom().randrange(SAVE_EVERY + 1, STEPS // 2)
    process = start(run_dir)
    send_after(run_dir, process, step=step, number=signal.SIGKILL)
    process.communicate(timeout=PATIENCE_S)
    assert process.returncode == -signal.SIGKILL, f"meant to be killed after step {step}"
    assert not (run_dir / "model").exists()
    assert_same_run(finish(run_dir), finish(tmp_path / "whole", waits=False))


@pytest.mark.slow
def test_sigterm_finishes_the_step_saves_and_exits_with_0(tmp_path) -> None:
    run_dir = tmp_path / "stopped"
    process = start(run_dir)
    send_after(run_dir, process, step=5, number=signal.SIGTERM)
    output, errors = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, errors
    status, steps = output.split()
    assert status == "stopped"
    assert 5 < int(steps) < STEPS
    assert (run_dir / "state" / f"step_{int(steps):08d}").exists()
    assert_same_run(finish(run_dir), finish(tmp_path / "whole", waits=False))
