"""Adapters of PEFT on attention and experts, and gradient checkpointing with and without them."""

import copy

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from PIL import Image
from tests.model.toy_retrieval import (
    VARIANTS,
    check_equal,
    contrast_and_match_loss,
    gradients,
    outputs,
)
from tests.toy_model import toy
from torch import nn
from transformers import pipeline

from vlmo import VLMoForImageTextRetrieval, VLMoProcessor

CAPTIONS = ["a red square", "a green circle on white", "two blue squares"]
ATTENTION_AND_EXPERTS = {
    "vlmo": ["qkv.shared", "projection.shared", "fc1", "fc2"],
    "beit3": ["qkv.vision", "qkv.language", "projection.vision", "projection.language", "fc1", "fc2"],
}

# Adding an adapter to a weight once, or its output at each call: float32 sums in another order.
MERGED = 1e-5
# Padding to another length: float32 sums in another order.
PADDED = 1e-5

# Two names that transformers is about to drop: peft 0.21 asks for the first, and people still call the second.
pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated:FutureWarning"),
]


def adapted(variant: str = "vlmo", **changes) -> tuple[PeftModel, nn.Module]:
    """A retrieval model with adapters, and a copy of the model before."""
    model = toy(VLMoForImageTextRetrieval, **VARIANTS[variant])
    before = copy.deepcopy(model)
    settings = {"r": 4, "lora_alpha": 8, "target_modules": ATTENTION_AND_EXPERTS[variant], **changes}
    return get_peft_model(model, LoraConfig(**settings)), before


def trained(model: nn.Module, loss_of, *, steps: int = 12) -> list[float]:
    """Losses while everything that wants a gradient is trained."""
    optimizer = torch.optim.AdamW([each for each in model.parameters() if each.requires_grad], lr=3e-2)
    model.train()
    losses = []
    for _ in range(steps):
        loss = loss_of(model)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    model.eval()
    return losses


@pytest.mark.parametrize("variant", VARIANTS)
def test_lora_trains_attention_and_experts_and_nothing_else(variant):
    model, before = adapted(variant, lora_dropout=0.1)
    check_equal(outputs(model.eval()), outputs(before))  # adapters start at zero
    wanted = {
        name
        for name, _ in before.named_modules()
        if name.endswith(tuple("." + n for n in ATTENTION_AND_EXPERTS[variant]))
    }
    # Per block: queries, keys and values, projection; two layers of each expert.
    experts = 2 * 3 + before.config.num_fusion_layers
    attention = 3 * (2 if variant == "beit3" else 1)
    assert len(wanted) == 2 * attention + 2 * experts
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    prefix = "base_model.model."
    assert trainable == {f"{prefix}{name}.lora_{side}.default.weight" for name in wanted for side in "AB"}

    losses = trained(model, contrast_and_match_loss)
    assert losses[-1] < 0.5 * losses[0]
    state = model.state_dict()
    assert all(state[name].any() for name in trainable)
    for name, value in before.state_dict().items():
        parent, _, leaf = name.rpartition(".")
        inner = ".base_layer" if parent in wanted else ""
        assert torch.equal(state[f"{prefix}{parent}{inner}.{leaf}"], value), name


def test_lora_finds_every_linear_layer_by_itself():
    model, before = adapted(target_modules="all-linear")
    linear = [name for name, module in before.named_modules() if isinstance(module, nn.Linear)]
    assert "vlmo.blocks.0.attention.qkv.shared" in linear
    found = [name for name, _ in model.named_parameters() if name.endswith("lora_A.default.weight")]
    assert {f"base_model.model.{name}.lora_A.default.weight" for name in linear} == set(found)
    losses = trained(model, contrast_and_match_loss)
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("variant", VARIANTS)
def test_merged_adapter_is_a_plain_model(variant, tmp_path):
    model, before = adapted(variant)
    trained(model, contrast_and_match_loss, steps=2)
    expected = outputs(model)
    merged = model.merge_and_unload()
    assert type(merged) is VLMoForImageTextRetrieval
    assert merged.state_dict().keys() == before.state_dict().keys()
    check_equal(outputs(merged), expected, atol=MERGED)
    merged.save_pretrained(tmp_path)
    check_equal(outputs(VLMoForImageTextRetrieval.from_pretrained(tmp_path)), outputs(merged))


def test_adapted_model_goes_into_a_pipeline(tmp_path):
    """As an object, or as the adapter's folder: model and processor are found where the adapter's base was."""
    toy(VLMoForImageTextRetrieval).save_pretrained(tmp_path / "base")
    processor = VLMoProcessor.train(CAPTIONS, vocab_size=96, min_frequency=1, image_size=64, max_text_length=16)
    processor.save_pretrained(tmp_path / "base")
    base = VLMoForImageTextRetrieval.from_pretrained(tmp_path / "base")
    model = get_peft_model(base, LoraConfig(r=4, target_modules=ATTENTION_AND_EXPERTS["vlmo"]))
    trained(model, contrast_and_match_loss, steps=2)
    model.save_pretrained(tmp_path / "adapter")
    picture = Image.linear_gradient("L").convert("RGB")
    encoded = processor(images=[picture] * 3, text=CAPTIONS, return_tensors="pt")
    with torch.no_grad():
        shares = model.match(**encoded).softmax(dim=-1)[:, 1].tolist()
    for given in (model, str(tmp_path / "adapter")):
        answers = pipeline("image-text-matching", model=given, device="cpu")(picture, text=CAPTIONS)
        scores = {entry["text"]: entry["score"] for entry in answers}
        assert scores == pytest.approx(dict(zip(CAPTIONS, shares, strict=True)), abs=PADDED)


# -------------------------------------------------------------------------------- checkpointing


def count_calls(module: nn.Module) -> list[int]:
    calls: list[int] = []
    module.register_forward_hook(lambda *_: calls.append(1))
    return calls


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", ["gradient_checkpointing_enable", "activation_checkpointing_enable"])
def test_checkpointing_recomputes_blocks_and_keeps_gradients(name, variant):
    expected = gradients(toy(VLMoForImageTextRetrieval, **VARIANTS[variant]))
    model = toy(VLMoForImageTextRetrieval, **VARIANTS[variant])
    getattr(model, name)()
    calls = count_calls(model.vlmo.blocks[0].attention)
    check_equal(gradients(model), expected)
    assert len(calls) == 2 * 3  # image, text and pair, each forward and again backward
