"""Choice of how threads of OpenMP wait for each other, made before PyTorch is imported, which reads it then."""

from __future__ import annotations

import os
import time
from pathlib import Path

_CHOICES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
# Its fourth field is RUNNING/ALL, of threads (proc(5)).
_RUNNING = Path("/proc/loadavg")
# Busy at each of four looks, 5 ms apart: a single look may meet a short burst.
_SAMPLES = 4
_PAUSE_S = 0.005
_BUSY_SHARE = 0.25
# Rounds before a waiting thread sleeps. On an idle machine within 2 % of GNU OpenMP's own 300,000,
# and faster than that beside other programs that start later (experiments/log.md).
_SPINS = "20000"


def choose_waiting() -> None:
    """Let threads sleep at barriers if other programs keep a quarter of the cores busy, and else spin for a moment.

    A spinning thread takes the core that the thread it waits for would need. What the environment sets already stays.
    """
    if any(name in os.environ for name in _CHOICES):
        return
    if running_others() >= _BUSY_SHARE * (os.cpu_count() or 1):
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    else:
        os.environ["GOMP_SPINCOUNT"] = _SPINS


def running_others() -> int:
    """Return how many other threads of this machine run or wait for a core throughout 15 ms; 0 if that is unknown."""
    counts = []
    for sample in range(_SAMPLES):
        if sample:
            time.sleep(_PAUSE_S)
        try:
            # Without this thread, which runs too.
            counts.append(
                int(_RUNNING.read_text(encoding="ascii").split()[3].partition("/")[0]) - 1
            )
        except (OSError, ValueError, IndexError):
            return 0
    return max(0, min(counts))
