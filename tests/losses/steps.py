"""Comparisons, gradients and a few steps of an objective on the toy batch."""

import torch
from tests.toy_batch import make_batch
from torch import Tensor

from vlmo.training.optimizer import OptimizerConfig, build_optimizer

ATOL = 1e-5  # float32 sums in another order


def close(actual: Tensor, expected: Tensor, atol: float = ATOL) -> None:
    torch.testing.assert_close(actual, expected, atol=atol, rtol=0)


def gradients(objective: torch.nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    objective.zero_grad()
    objective(batch)["loss"].backward()
    return {name: p.grad for name, p in objective.model.named_parameters() if p.grad is not None}


def train(objective: torch.nn.Module, *, steps: int) -> None:
    config = OptimizerConfig(lr=1e-2, weight_decay=0.1)
    optimizer = build_optimizer(objective, config=config)
    for _ in range(steps):
        objective(make_batch())["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
