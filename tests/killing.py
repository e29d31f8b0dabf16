"""Ends a process as the system does: without a word."""

import os
import signal
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess


def kill_when(process: BaseProcess, ready: Callable[[], bool], *, within_s: float) -> None:
    """Starts the process, and kills it as soon as `ready()`; it must live until then."""
    process.start()
    wait_until(ready, within_s=within_s, meanwhile=process.is_alive)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert process.exitcode == -signal.SIGKILL


def wait_until(condition: Callable[[], bool], *, within_s: float, meanwhile: Callable[[], bool] = lambda: True) -> None:
    """Returns once the condition holds; fails after `within_s` seconds, or when `meanwhile` does not hold before."""
    deadline = time.monotonic() + within_s
    while not condition():
        assert meanwhile()
        assert time.monotonic() < deadline
        time.sleep(0.01)
