from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from vlmo.training.optimizer import OptimizerConfig, build_optimizer, describe_groups, param_groups


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 3)
        self.position_bias = nn.Parameter(torch.zeros(4, 2))
        self.norm_weight_matrix = nn.Parameter(torch.zeros(3, 3))  # decayed: no rule looks into names
        self.logit_scale = nn.Parameter(torch.zeros(()))
        self.frozen = nn.Linear(3, 3).requires_grad_(requires_grad=False)
        self.head = nn.Linear(3, 5)
        self.head.weight = self.embed.weight  # shared


def test_groups_decay_matrices_only_and_not_those_named() -> None:
    listing = describe_groups(
        Model(), weight_decay=0.1, no_weight_decay={"position_bias"}, lr_scale={"head.bias": 20, "logit_scale": 0.5}
    )
    assert json.loads(json.dumps(listing)) == {
        "embed.weight": {"shape": [5, 3], "group": "decay_x1", "weight_decay": 0.1, "lr_scale": 1.0},
        "position_bias": {"shape": [4, 2], "group": "no_decay_x1", "weight_decay": 0.0, "lr_scale": 1.0},
        "norm_weight_matrix": {"shape": [3, 3], "group": "decay_x1", "weight_decay": 0.1, "lr_scale": 1.0},
        "logit_scale": {"shape": [], "group": "no_decay_x0.5", "weight_decay": 0.0, "lr_scale": 0.5},
        "frozen.weight": {"shape": [3, 3], "group": "frozen"},
        "frozen.bias": {"shape": [3], "group": "frozen"},
        "head.bias": {"shape": [5], "group": "no_decay_x20", "weight_decay": 0.0, "lr_scale": 20.0},
    }


def test_groups_hold_every_trainable_parameter_once() -> None:
    model = Model()
    groups = param_groups(model, weight_decay=0.1, no_weight_decay={"position_bias"}, lr_scale={"head.bias": 20})
    held = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(held) == sorted(id(parameter) for parameter in model.parameters() if parameter.requires_grad)
    assert {group["name"]: (group["weight_decay"], group["lr_scale"], len(group["params"])) for group in groups} == {
        "decay_x1": (0.1, 1.0, 2),
        "no_decay_x1": (0.0, 1.0, 2),
        "no_decay_x20": (0.0, 20.0, 1),
    }


def test_groups_know_a_shared_parameter_by_each_of_its_names() -> None:
    listing = describe_groups(Model(), weight_decay=0.1, no_weight_decay={"head.weight"})
    assert listing["embed.weight"]["group"] == "no_decay_x1"


def test_groups_keep_close_scales_apart() -> None:
    groups = param_groups(Model(), weight_decay=0.0, lr_scale={"head.bias": 0.123456781, "logit_scale": 0.123456782})
    assert len({group["lr_scale"] for group in groups}) == 3


@pytest.mark.parametrize("rule", [{"no_weight_decay": {"position"}}, {"lr_scale": {"head": 2.0}}])
def test_groups_refuse_a_name_that_no_parameter_has(rule) -> None:
    with pytest.raises(ValueError, match=r"no parameter is called (position|head); give names"):
        param_groups(Model(), weight_decay=0.1, **rule)


def test_groups_refuse_a_module_that_is_all_frozen() -> None:
    with pytest.raises(ValueError, match="no parameter is trainable"):
        param_groups(Model().requires_grad_(requires_grad=False), weight_decay=0.1)


def test_optimizer_steps_as_adamw_does_by_hand() -> None:
    module = nn.Linear(1, 1, bias=False)
    nn.init.constant_(module.weight, 2.0)
    optimizer = build_optimizer(module, config=OptimizerConfig(lr=0.1, weight_decay=0.5))
    module.weight.grad = torch.full((1, 1), 3.0)
    optimizer.step()
    # Decay: 2 (1 - 0.1 * 0.5) = 1.9. The first Adam step has length lr whatever the gradient: 1.9 - 0.1.
    assert module.weight.item() == pytest.approx(1.8)


@pytest.mark.parametrize("wrong", [{"lr": 0.0}, {"betas": (0.9, 1.0)}, {"eps": 0.0}, {"weight_decay": -1.0}])
def test_optimizer_names_a_wrong_setting(wrong) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        OptimizerConfig(**wrong)
