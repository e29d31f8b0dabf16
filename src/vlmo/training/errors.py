"""Faults of the machine as one line that says where the run stands and what to do."""

from __future__ import annotations

import contextlib
import errno
import re
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import torch.distributed as dist

from vlmo.distributed import rank
from vlmo.training.parallel import uninterrupted

_ADVICE = dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), "free space there") | dict.fromkeys(
    (errno.EROFS, errno.EACCES, errno.EPERM), "give this user the right to write there"
)
_WORKER = re.compile(r"DataLoader worker \(pid.*\) (?:is )?(killed by signal: \w+|exited unexpectedly)")


class TrainingError(RuntimeError):
    """A run that cannot go on; the message says where it stands and what to do."""


def advise_on_saving(error: Exception) -> str:
    """Return what to do about a training state that could not be written."""
    if isinstance(error, RuntimeError):  # PyTorch hides the system's reason
        return "if the disk is full, free space there"
    return _ADVICE.get(getattr(error, "errno", None) or 0, "remove what hinders it")


def is_lost_contact(error: BaseException) -> bool:
    """Return True if an error means that another process could not be reached."""
    words = ("gloo", "Connection closed by peer", "Connection reset by peer", "NCCL")
    named = isinstance(error, RuntimeError) and any(word in str(error) for word in words)
    return isinstance(error, dist.DistError) or named


def describe_fault(error: OSError | EOFError | RuntimeError, *, run_dir: Path | None) -> str | None:
    """Return what the machine did to a run and what to do about it, in one phrase; None for errors of another kind."""
    if is_lost_contact(error):
        reason = " ".join(str(error).split())[:200]
        return f"process {rank()} has lost another, which has ended, was killed or hangs; see its output ({reason})"
    if worker := _WORKER.search(str(error)):
        return (
            f"a worker that prepares batches is gone ({worker[1]}), most often because memory ran out: give the machine"
            " more, or lower loader.num_workers"
        )
    if not isinstance(error, OSError) or run_dir is None:
        return None
    advice = _ADVICE.get(error.errno or 0)
    return f"{error.filename or run_dir}: {error}" + (f"; {advice}" if advice else "")


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
        with uninterrupted():
            fault, saved = describe_fault(error, run_dir=run_dir), last_saved(finish=not is_lost_contact(error))
            if fault is None:
                raise
            # What the stopped frames hold is dropped: a loader left alive raises again at the end of each worker.
            traceback.clear_frames(error.__traceback__)
        raise TrainingError(f"{where()}: {fault}; {saved}") from error
