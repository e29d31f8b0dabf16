"""Runs a function on several gloo processes of this machine."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


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
