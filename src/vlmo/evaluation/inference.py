"""Run a model over the rows of an evaluation, shared among the processes."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import torch

from vlmo import distributed

BATCH = 256
"""Images, texts or pairs that go through a model at a time."""
Report = Callable[[str, int, int], None]
"""Called with the kind of work, how much of this process's share is done, and its total."""


@contextmanager
def evaluating(model: Any) -> Generator[None]:
    """Evaluation mode of a module, without gradients; afterwards every part has its own mode again, frozen ones too."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def own_batches(total: int, *, batch: int) -> list[range]:
    """Return the batches of rows that this process works on.

    The batches are the same for any number of processes, so each row has the same neighbours and, to the last bit, the
    same result.
    """
    batches = [range(start, min(start + batch, total)) for start in range(0, total, batch)]
    rank = distributed.rank()
    world_size = distributed.world_size()
    return batches[len(batches) * rank // world_size : len(batches) * (rank + 1) // world_size]


def map_batches(
    run: Callable[[range], Any],
    total: int,
    *,
    model: Any,
    batch: int = BATCH,
    title: str = "rows",
    report: Report | None = None,
) -> list[Any]:
    """Return `run` of each batch of row numbers, in order; ValueError without rows.

    Each process runs its share and returns the results of all, so results must be ready for pickle (tensors on the
    CPU). The model is put in evaluation mode and back again; `report` is called after each batch.
    """
    if not total:
        raise ValueError("there are no rows: nothing can be predicted")
    batches = own_batches(total, batch=batch)
    results = []
    done = 0
    with evaluating(model):
        for rows in batches:
            results.append(run(rows))
            done += len(rows)
            if report is not None:
                report(title, done, sum(map(len, batches)))
    return [result for part in distributed.gather_objects(results) for result in part]
