"""Muon for the matrices of blocks (Liu et al. 2025), beside AdamW; apart, as it brings what only training needs.

PyTorch's own takes its steps in bf16, which a CPU without instructions for it computes twenty times as slowly.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

from vlmo.model.multiway import MultiwayBlock, QueryKeyValue
from vlmo.training.config import ParamGroup
from vlmo.training.engine import multiplies_in_bf16
from vlmo.training.parallel import from_main


def matrices_of(module: nn.Module) -> dict[Tensor, int]:
    """Return the weights of the blocks' linear layers with their number of matrices: three in joint projections."""
    counts: dict[Tensor, int] = {}
    for block in module.modules():
        if not isinstance(block, MultiwayBlock):
            continue
        for layer in block.modules():
            if isinstance(layer, nn.Linear):
                counts[layer.weight] = 3 if isinstance(layer, QueryKeyValue) else 1
    return counts


class MuonWithAdamW(Optimizer):
    """Muon for groups with `parts`, AdamW for the others. Matrices that FSDP2 shards are gathered, one at a time."""

    def __init__(self, groups: list[ParamGroup], adamw: Optimizer, *, lr: float) -> None:
        self._adamw = adamw
        device = groups[0]["params"][0].device
        self._dtype = from_main(torch.bfloat16 if multiplies_in_bf16(device) else torch.float32)
        super().__init__([*groups, *adamw.param_groups], defaults={"lr": lr})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # noqa: ARG002 (of the base)
        """Update all parameters that have a gradient."""
        # Read again at every step, as loading a state replaces both.
        self._adamw.param_groups = [group for group in self.param_groups if not group["parts"]]
        self._adamw.state = self.state
        self._adamw.step()
        for group in self.param_groups:
            for matrix in group["params"] if group["parts"] else ():
                if matrix.grad is not None:
                    self._update(matrix, matrix.grad, group)

    def _update(self, matrix: Tensor, gradient: Tensor, group: ParamGroup) -> None:
        state = self.state[matrix]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(matrix)
        # Momentum 0.95 (Jordan et al. 2024).
        momentum = state["momentum_buffer"].lerp_(gradient, 0.05)
        direction = gradient.lerp(momentum, 0.95)  # Nesterov
        if isinstance(direction, DTensor):
            direction = direction.full_tensor()
        # Query, key and value are matrices of their own: orthogonalized together they would share
        # singular values.
        parts = direction.to(self._dtype).chunk(group["parts"])
        update = torch.cat([orthogonalize(part) for part in parts])
        if isinstance(matrix, DTensor):
            update = distribute_tensor(
                update, matrix.device_mesh, matrix.placements, src_data_rank=None
            )
        # Decoupled, as AdamW's.
        matrix.mul_(1 - group["lr"] * group["weight_decay"])
        # Updates as large as AdamW's in root mean square (Liu et al. 2025).
        scale = 0.2 * max(parts[0].shape) ** 0.5
        matrix.add_(update, alpha=-scale * group["lr"])


def orthogonalize(matrix: Float[Tensor, "rows columns"]) -> Float[Tensor, "rows columns"]:
    """Return about the nearest matrix whose singular values are 1.

    Five Newton-Schulz steps with the coefficients of Jordan et al. 2024.
    """
    is_tall = matrix.shape[0] > matrix.shape[1]
    # The smaller Gram matrix of the two.
    result = matrix.T if is_tall else matrix
    # The largest singular value is at most the Frobenius norm, so none is above 1: the steps
    # converge.
    result = result / result.norm().clamp(min=1e-7)
    for _ in range(5):
        gram = result @ result.T
        polynomial = torch.addmm(gram, gram, gram, beta=-4.7750, alpha=2.0315)
        result = torch.addmm(result, polynomial, result, beta=3.4445)
    return result.T if is_tall else result
