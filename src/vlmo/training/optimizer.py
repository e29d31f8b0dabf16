"""AdamW and its parameter groups."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.optim import AdamW


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW; the defaults are the paper's for vision-language pre-training."""

    lr: float = 2e-4
    """Full learning rate, reached after the warm-up."""
    betas: tuple[float, float] = (0.9, 0.98)
    """Decay rates of the running mean of gradients and of their squares."""
    eps: float = 1e-8
    """Added to the root of the mean square gradient."""
    weight_decay: float = 0.01
    """Shrinks weights by this times the learning rate at each update; one-dimensional parameters never shrink."""

    def __post_init__(self) -> None:
        """Looks at the values.

        Raises:
            ValueError: A rate, a beta, eps or the decay is out of its range.
        """
        if self.lr <= 0:
            raise ValueError(f"lr is {self.lr}; give a number above 0")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas are {self.betas}; give two numbers from 0 to below 1")
        if self.eps <= 0 or self.weight_decay < 0:
            raise ValueError(f"eps is {self.eps} and weight_decay {self.weight_decay}; give eps > 0, weight_decay >= 0")


def param_groups(
    module: nn.Module,
    *,
    weight_decay: float,
    no_weight_decay: Collection[str] = (),
    lr_scale: Mapping[str, float] | None = None,
) -> list[dict[str, Any]]:
    """Optimizer groups of all trainable parameters; each group carries its `name` and its `lr_scale`.

    Args:
        weight_decay: For parameters of two or more dimensions; others are never decayed.
        no_weight_decay: Full names, as in `module.named_parameters()`, that are not decayed although they have more.
        lr_scale: Full name -> factor on the learning rate; 1 for names that are not there.

    Raises:
        ValueError: A name in `no_weight_decay` or `lr_scale` is none of the module's, or nothing is trainable.
    """
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for _, parameter, settings in _assign(module, weight_decay, no_weight_decay, lr_scale or {}):
        if parameter.requires_grad:
            key = settings["weight_decay"], settings["lr_scale"]
            groups.setdefault(key, {"params": [], **settings})["params"].append(parameter)
    if not groups:
        raise ValueError("no parameter is trainable (all have requires_grad=False); unfreeze what this run is to train")
    return list(groups.values())


def describe_groups(
    module: nn.Module,
    *,
    weight_decay: float,
    no_weight_decay: Collection[str] = (),
    lr_scale: Mapping[str, float] | None = None,
) -> dict[str, dict[str, Any]]:
    """Parameter name -> shape, group, weight decay and learning-rate scale, ready for JSON; for golden files.

    Frozen parameters are listed too, with "frozen" for a group and nothing else but their shape.
    """
    listing = {}
    for name, parameter, settings in _assign(module, weight_decay, no_weight_decay, lr_scale or {}):
        listing[name] = {"shape": list(parameter.shape), "group": "frozen"}
        if parameter.requires_grad:
            listing[name] |= {
                "group": settings["name"],
                "weight_decay": settings["weight_decay"],
                "lr_scale": settings["lr_scale"],
            }
    return listing


def build_optimizer(
    module: nn.Module,
    *,
    config: OptimizerConfig,
    no_weight_decay: Collection[str] = (),
    lr_scale: Mapping[str, float] | None = None,
) -> AdamW:
    """AdamW over the trainable parameters of `module`; see `param_groups` for the names."""
    groups = param_groups(module, weight_decay=config.weight_decay, no_weight_decay=no_weight_decay, lr_scale=lr_scale)
    # One kernel for all parameters is also three times as fast on a CPU.
    return AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=True)


def _assign(
    module: nn.Module, weight_decay: float, no_weight_decay: Collection[str], lr_scale: Mapping[str, float]
) -> Iterator[tuple[str, nn.Parameter, dict[str, Any]]]:
    """Name, parameter and group settings of every parameter, frozen ones too; a shared one comes once."""
    # All names of shared parameters, so that a rule may use any of them.
    aliases = dict(module.named_parameters(remove_duplicate=False))
    unknown = sorted((set(no_weight_decay) | set(lr_scale)) - set(aliases))
    if unknown:
        raise ValueError(
            f"no parameter is called {', '.join(unknown)}; give names as in named_parameters() of"
            f" {type(module).__name__}, such as {next(iter(aliases), 'none')}"
        )
    exempt = {id(aliases[name]) for name in no_weight_decay}
    scales = {id(aliases[name]): scale for name, scale in lr_scale.items()}
    for name, parameter in module.named_parameters():
        decayed = parameter.ndim > 1 and id(parameter) not in exempt
        scale = float(scales.get(id(parameter), 1.0))
        yield (
            name,
            parameter,
            {
                "name": f"{'decay' if decayed else 'no_decay'}_x{scale:.4g}",
                "weight_decay": weight_decay if decayed else 0.0,
                "lr_scale": scale,
            },
        )
