"""Processes and devices: everything that differs between one process and many."""

from __future__ import annotations

import contextlib
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

from vlmo.distributed import choose_device, gather_objects, keep_until_exit, rank
from vlmo.types import Batch


def to_device(batch: Batch, device: torch.device) -> Batch:
    """Return the batch on `device`; 8-bit images stay so, a fourth of what they will be."""
    tensors = cast(dict[str, Tensor], batch)
    return cast(Batch, {name: tensor.to(device, non_blocking=True) for name, tensor in tensors.items()})


@contextlib.contextmanager
def launch(device: str | None = None, *, timeout: timedelta = timedelta(hours=4)) -> Iterator[torch.device]:
    """Yield this process's device, inside a process group if torchrun started several processes.

    Without a launcher there is no group, and nothing to set up. A group that is already there is used and left open.

    Args:
        device: "cpu", "cuda" or "cuda:1"; None takes a GPU if there is one.
        timeout: Longest wait for another process; the main process evaluates and writes while the others wait. Where a
            `Watchdog` is to say who hangs, its `longest_wait`.
    """
    place = choose_device(device)
    if place.type == "cuda":
        torch.cuda.set_device(place)
    starts_group = int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized()
    if starts_group:
        dist.init_process_group("nccl" if place.type == "cuda" else "gloo", timeout=timeout)
    try:
        yield place
    finally:
        if starts_group:
            if place.type != "cuda":
                keep_until_exit(dist.group.WORLD)
            dist.destroy_process_group()


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
def undisturbed() -> Iterator[None]:
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
