"""Ends a process as the system does: without a word."""

import os
import signal
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess


def kill_when(process: BaseProcess, ready: Callable[[], bool], *, within_s: float) -> None:
    """Starts the process, and kills it as soon as `ready()`; it must live until then."""
    process.start()
    deadline = time.monotonic() + within_s
    while not ready():
        assert process.is_alive()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert process.exitcode == -signal.SIGKILL
