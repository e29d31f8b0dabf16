"""Which samples make up which step: pure functions of (seed, step), so the step number is the only state.

A data set is read in an endless row of epochs, all in orders of their own. A global batch is a window of that row, so
no sample is lost or repeated within an epoch; a batch may hold the end of one epoch and the start of the next.
Processes and accumulation only cut the window into pieces.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from hashlib import blake2b

import numpy as np
from jaxtyping import Int64

Key = tuple[int, int]
"""(epoch, row number in the data set)."""


@lru_cache(maxsize=4)
def order(num_samples: int, *, seed: int, epoch: int) -> Int64[np.ndarray, "sample"]:
    """Return the permutation of row numbers that `epoch` reads, read-only."""
    # PCG64 by name: `default_rng` may become another generator in a later NumPy.
    generator = np.random.Generator(np.random.PCG64(_hash("order", seed, epoch)))
    permutation = generator.permutation(num_samples)
    # The cache hands the same array to all callers.
    permutation.setflags(write=False)
    return permutation


def global_batch(step: int, *, num_samples: int, batch_size: int, seed: int) -> list[Key]:
    """Return the (epoch, row) keys of a step over all processes."""
    keys: list[Key] = []
    position = step * batch_size
    while len(keys) < batch_size:
        # A batch that is larger than the data set goes through several epochs.
        epoch, first = divmod(position + len(keys), num_samples)
        rows = order(num_samples, seed=seed, epoch=epoch)[first : first + batch_size - len(keys)]
        keys += [(epoch, row) for row in rows.tolist()]
    return keys


def shaped_batches(
    start_step: int, *, shapes: Int64[np.ndarray, "sample"], batch_size: int, seed: int
) -> Iterator[list[Key]]:
    """Yield without end the keys of steps, whose samples have one number in `shapes`.

    An epoch leaves out the rows that fill no batch: of every shape fewer than a batch, others in every epoch.
    """
    # Steps of an epoch: whole batches of each shape. All epochs have as many.
    epoch, first = divmod(start_step, int((np.bincount(shapes) // batch_size).sum()))
    while True:
        rows = order(len(shapes), seed=seed, epoch=epoch)
        # In the order of the epoch, so that other rows fill no batch every time.
        groups = [rows[shapes[rows] == shape] for shape in np.unique(shapes)]
        batches = []
        for group in groups:
            whole = len(group) // batch_size
            batches += np.split(group[: whole * batch_size], whole) if whole else []
        # Batches of all shapes are mixed; else an epoch would show one shape after another.
        for number in order(len(batches), seed=seed, epoch=epoch)[first:]:
            yield [(epoch, row) for row in batches[number].tolist()]
        epoch += 1
        first = 0


def micro_batches(
    keys: list[Key], *, rank: int, world_size: int, accumulation: int
) -> list[list[Key]]:
    """Return this process's share of a global batch, one list a micro-step.

    At a micro-step, the shares of all processes in rank order are a contiguous piece of `keys`.
    """
    # The loader has checked that the global batch divides evenly.
    size = len(keys) // (world_size * accumulation)
    starts = [(micro_step * world_size + rank) * size for micro_step in range(accumulation)]
    return [keys[start : start + size] for start in starts]


def sample_seed(seed: int, *, epoch: int, index: int, purpose: str = "") -> int:
    """Return 63 bits for one visit to one sample. Purposes have seeds apart: a change to one leaves the others."""
    return _hash("sample", purpose, seed, epoch, index)


def sample_generator(seed: int, *, epoch: int, index: int, purpose: str) -> np.random.Generator:
    """Return a generator seeded with `sample_seed`."""
    return np.random.Generator(
        np.random.PCG64(sample_seed(seed, epoch=epoch, index=index, purpose=purpose))
    )


def batch_seed(seed: int, *, micro_step: int) -> int:
    """Return 63 bits for one micro-step, counted over the run, the same on every process; `Batch.step_seed`."""
    return _hash("step", seed, micro_step)


def stable_id(name: str) -> int:
    """Return 63 bits for a string, the same on every machine."""
    return _hash("name", name)


def _hash(*parts: str | int) -> int:
    """63 bits, so that it is a positive int64; lengths keep ("ab", "c") and ("a", "bc") apart."""
    text = "".join(f"{len(str(part))}:{part}," for part in parts)
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little") >> 1
