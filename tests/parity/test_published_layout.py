"""Checkpoints in the published layout, through `vlmo import` and `from_pretrained`: outputs to 1e-5."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
import torch
from tests.parity import cases
from tests.parity.cases import CHECKPOINTS, Case, imported, reference_file

from vlmo.model import VLMoForImageTextRetrieval

ATOL = 1e-5  # float32, two implementations that sum in different orders
ATTENTION = pytest.mark.parametrize("attention", ["sdpa", "eager"])


def check(found: Iterable[Case]) -> set[str]:
    """Asserts each case and returns their names."""
    names = set()
    for name, actual, expected in found:
        torch.testing.assert_close(
            actual, expected, atol=ATOL, rtol=0, msg=lambda text, name=name: f"{name}: {text}"
        )
        names.add(name)
    return names


@ATTENTION
@pytest.mark.parametrize("name", CHECKPOINTS)
def test_checkpoint_gives_every_output_of_the_published_code(tmp_path, name, attention):
    outputs = {output for output in cases.outputs() if "in" not in output.split(".")[:2]}
    others = tuple(f"{other}." for other in CHECKPOINTS if other not in (name, "pretrain"))
    own = {output for output in outputs if output.startswith("" if name == "pretrain" else name)}
    names = check(cases.checkpoint_cases(name, tmp_path, attention=attention))
    assert names == {output for output in own if not output.startswith(others)}


def test_retrieval_checkpoint_imported_at_128_pixels(tmp_path):
    model = imported(VLMoForImageTextRetrieval, reference_file("irtr"), tmp_path, image_size=128)
    assert model.config.image_size == 128
    check(cases.resize_cases(model))


@ATTENTION
def test_checkpoint_with_absolute_positions_equals_a_plain_implementation(tmp_path, attention):
    file = cases.write_absolute(tmp_path)
    model = imported(
        VLMoForImageTextRetrieval, file, tmp_path, num_attention_heads=cases.ABSOLUTE.heads
    )
    model.set_attn_implementation(attention)
    check(cases.absolute_cases(model, file))
