"""Endless batches by step number, made in worker processes."""

import contextlib
import itertools
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from vlmo import distributed
from vlmo.data.examples import Examples
from vlmo.data.sampler import Key, global_batch, micro_batches, step_seed
from vlmo.types import Batch

_LAST_WORD_S = 5.0


@dataclass(frozen=True)
class LoaderConfig:
    """How many samples a step takes, and who prepares them."""

    global_batch_size: int
    """Samples of one step, over all processes and micro-steps."""
    accumulation: int = 1
    """Micro-steps (forward and backward passes) of one step."""
    num_workers: int = 2
    """Worker processes for each training process; 0 prepares batches in the training process itself."""


def check_sizes(config: LoaderConfig) -> None:
    """Raises ValueError for sizes that mean nothing."""
    if config.accumulation < 1 or config.num_workers < 0 or config.global_batch_size < 1:
        raise ValueError(f"expected global_batch_size and accumulation >= 1 and num_workers >= 0, got {config}")


class Loader:
    """Micro-batches of each step, a pure function of (examples, configuration, seed, step).

    Neither workers nor restarts change a tensor, and the number of processes only decides who gets which part.

    Args:
        examples: What to read.
        config: Sizes.
        seed: The run's.
        rank: Number of this process; None asks the process group.
        world_size: Number of processes; None asks the process group.

    Raises:
        ValueError: the global batch cannot be cut evenly, or is larger than the data set.
    """

    def __init__(
        self,
        examples: Examples,
        *,
        config: LoaderConfig,
        seed: int,
        rank: int | None = None,
        world_size: int | None = None,
    ) -> None:
        self._examples = examples
        self._config = config
        self._seed = seed
        self._rank = distributed.rank() if rank is None else rank
        self._world_size = distributed.world_size() if world_size is None else world_size
        self._check()

    def __call__(self, start_step: int) -> Iterator[list[Batch]]:
        """Endless: the micro-batches of step `start_step`, then of the next one, and so on.

        Workers start at the first `next` and live until the iterator is closed or dropped.

        Raises:
            ValueError: a sample cannot be decoded; the message names it.
        """
        if start_step < 0:
            raise ValueError(f"start_step is {start_step}: expected 0 or more")
        return self._steps(start_step)

    def sample_ids(self, step: int) -> list[int]:
        """Row numbers of step `step`, over all processes."""
        return [row for _, row in self._keys(step)]

    def epoch(self, step: int) -> int:
        """The epoch in which step `step` begins."""
        return step * self._config.global_batch_size // len(self._examples)

    def _check(self) -> None:
        config, pieces = self._config, self._world_size * self._config.accumulation
        check_sizes(config)
        if config.global_batch_size % pieces:
            raise ValueError(
                f"global_batch_size is {config.global_batch_size}, not a multiple of {self._world_size} processes x "
                f"{config.accumulation} micro-steps: change it to a multiple of {pieces}"
            )
        if config.global_batch_size > len(self._examples):
            raise ValueError(
                f"global_batch_size is {config.global_batch_size}, but there are {len(self._examples)} samples: "
                "a batch would hold some of them twice"
            )

    def _keys(self, step: int) -> list[Key]:
        return global_batch(
            step, num_samples=len(self._examples), batch_size=self._config.global_batch_size, seed=self._seed
        )

    def _micro_batch_keys(self, start_step: int) -> Iterator[list[Key]]:
        for step in itertools.count(start_step):
            yield from micro_batches(
                self._keys(step),
                rank=self._rank,
                world_size=self._world_size,
                accumulation=self._config.accumulation,
            )

    def _steps(self, start_step: int) -> Iterator[list[Batch]]:
        micro = self._start_workers(start_step)
        for step in itertools.count(start_step):
            batches = []
            for micro_step in range(self._config.accumulation):
                batch = next(micro)
                if isinstance(batch, str):
                    raise ValueError(batch)
                seed = step_seed(self._seed, step=step * self._config.accumulation + micro_step)
                batch["step_seed"] = torch.tensor(seed, dtype=torch.int64)
                batches.append(batch)
            yield batches

    def _start_workers(self, start_step: int) -> Iterator[Batch | str]:
        keys = self._micro_batch_keys(start_step)
        return start_workers(
            _Reader(self._examples), sampler=keys, num_workers=self._config.num_workers, pin=torch.cuda.is_available()
        )


def start_workers(dataset: Dataset, *, num_workers: int, sampler: Iterator | None = None, pin: bool = False) -> Any:
    """Iterator over the items of `dataset`, in order, each made whole by one of the worker processes.

    Args:
        sampler: What the items are asked for by; None for an iterable data set.
        pin: Put what comes back into pinned memory.
    """
    loader = DataLoader(
        dataset,
        sampler=sampler,
        batch_size=None,  # an item is a whole micro-batch
        num_workers=num_workers,
        collate_fn=_unchanged,
        pin_memory=pin,
        worker_init_fn=_leave_signals_to_the_trainer,
        multiprocessing_context=_start_method() if num_workers else None,
        # Of its own, so that starting a loader takes nothing from the global generator.
        generator=torch.Generator().manual_seed(0),
    )
    with warnings.catch_warnings(), _without_sigterm():
        # From Python 3.12 on, any process with threads warns when it forks. A worker never enters what its
        # parent's threads may hold: PyTorch runs it on one thread, and it calls PIL, NumPy and small operations.
        warnings.filterwarnings("ignore", message=".*multi-threaded, use of fork", category=DeprecationWarning)
        items = iter(loader)
    return _until_a_worker_ends(items) if num_workers else items


@contextlib.contextmanager
def _without_sigterm() -> Iterator[None]:
    """Blocks SIGTERM while workers fork, so that each of their threads does.

    Some libraries (Lance, BLAS) start threads of a worker while it forks, before `worker_init_fn` could say so.
    """
    if sys.platform != "linux":
        yield
        return
    usual = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, usual)


def _until_a_worker_ends(items: Iterator[Any]) -> Iterator[Any]:
    try:
        yield from items
    except (ConnectionError, EOFError):
        # A killed worker's pipe ends a little before the worker does. PyTorch then says so, by raising in this sleep.
        time.sleep(_LAST_WORD_S)
        raise


class _Reader(Dataset):
    """What a worker does: keys to a batch, or to the reason why there is none.

    A reason is handed over as a string: DataLoader would wrap an exception in the worker's traceback, and the frames
    that it then holds would keep the workers alive.
    """

    def __init__(self, examples: Examples) -> None:
        self._examples = examples

    def __getitem__(self, keys: list[Key]) -> Batch | str:
        try:
            return self._examples.collate([self._examples[key] for key in keys])
        except (ValueError, OSError) as error:
            return str(error)


def _unchanged(batch: Any) -> Any:
    return batch


def _start_method() -> str:
    """Fork on Linux: workers start at once and share what the parent holds (kept pictures, tokenised texts).

    Elsewhere forking is unsafe or unknown, so examples are pickled to fresh processes.
    """
    return "fork" if sys.platform == "linux" else "spawn"


def _leave_signals_to_the_trainer(worker: int) -> None:
    """Lets a worker live on when a signal goes to the whole process group, so that the trainer can finish and save.

    A terminal interrupts, and a batch system terminates, every process of a job at once. Only the parent's own SIGTERM
    ends a worker; it also ends by itself when the parent is gone.
    """
    del worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        threading.Thread(target=_end_with_the_parent, args=(os.getppid(),), daemon=True).start()


def _end_with_the_parent(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        continue
    os._exit(0)
