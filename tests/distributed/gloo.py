"""Collectives that a test watches."""

from collections.abc import Sequence
from typing import Self

import torch.distributed as dist
from torch import Tensor

from tests.forkserver import run_processes

__all__ = ["WatchedCollectives", "run_processes"]


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
