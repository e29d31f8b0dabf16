"""Endless batches by step number, made in worker processes."""

from __future__ import annotations

import itertools
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from vlmo import distributed
from vlmo.data.examples import Examples, RowExamples
from vlmo.data.sampler import Key, batch_seed, global_batch, micro_batches, shaped_batches
from vlmo.types import Batch

_LAST_WORD_S = 5.0
_PARENT_CHECK_S = 1.0


@dataclass(frozen=True)
class LoaderConfig:
    """Samples of a step, and worker processes."""

    global_batch_size: int
    """Samples of one step, over all processes and micro-steps."""
    accumulation: int = 1
    """Micro-steps (forward and backward passes) of one step."""
    num_workers: int = 2
    """Worker processes of every training process; 0 prepares batches in the training process itself."""

    def __post_init__(self) -> None:
        """Raise ValueError if a number is too small."""
        if self.accumulation < 1 or self.num_workers < 0 or self.global_batch_size < 1:
            raise ValueError(
                f"expected global_batch_size and accumulation >= 1 and num_workers >= 0, got {self}"
            )


class RowLoader:
    """Micro-batches of steps, a pure function of (examples, configuration, seed, step).

    Neither workers nor restarts change a tensor, and the number of processes only decides who gets which part.

    Args:
        rank: Number of this process of `world_size`; None asks the process group for either.

    Raises:
        ValueError: The global batch cannot be cut evenly, or is larger than the data set.
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
        # Pieces of equal size: the mean over processes is then the mean over samples.
        pieces = self._world_size * config.accumulation
        if config.global_batch_size % pieces:
            raise ValueError(
                f"global_batch_size is {config.global_batch_size}, not a multiple of {self._world_size} processes x "
                f"{config.accumulation} micro-steps: change it to a multiple of {pieces}"
            )
        if config.global_batch_size > len(examples):
            raise ValueError(
                f"global_batch_size is {config.global_batch_size}, but there are {len(examples)} samples: "
                f"a batch would hold some of them twice; give --batch-size {len(examples)} or less"
            )
        # All samples of a step have one shape: hard negatives of one process may be images of another.
        self._shapes = (
            examples.fit_shapes(config.global_batch_size)
            if isinstance(examples, RowExamples)
            else None
        )

    def __call__(self, start_step: int) -> Iterator[list[Batch]]:
        """Yield without end the micro-batches of step `start_step`, then of the next one, and so on.

        Workers start at the first `next` and live until the iterator is closed or dropped.

        Raises:
            ValueError: A sample cannot be decoded; the message names it.
        """
        items = start_workers(
            _Reader(self._examples),
            sampler=self._micro_batch_keys(start_step),
            num_workers=self._config.num_workers,
            pin=torch.cuda.is_available(),
        )
        for step in itertools.count(start_step):
            batches = []
            for micro in range(self._config.accumulation):
                batch = next(items)
                if isinstance(batch, str):
                    raise ValueError(batch)
                # Micro-steps are counted over the run, so that no two of them have one seed.
                number = step * self._config.accumulation + micro
                batches.append(add_step(batch, step=step, micro_step=number, seed=self._seed))
            yield batches

    def _micro_batch_keys(self, start_step: int) -> Iterator[list[Key]]:
        size = self._config.global_batch_size
        if self._shapes is None:
            draw = partial(
                global_batch, num_samples=len(self._examples), batch_size=size, seed=self._seed
            )
            steps = map(draw, itertools.count(start_step))
        else:
            steps = shaped_batches(
                start_step, shapes=self._shapes, batch_size=size, seed=self._seed
            )
        for keys in steps:
            yield from micro_batches(
                keys,
                rank=self._rank,
                world_size=self._world_size,
                accumulation=self._config.accumulation,
            )


def add_step(batch: Batch, *, step: int, micro_step: int, seed: int) -> Batch:
    """Return a batch with its step, and the seed of what the model draws at random in it."""
    batch["step_seed"] = torch.tensor(batch_seed(seed, micro_step=micro_step))
    batch["step"] = torch.tensor(step)
    return batch


class JointLoader:
    """Micro-batches of several loaders as one: the names of their tensors begin with a loader's, but for that of ""."""

    def __init__(self, loaders: Mapping[str, Any]) -> None:
        self._loaders = {f"{name}." if name else "": loader for name, loader in loaders.items()}

    def __call__(self, start_step: int) -> Iterator[list[Batch]]:
        """Yield without end the micro-batches of step `start_step`, and so on, as the loaders do."""
        for step in zip(*(loader(start_step) for loader in self._loaders.values()), strict=True):
            yield [self._join(parts) for parts in zip(*step, strict=True)]

    def _join(self, parts: Sequence[Batch]) -> Batch:
        joined: Any = {}
        for name, part in zip(self._loaders, parts, strict=True):
            joined |= {f"{name}{key}": tensor for key, tensor in part.items()}
        return joined

    def cursor(self, step: int) -> dict[str, Any]:
        """Return the cursors of those loaders that have one, as one."""
        lanes: dict[str, Any] = {}
        for name, loader in self._loaders.items():
            if hasattr(loader, "cursor"):
                lanes |= {f"{name}{lane}": state for lane, state in loader.cursor(step).items()}
        return lanes

    def go_on_from(self, step: int, cursor: dict[str, Any]) -> None:
        """Set the start of those loaders: cursors of all processes, as one."""
        for name, loader in self._loaders.items():
            if hasattr(loader, "go_on_from"):
                # One cursor holds the lanes of all loaders, by the loader's name before the lane's.
                lanes = [lane for lane in cursor if lane.startswith(name)]
                loader.go_on_from(step, {lane.removeprefix(name): cursor[lane] for lane in lanes})


@dataclass(eq=False)
class _Reader(Dataset):
    """Turns keys into a batch, in a worker, or into the reason why there is none.

    A reason is handed over as a string: DataLoader would wrap an exception in the worker's traceback, and the frames
    that it then holds would keep the workers alive.
    """

    examples: Examples

    def __getitem__(self, keys: list[Key]) -> Batch | str:
        try:
            return self.examples.collate([self.examples[key] for key in keys])
        except (ValueError, OSError) as error:
            return str(error)


def start_workers(
    dataset: Dataset, *, num_workers: int, sampler: Iterator | None = None, pin: bool = False
) -> Any:
    """Iterate over the items of `dataset`, in order, all made whole by one of the worker processes."""
    is_linux = sys.platform == "linux"
    loader = DataLoader(
        dataset,
        sampler=sampler,
        batch_size=None,  # an item is a whole micro-batch
        num_workers=num_workers,
        pin_memory=pin,
        worker_init_fn=_leave_signals_to_the_trainer,
        # Forked workers start at once and share what the parent holds (cached images, tokenised texts). Elsewhere than
        # on Linux forking is unsafe or unknown, so examples are pickled to fresh processes.
        multiprocessing_context=("fork" if is_linux else "spawn") if num_workers else None,
        # Of its own, so that starting a loader takes nothing from the global generator.
        generator=torch.Generator().manual_seed(0),
    )
    # Each thread of a worker blocks SIGTERM: some libraries (Lance, BLAS) start theirs while it forks, before
    # `worker_init_fn` could say so.
    usual = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM}) if is_linux else None
    try:
        with warnings.catch_warnings():
            # From Python 3.12 on, any process with threads warns when it forks. A worker never enters what its
            # parent's threads may hold: PyTorch runs it on one thread, and it calls PIL, NumPy and small operations.
            warnings.filterwarnings(
                "ignore", message=".*multi-threaded, use of fork", category=DeprecationWarning
            )
            items = iter(loader)
    finally:
        if usual is not None:
            signal.pthread_sigmask(signal.SIG_SETMASK, usual)
    return _until_a_worker_ends(items) if num_workers else items


def _until_a_worker_ends(items: Iterator[Any]) -> Iterator[Any]:
    try:
        yield from items
    except (ConnectionError, EOFError):
        # A killed worker's pipe ends a little before the worker does. PyTorch then says so, by raising in this sleep.
        time.sleep(_LAST_WORD_S)
        raise


def _leave_signals_to_the_trainer(_: int) -> None:
    """Let a worker live on when a signal goes to the whole process group, so that the trainer can finish and save.

    A terminal interrupts, and a batch system terminates, every process of a job at once. Only the parent's own SIGTERM
    ends a worker, and the end of the parent.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        threading.Thread(target=_end_with_the_parent, args=(os.getppid(),), daemon=True).start()


def _end_with_the_parent(parent: int) -> None:
    while os.getppid() == parent:
        received = signal.sigtimedwait({signal.SIGTERM}, _PARENT_CHECK_S)
        if received is not None and received.si_pid == parent:
            break
    os._exit(0)
