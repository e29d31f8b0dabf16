"""Every parameter of each preset with its shape, weight decay and learning-rate scale, as golden files.

`python -m tests.training.test_parameter_groups` writes them anew; do so only in a commit that says why they moved.
"""

import json
from pathlib import Path

import pytest
import torch

from vlmo.model import VLMoConfig, VLMoForPreTraining
from vlmo.training import OptimizerConfig, describe_groups

GOLDEN = Path(__file__).parents[1] / "golden" / "parameter_groups"
PRESETS = ("tiny", "small", "base", "base_plus", "large")


def listing(preset: str) -> dict[str, list]:
    """Name -> [shape, weight decay, learning-rate scale]."""
    with torch.device("meta"):
        model = VLMoForPreTraining(getattr(VLMoConfig, preset)())
    groups = describe_groups(
        model, weight_decay=OptimizerConfig().weight_decay, no_weight_decay=model.no_weight_decay()
    )
    return {name: [group["shape"], group["weight_decay"], group["lr_scale"]] for name, group in groups.items()}


def as_text(groups: dict[str, list]) -> str:
    """JSON with a line for each parameter, so that a change shows by name."""
    lines = [f"{json.dumps(name)}: {json.dumps(group, separators=(',', ':'))}" for name, group in groups.items()]
    return "{\n" + ",\n".join(lines) + "\n}\n"


@pytest.mark.parametrize("preset", PRESETS)
def test_parameter_groups_equal_the_golden_file(preset):
    assert listing(preset) == json.loads((GOLDEN / f"{preset}.json").read_text())


def test_exactly_vectors_tables_and_class_token_are_not_decayed():
    for name, (shape, decay, scale) in listing("tiny").items():
        exempt = len(shape) == 1 or name in ("vlmo.image_embeddings.cls_token", "vlmo.position_bias.table")
        assert decay == (0.0 if exempt else 0.01), name
        assert scale == 1.0


if __name__ == "__main__":
    for name in PRESETS:
        (GOLDEN / f"{name}.json").write_text(as_text(listing(name)))
