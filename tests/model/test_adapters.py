"""Adapters of PEFT, as people put them around a model: they train alone and merge to a plain model."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tests.model.toy_retrieval import VARIANTS, check_equal, contrast_and_match_loss, outputs
from tests.toy_model import toy
from torch import nn

from vlmo import VLMoForImageTextRetrieval

# Adding an adapter to a weight once, or its output at each call: float32 sums in another order.
MERGED = 1e-5
STEPS = 12


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft 0.21 asks for it
@pytest.mark.parametrize("variant", VARIANTS)
def test_adapters_on_every_linear_layer_train_alone_and_merge(variant):
    before = toy(VLMoForImageTextRetrieval, **VARIANTS[variant])
    model = get_peft_model(copy.deepcopy(before), LoraConfig(r=4, lora_alpha=8, target_modules="all-linear"))
    check_equal(outputs(model.eval()), outputs(before))  # adapters start at zero
    linear = {name for name, module in before.named_modules() if isinstance(module, nn.Linear)}
    assert any(".attention.qkv." in name for name in linear)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert trained.keys() == {f"base_model.model.{name}.lora_{side}.default.weight" for name in linear for side in "AB"}
    optimizer, losses = torch.optim.AdamW(trained.values(), lr=3e-2), []
    for _ in range(STEPS):
        loss = contrast_and_match_loss(model.train())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    expected = outputs(model.eval())
    merged = model.merge_and_unload()
    assert type(merged) is VLMoForImageTextRetrieval
    assert merged.state_dict().keys() == before.state_dict().keys()
    check_equal(outputs(merged), expected, atol=MERGED)
