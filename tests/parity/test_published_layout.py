"""Checkpoints in the published layout, through `vlmo import` and `from_pretrained`: outputs to 1e-5."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
import torch
from tests.parity import cases
from tests.parity.cases import Case, imported, outputs, reference_file

from vlmo.model import (
    VLMoForImageTextRetrieval,
    VLMoForPreTraining,
    VLMoForVisualQuestionAnswering,
    VLMoForVisualReasoning,
)

ATOL = 1e-5  # float32, two implementations that sum in different orders
ATTENTION = pytest.mark.parametrize("attention", ["sdpa", "eager"])


def check(found: Iterable[Case]) -> set[str]:
    """Asserts each case and returns their names."""
    names = set()
    for name, actual, expected in found:
        torch.testing.assert_close(actual, expected, atol=ATOL, rtol=0, msg=lambda text, name=name: f"{name}: {text}")
        names.add(name)
    return names


@ATTENTION
def test_pretraining_checkpoint(tmp_path, attention):
    model = imported(VLMoForPreTraining, reference_file("pretrain"), tmp_path)
    model.set_attn_implementation(attention)
    names = check(cases.pretraining_cases(model))
    every = {name for name in outputs() if not name.startswith(("in.", "vqa.", "nlvr2.", "irtr."))}
    assert names == every


@ATTENTION
def test_vqa_checkpoint(tmp_path, attention):
    model = imported(VLMoForVisualQuestionAnswering, reference_file("vqa"), tmp_path)
    model.set_attn_implementation(attention)
    check(cases.vqa_cases(model))


@ATTENTION
def test_nlvr2_checkpoint(tmp_path, attention):
    model = imported(VLMoForVisualReasoning, reference_file("nlvr2"), tmp_path)
    model.set_attn_implementation(attention)
    check(cases.nlvr2_cases(model))


@ATTENTION
def test_retrieval_checkpoint(tmp_path, attention):
    model = imported(VLMoForImageTextRetrieval, reference_file("irtr"), tmp_path)
    model.set_attn_implementation(attention)
    assert check(cases.retrieval_cases(model)) == {name for name in outputs() if name.startswith("irtr.")}


def test_retrieval_checkpoint_imported_at_128_pixels(tmp_path):
    model = imported(VLMoForImageTextRetrieval, reference_file("irtr"), tmp_path, image_size=128)
    assert model.config.image_size == 128
    check(cases.resize_cases(model))


@ATTENTION
def test_checkpoint_with_absolute_positions_equals_a_plain_implementation(tmp_path, attention):
    file = cases.write_absolute(tmp_path)
    model = imported(VLMoForImageTextRetrieval, file, tmp_path, num_attention_heads=cases.ABSOLUTE.heads)
    model.set_attn_implementation(attention)
    check(cases.absolute_cases(model, file))
