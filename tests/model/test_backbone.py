"""The backbone: padding, attention implementations, image sizes, and what it refuses."""

import copy

import pytest
import torch
from tests.toy_model import BEIT3, pictures, texts, toy

from vlmo.model import (
    VLMoForMaskedImageModeling,
    VLMoForMaskedLM,
    VLMoForPreTraining,
    VLMoModel,
    language_stage_parameters,
)

PADDING_ATOL = 1e-6  # asked of float32; outputs are of size 1
CALM = 0.05  # shakes weights little, so that rounding stays at a third of that; a leak would be of size 0.2
IMPLEMENTATION_ATOL = 1e-5  # the two sum in different orders
POSITIONS = pytest.mark.parametrize("positions", ["relative", "absolute"])
VARIANTS = {"relative": {}, "absolute": {"position_embedding": "absolute"}, "beit3": BEIT3}
IMPLEMENTATIONS = ("eager", "sdpa")


def model_with(implementation: str, **changes) -> VLMoModel:
    model = toy(VLMoModel, **changes)
    model.set_attn_implementation(implementation)
    return model


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("with_image", [False, True])
@torch.no_grad()
def test_padding_never_changes_an_embedding(variant, implementation, with_image):
    model = model_with(implementation, size=CALM, **VARIANTS[variant])
    lengths = [5, 16, 1, 9]
    images = {"pixel_values": pictures(4)} if with_image else {}
    if variant == "beit3":  # two more norms in each layer round more than float32 leaves room for
        model = model.double()
    padded = model(**images, **texts(lengths, padded_to=24))
    for row, length in enumerate(lengths):
        image = {"pixel_values": images["pixel_values"][row : row + 1]} if with_image else {}
        alone = model(**image, input_ids=texts(lengths)["input_ids"][row : row + 1, :length])
        actual, expected = padded.text_hidden_state[row, :length], alone.text_hidden_state[0]
        torch.testing.assert_close(actual, expected, atol=PADDING_ATOL, rtol=0)
        for name in ("pooler_output", "image_hidden_state") if with_image else ("pooler_output",):
            torch.testing.assert_close(padded[name][row], alone[name][0], atol=PADDING_ATOL, rtol=0)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@torch.no_grad()
def test_hidden_words_have_no_influence_at_all(implementation):
    model = model_with(implementation)
    text = texts([5, 16])
    states = model(**text).last_hidden_state
    text["input_ids"][0, 5:] = 77
    assert torch.equal(model(**text).last_hidden_state[0, :5], states[0, :5])
    text["attention_mask"][0, 5] = 1
    assert not torch.allclose(model(**text).last_hidden_state[0, :5], states[0, :5], atol=1e-3)


@POSITIONS
def test_eager_and_sdpa_agree_in_states_and_gradients(positions):
    given = {"pixel_values": pictures(), **texts([5, 16])}
    results = []
    for implementation in IMPLEMENTATIONS:
        model = model_with(implementation, position_embedding=positions)
        states = model(**given).last_hidden_state
        states.square().mean().backward()
        results.append([states] + [p.grad for p in model.parameters() if p.grad is not None])
    assert len(results[0]) == len(results[1])
    for eager, sdpa in zip(*results, strict=True):
        torch.testing.assert_close(eager, sdpa, atol=IMPLEMENTATION_ATOL, rtol=1e-4)


@torch.no_grad()
def test_attention_weights_are_probabilities_without_padding():
    model = model_with("eager")
    attentions = model(pixel_values=pictures(), **texts([5, 8]), output_attentions=True).attentions
    assert [weights.shape for weights in attentions] == [(2, 2, 8 + 17, 8 + 17)] * 3
    for weights in attentions:
        torch.testing.assert_close(weights.sum(dim=-1), torch.ones(2, 2, 25))
        assert torch.all(weights[0, :, :, 5:8] == 0)
        assert torch.all(weights[1] > 0)


@pytest.mark.parametrize("num_fusion_layers", [1, 2, 3])
@pytest.mark.parametrize(
    ("modality", "inputs"), [("vision", {"pixel_values": pictures()}), ("language", texts([7, 5]))]
)
@torch.no_grad()
def test_itc_branches_differ_in_the_top_experts_alone(num_fusion_layers, modality, inputs):
    model = model_with("sdpa", num_fusion_layers=num_fusion_layers)
    # A second model, whose own experts of the top layers are the vision-language experts of the first.
    twin = copy.deepcopy(model)
    for block in twin.blocks[-num_fusion_layers:]:
        block.experts[modality].load_state_dict(block.experts["vision_language"].state_dict())
    own, fusion = model.encode_branches(**inputs)
    torch.testing.assert_close(own, model(**inputs).last_hidden_state[:, 0])
    torch.testing.assert_close(fusion, twin(**inputs).last_hidden_state[:, 0])
    assert not torch.allclose(own, fusion, atol=1e-3)
    assert torch.equal(*twin.encode_branches(**inputs))


@POSITIONS
@torch.no_grad()
def test_picture_sides_may_differ(positions):
    model = model_with("sdpa", position_embedding=positions)
    wide = model(pixel_values=pictures(size=(32, 96)), **texts([5, 5])).image_hidden_state
    high = model(pixel_values=pictures(size=(96, 32)), **texts([5, 5])).image_hidden_state
    assert wide.shape == high.shape == (2, 1 + 12, 32)
    flipped = pictures(size=(96, 32)).transpose(2, 3)
    assert not torch.allclose(
        model(pixel_values=flipped).last_hidden_state[:, 0], high[:, 0], atol=1e-3
    )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "neither pixel_values nor input_ids"),
        ({"pixel_values": pictures(3), **texts([5, 5])}, "3 images and 2 texts"),
        (
            {"pixel_values": pictures(size=(64, 60))},
            r"\(2, 3, 64, 60\).*multiples of the patch size 16",
        ),
        ({"pixel_values": pictures()[0]}, r"\(3, 64, 64\); expected \(batch, 3, height, width\)"),
        (
            {"pixel_values": pictures()[:, :1]},
            r"\(2, 1, 64, 64\); expected \(batch, 3, height, width\)",
        ),
        ({"input_ids": texts([5])["input_ids"][0]}, r"\(5,\); expected \(batch, text\)"),
        (
            texts([5, 5]) | {"attention_mask": torch.ones(2, 4)},
            r"attention_mask has shape \(2, 4\); expected \(2, 5\)",
        ),
        (texts([5]) | {"output_attentions": True}, "attn_implementation='eager'"),
    ],
)
def test_wrong_inputs_are_named(given, message):
    with pytest.raises(ValueError, match=message):
        model_with("sdpa")(**given)
    with pytest.raises(ValueError, match=r"\(2, 16\)"):
        model_with("sdpa").encode(
            pictures(), wanted=torch.ones(2, 9).bool(), mask_token=torch.zeros(32)
        )


def test_position_tables_and_class_token_are_never_decayed():
    token = "vlmo.image_embeddings.cls_token"
    assert toy(VLMoForPreTraining).no_weight_decay() == {token, "vlmo.position_bias.table"}
    assert toy(VLMoForMaskedImageModeling, position_embedding="absolute").no_weight_decay() == {
        token,
        "vlmo.image_embeddings.positions",
        "vlmo.text_embeddings.positions",
    }
    assert toy(VLMoModel).no_weight_decay() == {"image_embeddings.cls_token", "position_bias.table"}


OWN_PARTS = {
    "experts.language",
    "norm1.language",
    "attention.qkv.language",
    "attention.projection.language",
}


@pytest.mark.parametrize(
    ("changes", "block_parts"),
    [
        ({}, {"experts.language"}),
        ({"num_fusion_layers": 0}, {"experts.language"}),
        ({"experts": "shared"}, {"experts.shared"}),
        ({"attention": "separate"}, OWN_PARTS),
        (
            {"attention": "separate", "inner_norm": True},
            OWN_PARTS | {"attention.inner_norm.language"},
        ),
    ],
)
def test_language_stage_trains_the_text_side(changes, block_parts):
    model = toy(VLMoForMaskedLM, **changes)
    chosen = {id(parameter) for parameter in language_stage_parameters(model)}
    names = {name for name, parameter in model.named_parameters() if id(parameter) in chosen}
    prefixes = [f"vlmo.blocks.{layer}.{part}." for layer in range(3) for part in block_parts]
    prefixes += [
        "vlmo.text_embeddings.",
        "vlmo.modality_types.",
        "vlmo.norm.",
        "vlmo.position_bias.",
    ]
    assert names == {
        name for name, _ in model.named_parameters() if name.startswith(tuple(prefixes))
    }
    assert all(any(name.startswith(prefix) for name in names) for prefix in prefixes)
