"""Faults of the machine as one line that says where the run stands and what to do."""

from __future__ import annotations

import contextlib
import errno
import re
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

from vlmo.distributed import rank
from vlmo.training.parallel import undisturbed
from vlmo.training.watchdog import Watchdog, is_lost_contact

_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_NO_PERMISSION = {errno.EROFS, errno.EACCES, errno.EPERM}


class TrainingError(RuntimeError):
    """A run that cannot go on; the message says where it stands and what to do."""


def advise_on_saving(error: Exception) -> str:
    """Return what to do about a training state that could not be written."""
    number = getattr(error, "errno", None)
    if number in _NO_SPACE or isinstance(error, RuntimeError):  # PyTorch hides the system's reason
        return "If the disk is full, free space there"
    if number in _NO_PERMISSION:
        return "Give this user the right to write there"
    return "Remove what hinders it"


def describe_fault(error: OSError | EOFError | RuntimeError, *, run_dir: Path) -> str | None:
    """Return what the machine did to a run and what to do about it, in one phrase; None for errors of another kind."""
    pattern = r"DataLoader worker \(pid.*\) (?:is )?(killed by signal: \w+|exited unexpectedly)"
    if worker := re.search(pattern, str(error)):
        return (
            f"a worker that prepares batches is gone ({worker[1]}), most often because memory ran out: give the machine"
            " more, or lower loader.num_workers"
        )
    if not isinstance(error, OSError):
        return None
    if error.errno in _NO_SPACE:
        return f"no room to write in {run_dir} ({error}); free space there"
    if error.errno in _NO_PERMISSION:
        return f"{error.filename or run_dir} may not be written or read ({error}); give this user the right to"
    return f"the system reports: {error}"


@contextlib.contextmanager
def explained_faults(
    place: Callable[[], str], *, run_dir: Path, watchdog: Watchdog, last_saved: Callable[..., str]
) -> Iterator[None]:
    """Turn faults of the machine into TrainingError, which says at which `place` the run stands; other errors pass."""
    try:
        yield
    except (TrainingError, BrokenPipeError):
        raise
    except (OSError, EOFError, RuntimeError) as error:
        with undisturbed():
            lost = is_lost_contact(error)
            fault = _lost_contact(watchdog) if lost else describe_fault(error, run_dir=run_dir)
            saved = last_saved(finish=not lost)
            if fault is None:
                raise
            # What the stopped frames hold is dropped: a loader left alive raises again at the end of each worker.
            traceback.clear_frames(error.__traceback__)
        raise TrainingError(f"{place()}: {fault}; {saved}") from error


@contextlib.contextmanager
def explained_start(title: str, *, watchdog: Watchdog) -> Iterator[None]:
    """Turn the loss of another process, before the first step, into TrainingError."""
    try:
        yield
    except RuntimeError as error:
        with undisturbed():
            fault = _lost_contact(watchdog) if is_lost_contact(error) else None
        if fault is None:
            raise
        raise TrainingError(f"{title}: {fault} before the first step; the same command starts again") from error


def _lost_contact(watchdog: Watchdog) -> str | None:
    gone = ", ".join(map(str, watchdog.missing()))
    said = f"process {rank()} has lost process {gone}, which has ended or was killed (its own output may say why)"
    return said if gone else None
