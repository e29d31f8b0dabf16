"""What two processes do in tests/training/test_parallel.py: `torchrun ... toy_processes.py FOLDER`."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import torch
from toy_run import Settings, make_trainer

from vlmo.distributed import barrier, rank
from vlmo.training import Result, Trainer, TrainerConfig, launch

SHORT = TrainerConfig(max_steps=3, log_every=1, save_every=2, clip_norm=1.0)
LONG = TrainerConfig(max_steps=6, log_every=1, save_every=4)
EQUAL = Settings(dropout=0.0)
PARTLY_USED = Settings(dropout=0.0, accumulation=2, bonus_in_first_micro_batch=True)
BAD_ON_ONE = Settings(bad_from=1, bad_to=2, bad_rank=1)


def run(folder: Path, *, settings: Settings, config: TrainerConfig, stop_after: int | None = None) -> Result:
    """Trains in `folder`, which all processes share."""
    updates = 0

    def after_step() -> None:
        nonlocal updates
        updates += 1
        if updates == stop_after and rank() == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    trainer = make_trainer(folder, settings=settings, config=config, after_step=after_step)
    result = trainer.fit()
    keep_weights(trainer, folder)
    return result


def keep_weights(trainer: Trainer, folder: Path) -> None:
    torch.save(trainer.objective.state_dict(), folder / f"rank{rank()}.pt")
    barrier()


def main(folder: Path) -> None:
    run(folder / "equal", settings=EQUAL, config=SHORT)
    run(folder / "partly_used", settings=PARTLY_USED, config=SHORT)
    result = run(folder / "bad_on_one", settings=BAD_ON_ONE, config=SHORT)
    assert result.skipped == 1
    run(folder / "whole", settings=Settings(), config=LONG)
    result = run(folder / "stopped", settings=Settings(), config=LONG, stop_after=2)
    assert (result.status, result.steps) == ("stopped", 3)  # the signal came after the flags of step 2 were exchanged
    result = run(folder / "stopped", settings=Settings(), config=LONG)
    assert (result.status, result.steps) == ("finished", 6)


if __name__ == "__main__":
    torch.set_num_threads(1)
    with launch("cpu"):
        main(Path(sys.argv[1]))
