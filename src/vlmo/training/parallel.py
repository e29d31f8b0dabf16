"""Processes and devices: everything that differs between one process and many."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
import threading
from collections.abc import Iterator
from datetime import timedelta
from types import FrameType
from typing import Any, Self, cast

import torch
import torch.distributed as dist
from torch import Tensor

from vlmo.distributed import choose_device, gather_objects, keep_until_exit, rank, world_size
from vlmo.types import Batch

HANG_SECONDS = 1800.0
"""Long enough for a first step that compiles and for slow storage; a hang of this length wastes little of days."""
_SLOW_FACTOR = 4
# Process groups are asked to wait no longer.
_MAX_WAIT_S = 30 * 86_400.0
_hang_seconds: float | None = None  # of the timer of this process; None: it has none


def to_device(batch: Batch, device: torch.device) -> Batch:
    """Return the batch on `device`, but for single numbers, which the host reads.

    8-bit images stay so, a fourth of what they will be.
    """
    tensors = cast(dict[str, Tensor], batch)
    moved = {
        name: tensor.to(device, non_blocking=True) if tensor.ndim else tensor
        for name, tensor in tensors.items()
    }
    return cast(Batch, moved)


@contextlib.contextmanager
def launch(
    device: str | None = None, *, hang_seconds: float = HANG_SECONDS
) -> Iterator[torch.device]:
    """Yield this process's device, inside a process group if torchrun started several processes.

    Without a launcher there is no group, and nothing to set up. A group that is already there is used and left open. A
    process of a group that does not call `report_progress` in time writes the stacks of its threads to stderr and exits
    with 1, and so do those that wait for it.

    Args:
        device: "cpu", "cuda" or "cuda:1"; None takes a GPU if there is one.
        hang_seconds: Longest time without progress in a step.

    Raises:
        ValueError: There is no such device, or `hang_seconds` is no number above 0.
    """
    global _hang_seconds  # noqa: PLW0603 (the timer is the process's own, too)
    if not hang_seconds > 0:
        raise ValueError(f"hang_seconds is {hang_seconds}; give a number of seconds above 0")
    found = choose_device(device)
    if found.type == "cuda":
        torch.cuda.set_device(found)
    starts_group = int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized()
    if starts_group:
        # Gloo for CPUs alone: it copies GPU tensors through memory.
        backend = "nccl" if found.type == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=longest_wait(hang_seconds))
    try:
        if world_size() > 1:
            # A single process waits for no other, so it cannot wait in vain.
            _hang_seconds = hang_seconds
            report_progress(slow=True)
        yield found
    finally:
        _hang_seconds = None
        faulthandler.cancel_dump_traceback_later()
        if starts_group:
            if found.type != "cuda":
                keep_until_exit(dist.group.WORLD)
            dist.destroy_process_group()


def report_progress(*, slow: bool = False) -> None:
    """Start the timer of `launch` anew; `slow` for what may take four times as long as a step, such as a save."""
    if _hang_seconds is not None:
        seconds = min(_hang_seconds * (_SLOW_FACTOR if slow else 1), _MAX_WAIT_S)
        # In a thread of C: it fires also while a collective holds the interpreter.
        faulthandler.dump_traceback_later(seconds, exit=True, file=2)


def longest_wait(hang_seconds: float | None = None) -> timedelta:
    """Return the timeout of collectives: long enough that the timer of a process that hangs ends it first."""
    return timedelta(
        seconds=min(2 * _SLOW_FACTOR * (hang_seconds or _hang_seconds or HANG_SECONDS), _MAX_WAIT_S)
    )


def from_main(value: Any) -> Any:
    """Return the main process's `value`, on every process."""
    return gather_objects(value if rank() == 0 else None)[0]


class StopSignal:
    """Context that notes a first SIGTERM or SIGINT instead of obeying it; the next one has its usual effect.

    Signals reach the main thread only; in another thread this notes nothing.
    """

    def __init__(self) -> None:
        self.requested = False
        self._usual: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            # SIGTERM is a scheduler's, SIGINT Ctrl-C.
            for number in (signal.SIGTERM, signal.SIGINT):
                self._usual[number] = signal.signal(number, self._note) or signal.SIG_DFL
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._usual.items():
            signal.signal(number, handler)

    def _note(self, _number: int, _frame: FrameType | None) -> None:
        # No logging here: the signal may have come in the middle of a write to the same stream.
        self.requested = True
        self.__exit__()


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Context for last messages: it ends even if a launcher asks for an end, or a loader's worker ends meanwhile."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    # PyTorch's own handler raises, wherever the main thread is, when a worker has died.
    usual = signal.signal(signal.SIGCHLD, signal.SIG_DFL) or signal.SIG_DFL
    try:
        with StopSignal():
            yield
    finally:
        signal.signal(signal.SIGCHLD, usual)
