"""Parameter groups, by hand and of three presets as golden files, and the learning rate.

`python -m tests.training.test_optimizer` writes the golden files anew; do so only in a commit that says why they moved.
"""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.distributed.toy_engines import MUON, run
from tests.toy_model import toy
from tests.training.toy_run import curve, is_same
from torch import Tensor, nn

from vlmo.model import VLMoConfig, VLMoForPreTraining
from vlmo.training import EngineConfig
from vlmo.training.optimizer import (
    OptimizerConfig,
    ScheduleConfig,
    build_optimizer,
    lr_at,
    param_groups,
)

GOLDEN = Path(__file__).parents[1] / "golden" / "parameter_groups"
PRESETS = ("tiny", "small", "base")


def listing(module: nn.Module, **rules: Any) -> dict[str, list]:
    """Name -> [shape, weight decay, learning-rate scale]; frozen parameters have their shape only."""
    groups = param_groups(module, **rules)
    settings = {
        id(p): [group["weight_decay"], group["lr_scale"]]
        for group in groups
        for p in group["params"]
    }
    return {
        name: [list(p.shape), *settings.get(id(p), [])] for name, p in module.named_parameters()
    }


def preset_listing(preset: str) -> dict[str, list]:
    with torch.device("meta"):
        model = VLMoForPreTraining(getattr(VLMoConfig, preset)())
    return listing(
        model, weight_decay=OptimizerConfig().weight_decay, no_weight_decay=model.no_weight_decay()
    )


def as_text(groups: dict[str, list]) -> str:
    """JSON with a line for each parameter, so that a change shows by name."""
    lines = [
        f"{json.dumps(name)}: {json.dumps(group, separators=(',', ':'))}"
        for name, group in groups.items()
    ]
    return "{\n" + ",\n".join(lines) + "\n}\n"


@pytest.mark.parametrize("preset", PRESETS)
def test_parameter_groups_equal_the_golden_file(preset):
    assert preset_listing(preset) == json.loads((GOLDEN / f"{preset}.json").read_text())


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 3)
        self.position_bias = nn.Parameter(torch.zeros(4, 2))
        self.norm_weight_matrix = nn.Parameter(
            torch.zeros(3, 3)
        )  # decayed: no rule looks into names
        self.logit_scale = nn.Parameter(torch.zeros(()))
        self.frozen = nn.Linear(3, 3).requires_grad_(requires_grad=False)
        self.head = nn.Linear(3, 5)


def test_groups_decay_matrices_only_and_not_those_named() -> None:
    rules = {
        "no_weight_decay": {"position_bias"},
        "lr_scale": {"head.bias": 20, "logit_scale": 0.5},
    }
    assert listing(Model(), weight_decay=0.1, **rules) == {
        "embed.weight": [[5, 3], 0.1, 1.0],
        "position_bias": [[4, 2], 0.0, 1.0],
        "norm_weight_matrix": [[3, 3], 0.1, 1.0],
        "logit_scale": [[], 0.0, 0.5],
        "frozen.weight": [[3, 3]],
        "frozen.bias": [[3]],
        "head.weight": [[5, 3], 0.1, 1.0],
        "head.bias": [[5], 0.0, 20.0],
    }


@pytest.mark.parametrize("rule", [{"no_weight_decay": {"position"}}, {"lr_scale": {"head": 2.0}}])
def test_groups_refuse_a_name_that_no_parameter_has(rule) -> None:
    with pytest.raises(ValueError, match=r"no parameter is called (position|head); give names"):
        param_groups(Model(), weight_decay=0.1, **rule)


@pytest.mark.parametrize(
    ("kind", "min_ratio", "expected"),
    [
        # Two steps of warm-up, then four of decay; the seventh number is what a step beyond the end would have.
        ("linear", 0.0, [1.0, 2.0, 2.0, 1.5, 1.0, 0.5, 0.0]),
        ("linear", 0.5, [1.0, 2.0, 2.0, 1.75, 1.5, 1.25, 1.0]),
        ("cosine", 0.0, [1.0, 2.0, 2.0, 1 + 2**-0.5, 1.0, 1 - 2**-0.5, 0.0]),
    ],
)
def test_lr_follows_the_curve_worked_out_by_hand(kind, min_ratio, expected) -> None:
    config = ScheduleConfig(warmup_steps=2, kind=kind, min_ratio=min_ratio)
    assert [
        lr_at(step, base_lr=2.0, max_steps=6, config=config) for step in range(7)
    ] == pytest.approx(expected)


def test_lr_of_a_run_shorter_than_its_warmup_only_rises() -> None:
    config = ScheduleConfig(warmup_steps=100)
    assert [lr_at(step, base_lr=1.0, max_steps=3, config=config) for step in range(3)] == [
        0.01,
        0.02,
        0.03,
    ]


# Of an update: Muon's Newton-Schulz steps enlarge the roundings of bf16, which keeps 8 bits, and of float32.
SHARES = {True: 0.05, False: 1e-4}


def muon_by_hand(
    weight: Tensor, gradients: list[Tensor], *, lr: float, weight_decay: float
) -> Tensor:
    """Momentum 0.95 with Nesterov, five steps of the quintic iteration, 0.2 sqrt(larger side), in float64."""
    weight, momentum = weight.double(), torch.zeros(weight.shape, dtype=torch.float64)
    for gradient in gradients:
        momentum = 0.95 * momentum + 0.05 * gradient.double()
        x = 0.95 * momentum + 0.05 * gradient.double()
        x = x / x.square().sum().sqrt()
        for _ in range(5):
            gram = x @ x.T
            x = 3.4445 * x - 4.7750 * gram @ x + 2.0315 * gram @ gram @ x
        weight = (1 - lr * weight_decay) * weight - lr * 0.2 * max(weight.shape) ** 0.5 * x
    return weight


@pytest.mark.parametrize("in_bf16", [True, False])
def test_muon_updates_matrices_of_blocks_and_adamw_all_else(in_bf16: bool, monkeypatch) -> None:
    monkeypatch.setattr("vlmo.training.muon.multiplies_in_bf16", lambda _: in_bf16)
    config, slow = (
        OptimizerConfig(lr=0.01, weight_decay=0.1),
        "vlmo.blocks.0.attention.qkv.shared.weight",
    )
    trained = {}
    for muon in (False, True):
        model = toy(VLMoForPreTraining, num_hidden_layers=2, num_fusion_layers=1)
        optimizer = build_optimizer(model, config=replace(config, muon=muon), lr_scale={slow: 0.5})
        names = {parameter: name for name, parameter in model.named_parameters()}
        before = {name: parameter.detach().clone() for parameter, name in names.items()}
        unused = model.get_parameter("vlmo.blocks.1.experts.vision.fc1.weight")
        gradients = {name: [] for name in before}
        for step in range(2):
            generator = torch.Generator().manual_seed(step)
            for parameter, name in names.items():
                gradients[name].append(torch.randn(parameter.shape, generator=generator))
                parameter.grad = None if parameter is unused else gradients[name][-1].clone()
            for group in optimizer.param_groups:
                group["lr"] = config.lr * group["lr_scale"]
            optimizer.step()
        trained[muon] = {name: parameter.detach() for parameter, name in names.items()}
        assert torch.equal(unused, before[names[unused]])
        assert unused not in optimizer.state
    linear = re.compile(r"vlmo\.blocks\.\d\.(attention\.(qkv|projection)|experts)\..*weight")
    matrices = {
        name for name, weight in before.items() if linear.fullmatch(name) and weight.ndim == 2
    }
    assert (
        len(matrices) == 2 * (2 + 2 * 2) + 2
    )  # joint projection, projection, two experts; one more in the top block
    for name, weight in trained[True].items():
        if name not in matrices:
            assert torch.equal(weight, trained[False][name]), name
        elif name != names[unused]:
            parts = 3 if "qkv" in name else 1
            rows = zip(
                before[name].chunk(parts),
                *(each.chunk(parts) for each in gradients[name]),
                strict=True,
            )
            lr = config.lr * (0.5 if name == slow else 1)
            expected = torch.cat(
                [muon_by_hand(own, list(of), lr=lr, weight_decay=0.1) for own, *of in rows]
            )
            error = (weight - expected).norm() / (expected - before[name]).norm()
            assert error < SHARES[in_bf16], (name, error)


def test_muon_without_a_block_is_refused() -> None:
    with pytest.raises(ValueError, match="muon is True, but no block"):
        build_optimizer(Model(), config=OptimizerConfig(muon=True))


def test_run_with_muon_resumes_with_the_same_bits(tmp_path) -> None:
    settings = {"engine": EngineConfig(), "optimizer": MUON}
    assert run(tmp_path / "stopped", **settings, stops=True).status == "stopped"
    for name in ("stopped", "whole"):
        assert run(tmp_path / name, **settings).status == "finished"
    assert curve(tmp_path / "stopped") == curve(tmp_path / "whole")
    assert is_same(
        *(
            load_file(tmp_path / name / "model" / "model.safetensors")
            for name in ("stopped", "whole")
        )
    )


if __name__ == "__main__":
    for name in PRESETS:
        (GOLDEN / f"{name}.json").write_text(as_text(preset_listing(name)))
