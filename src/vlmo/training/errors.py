"""What ends a run although nobody gave a wrong option."""

from __future__ import annotations

import errno
import re
from pathlib import Path

_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_READ_ONLY = {errno.EROFS, errno.EACCES, errno.EPERM}


class TrainingError(RuntimeError):
    """A run that cannot go on; the message says where it stands and what to do."""


def describe_fault(error: OSError | EOFError | RuntimeError, *, run_dir: Path) -> str | None:
    """What the machine did to a run and what to do about it, in one phrase; None for errors of another kind."""
    if worker := re.search(
        r"DataLoader worker \(pid.*\) (?:is )?(killed by signal: \w+|exited unexpectedly)", str(error)
    ):
        return (
            f"a worker that prepares batches is gone ({worker[1]}), most often because memory ran out: give the machine"
            " more, or lower loader.num_workers in a new run"
        )
    if not isinstance(error, OSError):
        return None
    if error.errno in _NO_ROOM:
        return f"no room to write in {run_dir} ({error}); free space there"
    if error.errno in _READ_ONLY:
        return f"{error.filename or run_dir} may not be written or read ({error}); give this user the right to"
    return f"the system reports: {error}"


def advise_on_saving(error: Exception) -> str:
    """What to do about a training state that could not be written."""
    number = error.errno if isinstance(error, OSError) else None
    if number in _NO_ROOM or isinstance(error, RuntimeError):  # PyTorch hides the system's reason
        return "If the disk is full, free space there"
    if number in _READ_ONLY:
        return "Give this user the right to write there"
    return "Remove what hinders it"
