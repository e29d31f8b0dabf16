"""Faults of the machine: killed and hanging processes, disks that take nothing more. Real processes and files."""

import itertools
import os
import re
import resource
import signal
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests import forkserver
from tests.forkserver import PATIENCE_S
from tests.killing import wait_until
from tests.training import toy_group, toy_run
from tests.training.toy_group import Group, Pause
from tests.training.toy_run import Settings, curve, is_same, make_trainer, saved_tensors

from vlmo.cli.runs import TrainOptions
from vlmo.training import (
    TrainerConfig,
    TrainingError,
    explained_faults,
    launch,
    lock_run,
    report_progress,
)
from vlmo.training.checkpoint import newest_state
from vlmo.training.parallel import HANG_SECONDS, longest_wait
from vlmo.types import Batch

STEPS = 10
CONFIG = TrainerConfig(max_steps=STEPS, log_every=1, save_every=2, eval_every=5)
SOON_S = 120.0  # the survivors' time to end on a busy machine; a collective that waits would take four hours
HANG_S = 3.0


@pytest.fixture(scope="module")
def start() -> Iterator[Any]:
    groups: list[Group] = []

    def start_group(folder: Path, **arguments: Any) -> Group:
        groups.append(toy_group.start(folder, config=CONFIG, **arguments))
        return groups[-1]

    yield start_group
    for group in groups:
        group.end()


@pytest.fixture(scope="module")
def alone(start, tmp_path_factory) -> Path:
    """The folder of a run of one process that nothing disturbs."""
    folder = tmp_path_factory.mktemp("alone")
    assert start(folder, world_size=1).codes(within_s=SOON_S) == [0]
    return folder


def model(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "run" / "model" / "model.safetensors")


def reported(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("vlmo: ")]


@pytest.mark.slow
def test_either_process_killed_in_a_step_or_a_save_leaves_a_run_that_ends_with_the_same_bits(
    start, tmp_path
) -> None:
    folder = tmp_path / "killed"
    for victim, pause in (
        (0, Pause(rank=0, moment="forward", step=3)),
        (1, Pause(rank=None, moment="save", step=4)),
        (0, Pause(rank=None, moment="save", step=6)),
        (1, Pause(rank=1, moment="forward", step=8)),
    ):
        group = start(folder, pause=pause)
        group.wait_for_pause()
        group.processes[victim].send_signal(signal.SIGKILL)
        group.go_on()
        codes = group.codes(within_s=SOON_S)
        assert codes[victim] == -signal.SIGKILL
        assert codes[1 - victim] == 1, group.output(1 - victim)
        (line,) = reported(group.output(1 - victim))
        assert f"process {1 - victim} has lost another, which has ended, was killed" in line
        assert "the same command goes on" in line
        assert "Traceback" not in group.output(1 - victim)
        assert not (folder / "run" / "model").exists()
    group = start(folder)
    assert group.codes(within_s=SOON_S) == [0, 0], group.output(0)
    assert start(tmp_path / "whole").codes(within_s=SOON_S) == [0, 0]
    assert curve(folder / "run") == curve(tmp_path / "whole" / "run")
    assert is_same(model(folder), model(tmp_path / "whole"))


def test_sigterm_finishes_the_step_saves_and_exits_with_0(start, alone, tmp_path) -> None:
    folder = tmp_path / "stopped"
    group = start(folder, world_size=1, pause=Pause(rank=0, moment="forward", step=5))
    group.wait_for_pause()
    group.processes[0].send_signal(signal.SIGTERM)
    group.go_on()
    assert group.codes(within_s=SOON_S) == [0], group.output(0)
    assert newest_state(folder / "run" / "state")[1]["step"] == 5
    assert start(folder, world_size=1).codes(within_s=SOON_S) == [0]
    assert curve(folder / "run") == curve(alone / "run")
    assert is_same(model(folder), model(alone))
    states = (
        saved_tensors(each / "run" / "state" / f"step_{STEPS:08d}") for each in (folder, alone)
    )
    assert is_same(*states)


# Pauses of groups that hang at the same time, each of which needs seconds to be noticed and no processor.
HANGS = {
    "stopped": Pause(rank=1, moment="forward", step=3),
    "stopped at the start": Pause(rank=0, moment="start"),
    "no batch": Pause(rank=1, moment="batch", step=3),
    "evaluation": Pause(rank=0, moment="evaluation", step=5),
    "long evaluation": Pause(rank=0, moment="evaluation", step=5),
    "long save": Pause(rank=None, moment="save", step=4),
}


@pytest.fixture(scope="module")
def hangs(start, tmp_path_factory) -> dict[str, Group]:
    """Groups that pause, after the time that a hang in a step takes to be noticed; two of them have gone on."""
    groups = {}
    for name, pause in HANGS.items():
        group = start(tmp_path_factory.mktemp("hangs"), pause=pause, hang_seconds=HANG_S)
        groups[name] = group
        group.wait_for_pause()
        if "stopped" in name:
            group.processes[pause.rank].send_signal(signal.SIGSTOP)
    time.sleep(2 * HANG_S)
    for name in ("long evaluation", "long save"):
        groups[name].go_on()
    return groups


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "code", "stack"),
    [
        ("stopped", None, "in backward"),  # of the process that waits for the one that is stopped
        ("stopped at the start", None, "in gather_objects"),
        ("no batch", 1, "in _stop_here"),
        ("evaluation", 1, "in _stop_here"),
    ],
)
def test_hung_process_and_those_that_wait_for_it_end_with_their_stacks(
    hangs, name, code, stack
) -> None:
    group, rank = hangs[name], HANGS[name].rank
    seen = rank if code else 1 - rank
    group.processes[seen].join(SOON_S)
    group.processes[1 - rank].join(SOON_S)
    assert (group.processes[rank].exitcode, group.processes[1 - rank].exitcode) == (code, 1), (
        group.output(seen)
    )
    assert "Timeout (0:00:" in group.output(seen)
    assert stack in group.output(seen)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["long evaluation", "long save"])
def test_evaluation_and_save_may_take_longer_than_a_step(hangs, name) -> None:
    group = hangs[name]
    assert group.codes(within_s=SOON_S) == [0, 0], group.output(0) + group.output(1)
    assert "Timeout" not in group.output(0) + group.output(1)


def test_one_process_has_no_timer() -> None:
    with launch("cpu", hang_seconds=0.01):
        report_progress()
        time.sleep(0.05)
    with pytest.raises(ValueError, match="hang_seconds is 0; give"), launch("cpu", hang_seconds=0):
        pass
    assert longest_wait(60.0) == timedelta(minutes=8)
    assert longest_wait(1e300) == timedelta(days=30)
    assert TrainOptions(recipe=None, run_dir=Path()).hang_seconds == HANG_SECONDS


def fill_disk(group: Group) -> None:
    """The system refuses the process any file as large as the largest of the state before."""
    files = (group.folder / "run" / "state").rglob("*")
    size = max(path.stat().st_size for path in files if path.is_file()) - 1
    resource.prlimit(group.processes[0].pid, resource.RLIMIT_FSIZE, (size, size))


def close_folder(group: Group) -> None:
    (group.folder / "run" / "state").chmod(0o555)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "line"),
    [
        (
            fill_disk,
            r"step_00000004 could not be written by process 0 \(File too large\); the last saved",
        ),
        (close_folder, r"step_00000004 could not be written by process 0 \(Permission denied\)"),
    ],
    ids=["full disk", "read-only folder"],
)
def test_save_that_the_disk_refuses_costs_nothing_that_was_saved(
    start, alone, tmp_path, fault: Callable[[Group], None], line: str
) -> None:
    folder = tmp_path / "run that the disk refuses"
    group = start(
        folder, world_size=1, pause=Pause(rank=0, moment="forward", step=4), ordinary=True
    )
    group.wait_for_pause()
    wait_until(
        (folder / "run" / "state" / "step_00000002").exists, within_s=SOON_S
    )  # it is written in the background
    fault(group)
    group.go_on()
    assert group.codes(within_s=SOON_S) == [1], group.output(0)
    (said,) = reported(group.output(0))
    assert re.search(line, said), said
    assert f"the last saved state is {folder / 'run' / 'state' / 'step_00000002'}, " in said
    assert said.endswith("and the same command goes on")
    (folder / "run" / "state").chmod(0o755)
    assert [path.name for path in (folder / "run" / "state").iterdir()] == ["step_00000002"], (
        "no leftovers"
    )
    assert start(folder, world_size=1).codes(within_s=SOON_S) == [0]
    assert curve(folder / "run") == curve(alone / "run")
    assert is_same(model(folder), model(alone))


def test_data_that_end_a_run_cost_no_state_that_is_being_written(tmp_path) -> None:
    settings, load = Settings(), toy_run.make_loader(Settings())

    def fails_in_step_5(start_step: int) -> Iterator[list[Batch]]:
        yield from itertools.islice(load(start_step), 4 - start_step)
        raise ValueError("image 3 is gone: restore it.")

    trainer = make_trainer(tmp_path / "run", settings=settings, load=fails_in_step_5)
    wait, waited = trainer._states.wait, []
    trainer._states.wait = lambda: waited.append(trainer._states._writing is not None) or wait()
    with pytest.raises(
        ValueError, match="image 3 is gone: restore it; the last saved state is "
    ) as caught:
        trainer.fit()
    assert str(caught.value).endswith("step_00000004, and the same command goes on")
    assert waited[-1], "the state was still being written"
    assert make_trainer(tmp_path / "run", settings=settings).fit().status == "finished"


def test_other_process_or_shared_memory_that_is_lost_before_the_first_step_is_a_line(
    tmp_path,
) -> None:
    def start(words: str) -> None:
        with explained_faults(
            lambda: "base-stage3", run_dir=tmp_path, last_saved=lambda **_: "start again"
        ):
            raise RuntimeError(words)

    with pytest.raises(
        TrainingError, match=r"base-stage3: process 0 has lost another, .*554.*; start again"
    ):
        start("[gloo/transport/tcp/pair.cc:554] Connection closed by peer")
    with pytest.raises(RuntimeError, match="shapes"):
        start("shapes do not fit")
    with pytest.raises(
        TrainingError,
        match=r"base-stage3: .*/dev/shm is full: .*loader\.num_workers to 0; start again",
    ):
        start(
            "Caught RuntimeError in DataLoader worker process 0. unable to allocate shared memory(shm) for file <x>"
        )


@pytest.mark.slow
def test_killed_worker_ends_the_run_with_a_line_and_the_run_goes_on_later(start, tmp_path) -> None:
    folder = tmp_path / "killed"
    group = start(folder, world_size=1, kills_worker_in_step=5, num_workers=1)
    assert group.codes(within_s=SOON_S) == [1], group.output(0)
    (line,) = reported(group.output(0))
    seen = "killed by signal: Killed|exited unexpectedly"
    assert re.search(
        rf"a worker that prepares batches is gone \(({seen})\), most often because memory", line
    ), line
    assert "step_00000002" in line or "step_00000004" in line
    assert "Traceback" not in group.output(0)
    assert start(folder, world_size=1, num_workers=0).codes(within_s=SOON_S) == [
        0
    ]  # as the line advises
    assert start(tmp_path / "whole", world_size=1, num_workers=0).codes(within_s=SOON_S) == [0]
    assert curve(folder / "run") == curve(tmp_path / "whole" / "run")


def test_second_run_in_a_run_folder_is_refused_and_harms_nothing(tmp_path) -> None:
    make_trainer(tmp_path / "whole" / "run").fit()
    refused = []

    def start_again() -> None:
        with pytest.raises(
            ValueError, match="another process is training in this run folder; wait for it"
        ) as caught:
            make_trainer(tmp_path / "run").fit()
        refused.append(caught)

    assert make_trainer(tmp_path / "run", after_step=start_again).fit().status == "finished"
    assert len(refused) == 6
    assert curve(tmp_path / "run") == curve(tmp_path / "whole" / "run")


def hold_lock_beside_a_worker(run_dir: Path, pipe: str) -> None:
    with lock_run(run_dir):
        if os.fork() == 0:  # it lives until the test closes the pipe
            Path(pipe).read_bytes()
            os._exit(0)
        (run_dir / "held").touch()
        signal.pause()


def test_worker_that_outlives_a_killed_run_does_not_keep_its_lock(tmp_path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = os.open(pipe, os.O_RDWR)
    process = forkserver.start(hold_lock_beside_a_worker, tmp_path / "run", str(pipe))
    try:
        wait_until(
            (tmp_path / "run" / "held").exists, within_s=PATIENCE_S, meanwhile=process.is_alive
        )
        process.kill()
        process.join()
        with lock_run(tmp_path / "run"):
            pass
    finally:
        os.close(writer)
