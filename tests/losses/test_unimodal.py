"""The visual tokenizer, stage 1 and stage 2: losses by hand, and what they train."""

import math

import pytest
import torch
from tests.losses.steps import close, gradients, train
from tests.toy_batch import FixedTokens, make_batch
from tests.toy_model import pictures, toy

from vlmo.losses.masked import masked_loss
from vlmo.model import (
    VLMoForImageClassification,
    VLMoForImageTextRetrieval,
    VLMoForMaskedImageModeling,
    VLMoForMaskedLM,
)
from vlmo.model.visual_tokenizer import VQVisualTokenizer, VQVisualTokenizerConfig
from vlmo.tasks.language import LanguageObjective
from vlmo.tasks.tokenizer import VisualTokenizerObjective
from vlmo.tasks.vision import VisionObjective


def stage_1() -> VisionObjective:
    return VisionObjective(toy(VLMoForMaskedImageModeling), tokenizer=FixedTokens())


def test_loss_is_the_mean_over_masked_tokens():
    # Two classes: logits (0, 0) cost log 2; logits (0, log 3) give the classes 1/4 and 3/4.
    logits = torch.tensor([[0.0, 0.0], [0.0, math.log(3)], [0.0, math.log(3)]])
    expected = (math.log(2) + math.log(4) + math.log(4 / 3)) / 3
    assert masked_loss(logits, torch.tensor([1, 0, 1])).item() == pytest.approx(expected)


def test_worst_positions_are_left_out_and_labels_smoothed():
    # Losses log 2, log 4 and log 4/3: the largest of three is left out from a share of 1/3 on.
    logits, labels = (
        torch.tensor([[0.0, 0.0], [0.0, math.log(3)], [0.0, math.log(3)]]),
        torch.tensor([1, 0, 1]),
    )
    assert masked_loss(logits, labels, drop_worst=0.34).item() == pytest.approx(math.log(4 / 3))
    assert masked_loss(logits, labels, drop_worst=0.3).item() == pytest.approx(
        (math.log(2) + math.log(4 / 3)) / 2
    )
    smooth = 0.9 * math.log(4 / 3) + 0.1 * (math.log(4 / 3) + math.log(4)) / 2
    assert masked_loss(logits[2:], labels[2:], label_smoothing=0.1).item() == pytest.approx(smooth)


def test_loss_of_nothing_is_zero_with_a_gradient():
    logits = torch.zeros(0, 5, requires_grad=True)
    value = masked_loss(logits, torch.zeros(0, dtype=torch.long))
    value.backward()
    assert value.item() == 0
    assert logits.grad.shape == (0, 5)


@torch.no_grad()
@pytest.mark.parametrize(
    "run",
    [
        lambda pixels: stage_1()(make_batch() | {"pixel_values": pixels})["loss"],
        lambda pixels: toy(VLMoForImageClassification, num_labels=5)(pixels).logits,
        lambda pixels: toy(VLMoForImageTextRetrieval).get_image_features(pixels),
    ],
)
def test_images_may_be_8_bit(run):
    shape = make_batch()["pixel_values"].shape
    levels = torch.randint(
        0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    assert torch.equal(run(levels), run((levels.float() - 127.5) / 127.5))
    assert not torch.equal(run(levels), run(levels.float()))


@torch.no_grad()
def test_vision_stage_predicts_tokens_at_masked_patches():
    objective, batch = stage_1(), make_batch()
    losses = objective(batch)
    tokens = FixedTokens().tokenize(batch["pixel_values"], grid=(4, 4))
    full = objective.model(
        batch["pixel_values"], bool_masked_pos=batch["bool_masked_pos"], labels=tokens
    )
    close(losses["loss"], full.loss)
    close(losses["mim"], full.loss)
    right = (full.reconstruction.argmax(dim=-1) == tokens)[batch["bool_masked_pos"]]
    close(losses["mim_accuracy"], right.float().mean())


def test_vision_stage_trains_the_image_side():
    objective = stage_1()
    moved = {
        name for name, gradient in gradients(objective, make_batch()).items() if gradient.any()
    }
    text_side = ("vlmo.text_embeddings.", ".experts.language.", ".experts.vision_language.")
    every = {name for name, _ in objective.model.named_parameters()}
    assert moved == {name for name in every if not any(part in name for part in text_side)}


def test_vision_stage_refuses_more_tokens_than_the_head_has():
    model = toy(VLMoForMaskedImageModeling, num_visual_tokens=63)
    with pytest.raises(ValueError, match="tokenizer has 64 tokens, the model's head 63"):
        VisionObjective(model, tokenizer=FixedTokens())


@pytest.mark.parametrize("attention", ["shared", "separate"])
def test_language_stage_moves_only_the_text_side(attention):
    objective = LanguageObjective(toy(VLMoForMaskedLM, attention=attention).train())
    before = {name: parameter.clone() for name, parameter in objective.model.named_parameters()}
    train(objective, steps=3)
    frozen = ["vlmo.image_embeddings.", ".gamma_", ".norm1.", ".attention.", ".experts.vision."]
    frozen += [".experts.vision_language."]
    trained = [".experts.language.", "vlmo.text_embeddings.", "vlmo.modality_types.", "vlmo.norm."]
    trained += ["vlmo.position_bias.", "mlm_head."]
    if attention == "separate":
        trained += [
            ".norm1.language.",
            ".attention.qkv.language.",
            ".attention.projection.language.",
        ]
        frozen = [
            part.replace(".norm1.", ".norm1.vision.") for part in frozen if part != ".attention."
        ]
        frozen += [".attention.qkv.vision.", ".attention.projection.vision."]
    for name, parameter in objective.model.named_parameters():
        is_frozen, is_trained = (any(part in name for part in parts) for parts in (frozen, trained))
        assert is_frozen != is_trained, name
        assert parameter.requires_grad == is_trained, name
        assert torch.equal(parameter, before[name]) == is_frozen, name


@torch.no_grad()
def test_language_stage_computes_masked_positions_only(monkeypatch):
    objective, batch = LanguageObjective(toy(VLMoForMaskedLM)), make_batch()
    shapes = []
    objective.model.mlm_head.register_forward_hook(
        lambda _, given, __: shapes.append(tuple(given[0].shape))
    )
    losses = objective(batch)
    assert shapes == [(4, 32)]  # four masked words in the batch
    full = objective.model(
        batch["mlm_input_ids"], batch["attention_mask"], labels=batch["mlm_labels"]
    )
    close(losses["loss"], full.loss)
    chosen = batch["mlm_labels"] != -100
    right = full.logits.argmax(dim=-1)[chosen] == batch["mlm_labels"][chosen]
    close(losses["mlm_accuracy"], right.float().mean())


def test_tokenizer_loss_is_the_sum_of_its_parts() -> None:
    config = VQVisualTokenizerConfig(
        patch_size=8, hidden_size=16, intermediate_size=16, num_tokens=16, code_size=4
    )
    losses = VisualTokenizerObjective(VQVisualTokenizer(config).train())(
        {"pixel_values": pictures(16, size=(32, 32))}
    )
    assert set(losses) == {"loss", "reconstruction", "commitment", "perplexity"}
    assert all(value.shape == () for value in losses.values())
    assert torch.allclose(losses["loss"], losses["reconstruction"] + losses["commitment"])
    assert [name for name, value in losses.items() if value.requires_grad] == ["loss"]
