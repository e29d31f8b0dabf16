"""Rates of programs that are timed by turns."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

Call = Callable[[], Any]
# Threads of the program whose turn is over spin for a while.
PAUSE = 0.1


def rate(call: Call, *, rows: int, seconds: float) -> float:
    """Rows a second of a call, over at least `seconds` after one call to warm up."""
    call()
    start, done, elapsed = time.perf_counter(), 0, 0.0
    while elapsed < seconds or not done:
        call()
        done += rows
        elapsed = time.perf_counter() - start
    return done / elapsed


def rates_by_turns(calls: Mapping[str, Call], *, rows: int, turns: int, seconds: float) -> dict[str, list[float]]:
    """Rows a second of each program in each turn; in each turn another one is first."""
    rates: dict[str, list[float]] = {name: [] for name in calls}
    names = list(calls)
    for turn in range(turns):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            time.sleep(PAUSE)
            rates[name].append(rate(calls[name], rows=rows, seconds=seconds))
    return rates


def matmul_flops(dtype: torch.dtype, *, device: str = "cpu", size: int = 2048, seconds: float = 1.0) -> float:
    """Floating-point operations a second of a large square matrix product: what the machine gives at best."""
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))

    def call() -> None:
        torch.mm(left, right)
        if device != "cpu":
            torch.cuda.synchronize()

    return rate(call, rows=2 * size**3, seconds=seconds)


def layer_flops(*, tokens: int, width: int, outputs: int | None = None) -> int:
    """Multiplications and additions of a Transformer layer with an FFN of four times its width.

    Args:
        tokens: Sequence length.
        width: Hidden size.
        outputs: How many tokens are computed, where the others only serve as keys and values.
    """
    outputs = tokens if outputs is None else outputs
    projections = 2 * width**2 * (2 * tokens + 10 * outputs)  # keys, values; queries, output, FFN
    return projections + 4 * outputs * tokens * width
