"""What ends a run although nobody gave a wrong option."""

from __future__ import annotations

import errno

NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
READ_ONLY = {errno.EROFS, errno.EACCES, errno.EPERM}


class TrainingError(RuntimeError):
    """A run that cannot go on; the message says where it stands and what to do."""


def advise_on_saving(error: Exception) -> str:
    """What to do about a training state that could not be written."""
    number = error.errno if isinstance(error, OSError) else None
    if number in NO_ROOM or isinstance(error, RuntimeError):  # PyTorch hides the system's reason
        return "If the disk is full, free space there"
    if number in READ_ONLY:
        return "Give this user the right to write there"
    return "Remove what hinders it"
