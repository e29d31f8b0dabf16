"""Run a model over the rows of an evaluation, shared among the processes."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from itertools import chain
from typing import TypeVar

import torch
from torch import nn

from vlmo import distributed

BATCH = 256
"""Images, texts or pairs that go through a model at a time."""
Report = Callable[[str, int, int], None]
"""Called with the kind of work, how much of this process's share is done, and its total."""
Result = TypeVar("Result")


@contextmanager
def evaluating(model: nn.Module) -> Generator[None]:
    """Set evaluation mode without gradients, and afterwards the previous mode of all modules."""
    # By module, as frozen parts of a model in training may be in evaluation mode.
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        for module, training in modes.items():
            module.training = training


def local_batches(total: int, *, batch: int) -> list[range]:
    """Return the batches of rows that this process works on.

    The batches are the same for any number of processes, so a row always has the same neighbors
    and, to the last bit, the same result.
    """
    # Of the global rows: shares are cut between batches, never within one.
    batches = [range(total)[start : start + batch] for start in range(0, total, batch)]
    world_size = distributed.world_size()
    first = len(batches) * distributed.rank() // world_size
    end = len(batches) * (distributed.rank() + 1) // world_size
    return batches[first:end]


def map_batches(
    run: Callable[[range], Result],
    total: int,
    *,
    model: nn.Module,
    batch: int = BATCH,
    title: str = "rows",
    report: Report | None = None,
) -> list[Result]:
    """Return `run` of all batches of row numbers, in order; ValueError without rows.

    A process runs its share and returns the results of all, so results must be ready for pickle
    (tensors on the CPU). The model is put in evaluation mode and back again; `report` is called
    after every batch.
    """
    if not total:
        raise ValueError("there are no rows: nothing can be predicted")
    batches = local_batches(total, batch=batch)
    results = []
    with evaluating(model):
        for rows in batches:
            results.append(run(rows))
            if report is not None:
                first = batches[0].start
                report(title, rows.stop - first, batches[-1].stop - first)
    return list(chain.from_iterable(distributed.gather_objects(results)))
