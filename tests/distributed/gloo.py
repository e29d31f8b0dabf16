"""Collectives that a test watches."""

from typing import Self

import torch
import torch.distributed as dist
from torch import Tensor

from tests.forkserver import run_processes
from vlmo import distributed

__all__ = ["Sent", "run_processes"]


class Sent:
    """Bytes that this process hands to others, by kind of collective and of number, while this is on."""

    def __init__(self) -> None:
        self.gathered = {"float": 0, "number": 0}
        self.exchanged = {"float": 0, "number": 0, "pixel": 0}

    def __enter__(self) -> Self:
        self._originals = dist.all_to_all_single, dist.all_gather_into_tensor
        dist.all_to_all_single, dist.all_gather_into_tensor = self._all_to_all, self._all_gather
        return self

    def __exit__(self, *_: object) -> None:
        dist.all_to_all_single, dist.all_gather_into_tensor = self._originals

    def _all_to_all(self, output: Tensor, sent: Tensor, *splits: list[int]) -> None:
        self._originals[0](output, sent, *splits)
        own = (
            splits[1]
            if splits
            else [len(sent) // distributed.world_size()] * distributed.world_size()
        )
        self.exchanged[_kind(sent)] += (len(sent) - own[distributed.rank()]) * sent[:1].nbytes

    def _all_gather(self, output: Tensor, sent: Tensor) -> None:
        self._originals[1](output, sent)
        self.gathered[_kind(sent)] += (distributed.world_size() - 1) * sent.nbytes


def _kind(tensor: Tensor) -> str:
    return {torch.float32: "float", torch.int64: "number", torch.uint8: "pixel"}[tensor.dtype]
