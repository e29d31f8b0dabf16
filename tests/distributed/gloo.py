"""Runs a function on several gloo processes of this machine."""

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor


def run_processes(function: Callable[..., Any], *args: Any, world_size: int = 2) -> list[Any]:
    """Results of `function(*args)` on each of `world_size` processes that share a gloo group, in rank order."""
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_worker, args=(folder, world_size, function, args), nprocs=world_size)
        return [torch.load(Path(folder) / f"{rank}.pt", weights_only=True) for rank in range(world_size)]


def _worker(rank: int, folder: str, world_size: int, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world_size)
    try:
        torch.save(function(*args), Path(folder) / f"{rank}.pt")
    finally:
        dist.destroy_process_group()


class WatchedCollectives:
    """While this is on, `exchanging` and `gathering` are told what this process sends by all-to-all and all-gather."""

    def __enter__(self) -> Self:
        self._originals = dist.all_to_all_single, dist.all_gather_into_tensor
        dist.all_to_all_single, dist.all_gather_into_tensor = self._all_to_all, self._all_gather
        return self

    def __exit__(self, *_: object) -> None:
        dist.all_to_all_single, dist.all_gather_into_tensor = self._originals

    def exchanging(self, sent: Tensor, splits: Sequence[int] | None) -> None:
        """`splits` are the rows that each process is sent; None for equally many."""

    def gathering(self, sent: Tensor) -> None:
        """Every process gets the whole."""

    def _all_to_all(self, output: Tensor, sent: Tensor, *splits: list[int]) -> None:
        self._originals[0](output, sent, *splits)
        self.exchanging(sent, splits[1] if splits else None)

    def _all_gather(self, output: Tensor, sent: Tensor) -> None:
        self._originals[1](output, sent)
        self.gathering(sent)
