"""BEiT-3's published layout gives what a second, plain implementation of it gives."""

from __future__ import annotations

import pytest
import torch
from tests.parity.plain_beit3 import BASE, LARGE, PlainBEiT3, Sizes, fine_tuned_weights, random_weights, shapes
from torch import Tensor
from torch.nn import functional as F

from vlmo.checkpoints import beit3
from vlmo.checkpoints.layout import Conversion
from vlmo.model import (
    VLMoConfig,
    VLMoForImageClassification,
    VLMoForImageTextRetrieval,
    VLMoForVisualQuestionAnswering,
    VLMoForVisualReasoning,
    VLMoModel,
    VLMoPreTrainedModel,
)

ATOL = 1e-5  # float32, two implementations that sum in different orders
SIZES = Sizes()
TEXT_LENGTHS = [(1, 1, 1), (7, 3, 1), (16, 16, 9), (48, 2, 31)]
# With the contrast heads, in whole millions (cut, not rounded), from "Download Checkpoints" in the README of https://github.com/microsoft/unilm/tree/master/beit3
PUBLISHED_SIZES = {"base": 222, "large": 674}


def load(conversion: Conversion, *, attention: str = "sdpa") -> VLMoPreTrainedModel:
    """The model; nothing may be missing, left over or started anew."""
    assert conversion.tensors.unknown == []
    assert conversion.created == ""
    model = conversion.model_class(conversion.config).eval()
    model.set_attn_implementation(attention)
    weights = conversion.weights
    if conversion.model_class is VLMoModel:
        weights = {name.removeprefix("vlmo."): tensor for name, tensor in weights.items()}
    model.load_state_dict(weights, strict=True)
    return model


def texts(lengths: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Token ids, and True where they are padding."""
    ids = torch.randint(2, SIZES.vocabulary, (len(lengths), max(lengths)))
    hidden = torch.arange(max(lengths)) >= torch.tensor(lengths)[:, None]
    return ids.masked_fill(hidden, 1), hidden


def pictures(count: int) -> Tensor:
    return torch.randn(count, 3, SIZES.patch * SIZES.grid, SIZES.patch * SIZES.grid)


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, atol=ATOL, rtol=0)


@pytest.mark.parametrize("lengths", TEXT_LENGTHS)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@torch.no_grad()
def test_states_of_image_text_and_pair_are_those_of_the_plain_implementation(lengths, attention):
    weights = random_weights(SIZES, contrast=False)
    plain = PlainBEiT3(weights, SIZES)
    model = load(beit3.convert(weights, num_attention_heads=SIZES.heads), attention=attention)
    pixels, (ids, hidden) = pictures(len(lengths)), texts(lengths)
    kept, mask = ~hidden, (~hidden).long()
    close(model(pixel_values=pixels).last_hidden_state, plain.image(pixels))
    text = model(input_ids=ids, attention_mask=mask).last_hidden_state
    close(text[kept], plain.text(ids, hidden)[kept])
    pair, expected = model(pixel_values=pixels, input_ids=ids, attention_mask=mask), plain.fused(pixels, ids, hidden)
    num_image = SIZES.grid**2 + 1
    close(pair.image_hidden_state, expected[:, :num_image])
    close(pair.text_hidden_state[kept], expected[:, num_image:][kept])
    close(pair.last_hidden_state[:, :num_image], expected[:, :num_image])  # image first


@pytest.mark.parametrize("lengths", TEXT_LENGTHS)
@torch.no_grad()
def test_retrieval_vectors_are_those_of_the_plain_implementation(lengths):
    weights = random_weights(SIZES, contrast=True)
    plain = PlainBEiT3(weights, SIZES)
    model = load(beit3.convert(weights, num_attention_heads=SIZES.heads))
    pixels, (ids, hidden) = pictures(len(lengths)), texts(lengths)
    output = model(pixel_values=pixels, input_ids=ids, attention_mask=(~hidden).long())
    images, captions = plain.image_vector(pixels), plain.text_vector(ids, hidden)
    close(output.image_embeds, images)
    close(output.text_embeds, captions)
    close(output.logits_per_image, weights["logit_scale"].exp() * images @ captions.T)
    with pytest.raises(ValueError, match="no matching head"):
        model.match(pixels, ids)


def test_sizes_are_read_from_the_tensors():
    config = beit3.convert(random_weights(SIZES, contrast=True), num_attention_heads=SIZES.heads).config
    assert (config.hidden_size, config.num_hidden_layers, config.num_attention_heads) == (32, 3, 4)
    assert (config.intermediate_size, config.vocab_size, config.projection_size) == (72, 61, 24)
    assert (config.image_size, config.patch_size, config.grid) == (40, 8, (5, 5))
    assert config.max_text_positions == 48  # two rows of fifty are the offset


@pytest.mark.parametrize(
    ("name", "sizes", "preset"),
    [("base", BASE, VLMoConfig.beit3_base), ("large", LARGE, VLMoConfig.beit3_large)],
    ids=["base", "large"],
)
@pytest.mark.parametrize("contrast", [False, True])
def test_released_sizes_are_our_presets(name, sizes, preset, contrast):
    tensors = {key: torch.empty(shape, device="meta") for key, shape in shapes(sizes, contrast=contrast).items()}
    conversion = beit3.convert(tensors)
    assert conversion.config.to_dict() == preset().to_dict()
    assert (conversion.text, conversion.max_text_length) == ("sentencepiece", 64)
    with torch.device("meta"):
        model = (VLMoForImageTextRetrieval if contrast else VLMoModel)(preset())
    prefix = "" if contrast else "vlmo."
    needed = {f"{prefix}{key}": tensor.shape for key, tensor in model.state_dict().items()}
    assert {key: tensor.shape for key, tensor in conversion.weights.items()} == needed
    if contrast:
        assert sum(tensor.numel() for tensor in tensors.values()) // 10**6 == PUBLISHED_SIZES[name]


@torch.no_grad()
def test_answers_are_those_of_the_plain_implementation():
    weights = fine_tuned_weights(SIZES, "vqa")
    model = load(beit3.convert(weights, num_attention_heads=SIZES.heads))
    assert isinstance(model, VLMoForVisualQuestionAnswering)
    pixels, (ids, hidden) = pictures(3), texts((7, 3, 1))
    first = PlainBEiT3(weights, SIZES).fused(pixels, ids, hidden)[:, 0]
    pooled = linear(norm(first, weights, "pooler.norm"), weights, "pooler.dense").tanh()
    inner = F.gelu(norm(linear(pooled, weights, "head.0"), weights, "head.1"))
    close(model(pixels, ids, (~hidden).long()).logits, linear(inner, weights, "head.3"))


@torch.no_grad()
def test_judgements_of_two_images_are_those_of_the_plain_implementation():
    weights = fine_tuned_weights(SIZES, "nlvr2")
    model = load(beit3.convert(weights, num_attention_heads=SIZES.heads))
    assert isinstance(model, VLMoForVisualReasoning)
    assert model.config.id2label == {0: "False", 1: "True"}
    (ids, hidden), plain = texts((7, 3, 1)), PlainBEiT3(weights, SIZES)
    both = [pictures(3), pictures(3)]
    states = [plain.fused(pixels, ids, hidden) for pixels in both]
    first = torch.cat([state[:, place] for state in states for place in (0, SIZES.grid**2 + 1)], dim=-1)
    inner = F.gelu(norm(linear(norm(first, weights, "head.norm1"), weights, "head.dense1"), weights, "head.norm2"))
    logits = model(torch.stack(both, dim=1), ids, (~hidden).long()).logits
    close(logits, linear(inner, weights, "head.dense2"))


@torch.no_grad()
def test_classes_are_those_of_the_plain_implementation():
    weights = fine_tuned_weights(SIZES, "imagenet")
    model = load(beit3.convert(weights, num_attention_heads=SIZES.heads))
    assert isinstance(model, VLMoForImageClassification)
    mean = PlainBEiT3(weights, SIZES).image(pixels := pictures(2))[:, 1:].mean(dim=1)
    close(model(pixels).logits, linear(norm(mean, weights, "fc_norm"), weights, "head"))


def linear(states: Tensor, weights: dict[str, Tensor], name: str) -> Tensor:
    return states @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def norm(states: Tensor, weights: dict[str, Tensor], name: str) -> Tensor:
    return F.layer_norm(states, states.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"], eps=1e-5)


def test_heads_without_a_counterpart_are_unused_and_strangers_unknown():
    weights = random_weights(SIZES, contrast=False)
    weights |= {"mlm_head.weight": torch.zeros(3), "mim_head.bias": torch.zeros(3), "box_head.weight": torch.zeros(3)}
    conversion = beit3.convert(weights, num_attention_heads=SIZES.heads)
    assert conversion.model_class is VLMoModel
    assert set(conversion.tensors.unused) == {"beit3.vision_embed.mask_token", "mim_head.bias", "mlm_head.weight"}
    assert conversion.tensors.unknown == ["box_head.weight"]


def test_lost_norm_is_not_made_up():
    weights = random_weights(SIZES, contrast=True)
    without = {key: tensor for key, tensor in weights.items() if not key.startswith("beit3.encoder.layer_norm.")}
    answers = fine_tuned_weights(SIZES, "vqa")
    del answers["pooler.norm.weight"]
    for file in (without, answers):
        assert "vlmo.norm.vision.weight" not in beit3.convert(file, num_attention_heads=SIZES.heads).weights


def test_a_missing_projection_is_missed_by_name():
    weights = random_weights(SIZES, contrast=False)
    del weights["beit3.encoder.layers.1.self_attn.k_proj.B.weight"]
    conversion = beit3.convert(weights, num_attention_heads=SIZES.heads)
    assert "vlmo.blocks.1.attention.qkv.language.weight" not in conversion.weights
    assert "vlmo.blocks.1.attention.qkv.vision.weight" in conversion.weights


def test_recognises_beit3_and_nothing_else():
    assert beit3.recognises(random_weights(SIZES, contrast=False))
    assert not beit3.recognises({"beit3.text_embed.weight": torch.zeros(3)})
    assert not beit3.recognises({"cls_token": torch.zeros(3), "transformer.cls_token": torch.zeros(3)})


@pytest.mark.parametrize(
    ("changes", "arguments", "message"),
    [
        ({}, {}, "of width 32"),
        ({"beit3.encoder.embed_positions.B.weight": None}, {"num_attention_heads": 4}, r"embed_positions\.B\.weight"),
        ({"beit3.encoder.embed_positions.A.weight": torch.zeros(25, 32)}, {"num_attention_heads": 4}, "23 rows"),
        ({"beit3.encoder.embed_positions.A.weight": torch.zeros(2, 32)}, {"num_attention_heads": 4}, "0 rows"),
        (
            {"beit3.encoder.embed_positions.B.weight": torch.zeros(2, 32)},
            {"num_attention_heads": 4},
            "0 text positions",
        ),
        ({"beit3.text_embed.weight": torch.zeros(1, 32)}, {"num_attention_heads": 4}, "1 words"),
        (
            {"beit3.encoder.layers.4.ffn.A.fc1.bias": torch.zeros(72)},
            {"num_attention_heads": 4},
            r"0, 1, 2, 4\]; .* gaps",
        ),
        ({}, {"num_attention_heads": 5}, "not a multiple of num_attention_heads 5"),
    ],
)
def test_what_cannot_be_converted_is_refused_by_name(changes, arguments, message):
    weights = random_weights(SIZES, contrast=False) | changes
    with pytest.raises(ValueError, match=message):
        beit3.convert({key: tensor for key, tensor in weights.items() if tensor is not None}, **arguments)


def test_lost_blocks_of_a_published_width_are_said():
    for layers, said in ((12, False), (11, True)):
        sizes = Sizes(**vars(BASE) | {"layers": layers})
        tensors = {key: torch.empty(shape, device="meta") for key, shape in shapes(sizes, contrast=False).items()}
        assert any("is it whole" in note for note in beit3.convert(tensors).notes) == said
