"""Muon for the matrices of blocks (Liu et al. 2025), beside AdamW; apart, as it brings what only training needs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Muon, Optimizer

from vlmo.model.multiway import MultiwayBlock, QueryKeyValue


def matrices_of(module: nn.Module) -> dict[Tensor, int]:
    """Return the weights of linear layers of blocks, and how many matrices each is: joint projections are three."""
    blocks = [each for each in module.modules() if isinstance(each, MultiwayBlock)]
    layers = [each for block in blocks for each in block.modules() if isinstance(each, nn.Linear)]
    return {each.weight: 3 if isinstance(each, QueryKeyValue) else 1 for each in layers}


class MuonWithAdamW(Optimizer):
    """Muon for groups with `parts`, AdamW for the others. Matrices that FSDP2 shards are gathered, one at a time."""

    def __init__(self, groups: list[dict[str, Any]], adamw: Optimizer, *, lr: float) -> None:
        self._muon, self._adamw = Muon(groups, lr=lr, adjust_lr_fn="match_rms_adamw"), adamw
        super().__init__([*self._muon.param_groups, *adamw.param_groups], defaults={})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # noqa: ARG002 (of the base)
        """Update all parameters that have a gradient."""
        # Taken anew each time, as loading a state replaces both.
        self._adamw.param_groups = [group for group in self.param_groups if not group["parts"]]
        self._adamw.state = self.state
        self._adamw.step()
        for group in self.param_groups:
            for matrix in group["params"] if group["parts"] else ():
                if matrix.grad is not None:
                    self._update(matrix, matrix.grad, group)

    def _update(self, matrix: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        tensors = matrix, self.state[matrix].setdefault("momentum_buffer", torch.zeros_like(matrix)), gradient
        wholes = [each.full_tensor() if isinstance(each, DTensor) else each for each in tensors]
        self._muon.state.clear()
        parts, momenta, gradients = (each.chunk(group["parts"]) for each in wholes)  # which share their memory
        for part, own, given in zip(parts, momenta, gradients, strict=True):
            part.grad, self._muon.state[part] = given, {"momentum_buffer": own}
        self._muon.param_groups = [group | {"params": parts}]
        self._muon.step()
        for tensor, whole in zip(tensors[:2], wholes[:2], strict=True):
            if isinstance(tensor, DTensor):
                tensor.copy_(distribute_tensor(whole, tensor.device_mesh, tensor.placements, src_data_rank=None))
