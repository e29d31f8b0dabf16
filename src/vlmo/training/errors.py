"""Faults of the machine as one line that says where the run stands and what to do."""

from __future__ import annotations

import contextlib
import re
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import torch.distributed as dist

from vlmo.distributed import rank
from vlmo.training.parallel import uninterrupted

_WORKER = re.compile(
    r"DataLoader worker \(pid.*\) (?:is )?(killed by signal: \w+|exited unexpectedly)"
)
_LOST = ("gloo", "Connection closed by peer", "Connection reset by peer", "NCCL")


class TrainingError(RuntimeError):
    """A run that cannot go on; the message says where it stands and what to do."""


@contextlib.contextmanager
def explained_faults(
    where: Callable[[], str], *, run_dir: Path | None, last_saved: Callable[..., str]
) -> Iterator[None]:
    """Turn faults of the machine into TrainingError; other errors pass.

    Args:
        where: Names the run and its step.
        run_dir: Of the run, for files that the system refuses; None lets these errors pass.
        last_saved: Says what the same command goes on from; `finish` waits for a state that is being written.
    """
    try:
        yield
    except (TrainingError, BrokenPipeError):
        raise
    except (OSError, EOFError, RuntimeError) as error:
        text = str(error)
        # Gloo and NCCL raise plain RuntimeErrors, whose words alone tell them apart.
        words = isinstance(error, RuntimeError) and any(word in text for word in _LOST)
        lost = words or isinstance(error, dist.DistError)
        with uninterrupted():
            # A state that is being written needs the processes that are gone.
            saved = last_saved(finish=not lost)
            fault = _fault(error, lost=lost, run_dir=run_dir)
            if fault is None:
                raise
            # What the stopped frames hold is dropped: a loader left alive raises again at the end of each worker.
            traceback.clear_frames(error.__traceback__)
        raise TrainingError(f"{where()}: {fault}; {saved}") from error


def _fault(error: Exception, *, lost: bool, run_dir: Path | None) -> str | None:
    """Return what has happened and what to do; None for an error that is no fault of the machine."""
    text = str(error)
    if lost:
        return (
            f"process {rank()} has lost another, which has ended, was killed or hangs; see its output "
            f"({' '.join(text.split())[:200]})"
        )
    if worker := _WORKER.search(text):
        return (
            f"a worker that prepares batches is gone ({worker[1]}), most often because memory ran out: give "
            "the machine more, or lower loader.num_workers"
        )
    if "shared memory" in text:
        return (
            "workers hand over batches in shared memory, and /dev/shm is full: give it more (docker run "
            "--shm-size), or set loader.num_workers to 0"
        )
    if isinstance(error, OSError) and run_dir is not None:
        return f"{error.filename or f'{run_dir}, or shared memory of workers'}: {error}"
    return None
