"""Muon for the matrices of blocks (Liu et al. 2025), beside AdamW; apart, as it brings what only training needs.

PyTorch's own takes its steps in bf16, which a CPU without instructions for it computes twenty times as slowly.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

from vlmo.distributed import gather, rank, world_size
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
    """Muon for groups with `parts`, AdamW for the others.

    Matrices of one shape go through the Newton-Schulz steps as a batch, of which each process takes
    a share. Those that FSDP2 shards are gathered before, all of one shape at a time.
    """

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
            if group["parts"]:
                by_shape: dict[torch.Size, list[Tensor]] = {}
                for matrix in group["params"]:
                    if matrix.grad is not None:
                        by_shape.setdefault(matrix.shape, []).append(matrix)
                for matrices in by_shape.values():
                    self._update(matrices, group)

    def _update(self, matrices: list[Tensor], group: ParamGroup) -> None:
        """Update matrices of one shape."""
        count = group["parts"]
        # Query, key and value are matrices of their own: orthogonalized together they would share
        # singular values.
        parts = torch.cat(
            [self._direction(matrix).unflatten(0, (count, -1)) for matrix in matrices]
        )
        # Updates as large as AdamW's in root mean square (Liu et al. 2025).
        scale = 0.2 * max(parts.shape[1:]) ** 0.5
        updates = _orthogonalize_in_shares(parts).split(count)
        for matrix, update_parts in zip(matrices, updates, strict=True):
            update = update_parts.flatten(0, 1)
            if isinstance(matrix, DTensor):
                update = distribute_tensor(
                    update, matrix.device_mesh, matrix.placements, src_data_rank=None
                )
            # Decoupled, as AdamW's.
            matrix.mul_(1 - group["lr"] * group["weight_decay"])
            matrix.add_(update, alpha=-scale * group["lr"])

    def _direction(self, matrix: Tensor) -> Float[Tensor, "rows columns"]:
        """Return the whole matrix of Nesterov's direction."""
        gradient = matrix.grad
        assert gradient is not None
        state = self.state[matrix]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(matrix)
        # Momentum 0.95 (Jordan et al. 2024).
        momentum = state["momentum_buffer"].lerp_(gradient, 0.05)
        direction = gradient.lerp(momentum, 0.95)
        if isinstance(direction, DTensor):
            direction = direction.full_tensor()
        return direction.to(self._dtype)


def _orthogonalize_in_shares(
    matrices: Float[Tensor, "matrix rows columns"],
) -> Float[Tensor, "matrix rows columns"]:
    """Return what `orthogonalize` does, of which each process computes a share."""
    if world_size() == 1:
        return orthogonalize(matrices)
    size = math.ceil(len(matrices) / world_size())
    chosen = matrices[rank() * size :][:size]
    # The last shares may be smaller, but the processes must gather as many.
    share = matrices.new_zeros(size, *matrices.shape[1:])
    share[: len(chosen)] = orthogonalize(chosen)
    return gather(share)[: len(matrices)]


def orthogonalize(
    matrices: Float[Tensor, "matrix rows columns"],
) -> Float[Tensor, "matrix rows columns"]:
    """Return about the nearest matrices whose singular values are 1.

    Five Newton-Schulz steps with the coefficients of Jordan et al. 2024.
    """
    is_tall = matrices.shape[1] > matrices.shape[2]
    # The smaller Gram matrix of the two.
    result = matrices.mT if is_tall else matrices
    # The largest singular value is at most the Frobenius norm, so none is above 1: the steps
    # converge.
    result = result / result.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(5):
        gram = result @ result.mT
        polynomial = torch.baddbmm(gram, gram, gram, beta=-4.7750, alpha=2.0315)
        result = torch.baddbmm(result, polynomial, result, beta=3.4445)
    return result.mT if is_tall else result
