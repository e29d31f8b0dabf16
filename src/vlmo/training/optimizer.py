"""AdamW, and Muon on request, with their parameter groups; the learning rate as a pure function of the step number."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from vlmo.training.config import ParamGroup


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW; the defaults are the paper's for vision-language pre-training."""

    # VLMo, "Pre-Training Setup".
    lr: float = 2e-4
    """Full learning rate, reached after the warm-up."""
    betas: tuple[float, float] = (0.9, 0.98)
    """Decay rates of the running mean of gradients and of their squares."""
    eps: float = 1e-8
    """Added to the root of the mean square gradient."""
    weight_decay: float = 0.01
    """Shrinks weights by this times the learning rate at each update; one-dimensional parameters never shrink."""
    muon: bool = False
    """Update the matrices of the Transformer's blocks by Muon (Liu et al. 2025), all else by AdamW."""

    def __post_init__(self) -> None:
        """Raise ValueError if a rate, a beta, eps or the decay is out of its range."""
        if self.lr <= 0:
            raise ValueError(f"lr is {self.lr}; give a number above 0")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas are {self.betas}; give two numbers from 0 to below 1")
        if self.eps <= 0 or self.weight_decay < 0:
            raise ValueError(
                f"eps is {self.eps} and weight_decay {self.weight_decay}; give eps > 0, weight_decay >= 0"
            )


@dataclass(frozen=True)
class ScheduleConfig:
    """Warm-up to the full learning rate, then decay."""

    warmup_steps: int = 0
    """Number of updates until the full rate is reached."""
    kind: Literal["linear", "cosine"] = "linear"
    """Decay from the full rate, after the warm-up, to the lowest one at the end of the run."""
    min_ratio: float = 0.0
    """Lowest rate, as a fraction of the full one."""

    def __post_init__(self) -> None:
        """Raise ValueError if a number is out of its range."""
        if self.warmup_steps < 0:
            raise ValueError(f"warmup_steps is {self.warmup_steps}; give 0 or more")
        if not 0 <= self.min_ratio <= 1:
            raise ValueError(f"min_ratio is {self.min_ratio}; give a fraction from 0 to 1")


def lr_at(step: int, *, base_lr: float, max_steps: int, config: ScheduleConfig) -> float:
    """Return the learning rate of the update that follows `step` finished updates.

    No update is wasted on a rate of 0: the first of w warm-up updates has 1/w of the full rate, and the decay would
    reach its end at `max_steps`, one update after the last.
    """
    if step < config.warmup_steps:
        return base_lr * (step + 1) / config.warmup_steps
    # max_steps may be shorter than the warm-up, in trials.
    done = min(1.0, (step - config.warmup_steps) / max(1, max_steps - config.warmup_steps))
    remaining = 1 - done if config.kind == "linear" else (1 + math.cos(math.pi * done)) / 2
    return base_lr * (config.min_ratio + (1 - config.min_ratio) * remaining)


def param_groups(
    module: nn.Module,
    *,
    weight_decay: float,
    no_weight_decay: Collection[str] = (),
    lr_scale: Mapping[str, float] | None = None,
    matrices: Mapping[Tensor, int] | None = None,
) -> list[ParamGroup]:
    """Return optimizer groups of all trainable parameters, with their `name` and `lr_scale`.

    Args:
        weight_decay: For parameters of two or more dimensions; others are never decayed.
        no_weight_decay: Full names, as in `module.named_parameters()`, that are not decayed although they have more.
        lr_scale: Full name -> factor on the learning rate; 1 for names that are not there.
        matrices: Parameters for groups of their own, with the number of matrices that they hold, which is the group's
            `parts`; 0 in all other groups.

    Raises:
        ValueError: A name in `no_weight_decay` or `lr_scale` is none of the module's, or nothing is trainable.
    """
    lr_scale = lr_scale or {}
    matrices = matrices or {}
    parameters = dict(module.named_parameters())
    if unknown := sorted({*no_weight_decay, *lr_scale} - parameters.keys()):
        example = next(iter(parameters), "none")
        raise ValueError(
            f"no parameter is called {', '.join(unknown)}; give names such as {example}"
        )
    groups: dict[str, ParamGroup] = {}
    for name, parameter in parameters.items():
        if not parameter.requires_grad:
            continue
        # By dimension: the published code skips by parts of names, and decays the norms of its
        # experts.
        is_decayed = parameter.ndim > 1 and name not in no_weight_decay
        scale = float(lr_scale.get(name, 1.0))
        parts = matrices.get(parameter, 0)
        # A readable name; the key below tells rates apart that it rounds to the same.
        label = f"{'decay' if is_decayed else 'no_decay'}_x{scale:.4g}"
        if parts:
            label += f"_muon{parts}"
        group = {
            "params": [],
            "name": label,
            "weight_decay": weight_decay if is_decayed else 0.0,
            "lr_scale": scale,
            "parts": parts,
        }
        groups.setdefault(f"{label} {scale!r}", group)["params"].append(parameter)
    if not groups:
        raise ValueError(
            "no parameter is trainable (all have requires_grad=False); unfreeze what this run is to train"
        )
    return list(groups.values())


def build_optimizer(
    module: nn.Module,
    *,
    config: OptimizerConfig,
    no_weight_decay: Collection[str] = (),
    lr_scale: Mapping[str, float] | None = None,
) -> Optimizer:
    """Return AdamW, or Muon with AdamW, over the trainable parameters; see `param_groups`.

    Raises:
        ValueError: Muon is asked for, but no block has a matrix to train.
    """
    # Imported here, as Muon brings modules that only training needs.
    from vlmo.training.muon import MuonWithAdamW, matrices_of

    groups = param_groups(
        module,
        weight_decay=config.weight_decay,
        no_weight_decay=no_weight_decay,
        lr_scale=lr_scale,
        matrices=matrices_of(module) if config.muon else None,
    )
    matrix_groups = [group for group in groups if group["parts"]]
    adamw = _adamw([group for group in groups if not group["parts"]], config)
    if not config.muon:
        return adamw
    if not matrix_groups:
        raise ValueError("optimizer.muon is True, but no block has a matrix to train; leave it out")
    return MuonWithAdamW(matrix_groups, adamw, lr=config.lr)


def _adamw(groups: list[ParamGroup], config: OptimizerConfig) -> AdamW:
    # One kernel for all parameters is also three times as fast on a CPU.
    return AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=True)
