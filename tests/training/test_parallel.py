import itertools
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.forkserver import finish, run_processes, start_group
from tests.killing import wait_until
from tests.training.toy_run import Settings, curve, is_same, make_trainer

from vlmo.distributed import barrier, rank
from vlmo.training import TrainerConfig, TrainingResult
from vlmo.training.checkpoint import StateStore
from vlmo.training.parallel import StopSignal, launch
from vlmo.training.trainer import forward_seed

# Sums over rows are taken in another order; float32 keeps about 7 digits, and AdamW's first steps amplify differences.
TOLERANCE = 1e-6


SHORT = TrainerConfig(max_steps=3, log_every=1, save_every=2, clip_norm=1.0)
LONG = TrainerConfig(max_steps=6, log_every=1, save_every=4)
PARTLY_USED = Settings(dropout=0.0, accumulation=2, bonus_in_first_micro_batch=True)
BAD_ON_ONE = Settings(bad_from=1, bad_to=2, bad_rank=1)


def train(
    folder: Path, *, settings: Settings, config: TrainerConfig, stop_after: int | None = None
) -> TrainingResult:
    """Trains in `folder`, which all processes share."""
    updates = 0

    def after_step() -> None:
        nonlocal updates
        updates += 1
        if updates == stop_after and rank() == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    trainer = make_trainer(folder, settings=settings, config=config, after_step=after_step)
    result = trainer.fit()
    torch.save(dict(trainer.objective.named_parameters()), folder / f"rank{rank()}.pt")
    barrier()
    return result


def two_processes(folder: Path) -> None:
    train(folder / "partly_used", settings=PARTLY_USED, config=SHORT)
    result = train(folder / "bad_on_one", settings=BAD_ON_ONE, config=SHORT)
    assert result.skipped == 1
    train(folder / "whole", settings=Settings(), config=LONG)
    result = train(folder / "stopped", settings=Settings(), config=LONG, stop_after=2)
    assert (result.status, result.steps) == (
        "stopped",
        3,
    )  # the signal came after the flags of step 2 were exchanged
    result = train(folder / "stopped", settings=Settings(), config=LONG)
    assert (result.status, result.steps) == ("finished", 6)


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """Run folders that two processes have left."""
    folder = tmp_path_factory.mktemp("runs")
    run_processes(two_processes, folder)
    return folder


def weights(path: Path) -> dict[str, torch.Tensor]:
    """Parameters that a process of a run had in the end."""
    return torch.load(path, weights_only=True)


def test_two_processes_train_as_one_with_the_joined_batch(runs, tmp_path) -> None:
    # One process with the same four micro-batches; only the first of them uses `bonus`, which is trained on all.
    trainer = make_trainer(tmp_path, settings=replace(PARTLY_USED, accumulation=4), config=SHORT)
    trainer.fit()
    expected = dict(trainer.objective.named_parameters())
    torch.testing.assert_close(
        weights(runs / "partly_used" / "rank1.pt"), expected, rtol=0, atol=TOLERANCE
    )
    for line, other in zip(curve(runs / "partly_used"), curve(tmp_path), strict=True):
        for name in other.keys() - {"sample_ids_digest"}:  # of rows in another order
            assert line[name] == pytest.approx(other[name], abs=1e-5)


def test_bad_loss_on_one_process_skips_the_update_on_all(runs) -> None:
    (line,) = [line for line in curve(runs / "bad_on_one") if "skipped" in line]
    assert (line["step"], line["sample_ids"]) == (2, list(range(8, 16)))
    assert weights(runs / "bad_on_one" / "rank0.pt")["bonus"].isfinite().all()


def test_signal_to_one_process_stops_all_and_the_run_resumes_exactly(runs) -> None:
    assert curve(runs / "stopped") == curve(runs / "whole")
    for number in range(2):
        assert is_same(
            *(weights(runs / name / f"rank{number}.pt") for name in ("stopped", "whole"))
        )


def test_processes_hold_the_same_weights(runs) -> None:
    for name in ("partly_used", "bad_on_one", "whole"):
        first, second = (weights(runs / name / f"rank{number}.pt") for number in range(2))
        assert is_same(first, second)


def group_that_ends(folder: Path) -> None:
    def threads() -> int:
        return sum(
            "gloo" in task.joinpath("comm").read_text()
            for task in Path("/proc/self/task").iterdir()
        )

    with launch("cpu"):
        store = StateStore(folder / "state", keep=1)
        barrier()
        (folder / f"rank{rank()}").touch()
        wait_until(
            lambda: threads() == 6, within_s=60
        )  # three for each of two groups; each names itself as it starts
    del store
    assert not torch.distributed.is_initialized()
    assert threads() == 6


@pytest.mark.skipif(sys.platform != "linux", reason="threads are counted as Linux lists them")
def test_the_end_of_a_group_waits_for_no_thread(tmp_path) -> None:
    """Where it does, with the interpreter's lock held, a run hangs at its end; a group whose threads live has not."""
    finish(start_group(group_that_ends, tmp_path))
    assert sorted(file.name for file in tmp_path.glob("rank*")) == ["rank0", "rank1"]


def test_second_interrupt_aborts() -> None:
    # A shell that starts the tests in the background makes them ignore interrupts.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with StopSignal() as stop:
            os.kill(os.getpid(), signal.SIGINT)
            assert stop.requested
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


def test_seeds_differ_between_steps_micro_batches_processes_and_runs() -> None:
    draws = itertools.product(range(3), range(20), range(4), range(4))
    seeds = {
        forward_seed(seed, step=step, micro=micro, rank=number)
        for seed, step, micro, number in draws
    }
    assert len(seeds) == 3 * 20 * 4 * 4
    assert all(0 <= seed < 2**63 for seed in seeds)
    # Pinned: another hash would change what every run draws.
    assert forward_seed(0, step=0, micro=0, rank=0) == 3434107503531660146
