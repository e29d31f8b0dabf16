"""Waiting for the moment to end a process."""

import time
from collections.abc import Callable


def wait_until(
    condition: Callable[[], bool], *, within_s: float, meanwhile: Callable[[], bool] = lambda: True
) -> None:
    """Returns once the condition holds; fails after `within_s` seconds, or when `meanwhile` does not hold before."""
    deadline = time.monotonic() + within_s
    while not condition():
        assert meanwhile()
        assert time.monotonic() < deadline
        time.sleep(0.01)
