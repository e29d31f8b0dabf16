"""BEiT-3's published layout gives what a second, plain implementation of it gives."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from tests.parity.plain import gelu
from tests.parity.plain_beit3 import (
    BASE,
    LARGE,
    PlainBEiT3,
    Sizes,
    checkpoint_shapes,
    fine_tuned_weights,
    random_weights,
)
from tests.parity.test_beit import close
from torch import Tensor

from vlmo.checkpoints import beit3
from vlmo.checkpoints.layout import Conversion
from vlmo.model import (
    VLMoConfig,
    VLMoForImageCaptioning,
    VLMoForImageClassification,
    VLMoForImageTextRetrieval,
    VLMoForMaskedLM,
    VLMoForVisualQuestionAnswering,
    VLMoForVisualReasoning,
    VLMoModel,
    VLMoPreTrainedModel,
)

SIZES = Sizes()
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
    """Token ids, and 0 where they are padding."""
    ids = torch.randint(2, SIZES.vocabulary, (len(lengths), max(lengths)))
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    return ids.masked_fill(~mask, 1), mask.long()


def pictures(count: int) -> Tensor:
    return torch.randn(count, 3, SIZES.patch * SIZES.grid, SIZES.patch * SIZES.grid)


@pytest.mark.parametrize("lengths", [(1, 1, 1), (7, 3, 1), (16, 16, 9), (48, 2, 31)])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@torch.no_grad()
def test_states_and_retrieval_vectors_are_those_of_the_plain_implementation(lengths, attention):
    weights = random_weights(SIZES, contrast=True)
    plain = PlainBEiT3(weights, SIZES)
    model = load(beit3.convert(weights, num_attention_heads=SIZES.heads), attention=attention)
    pixels, (ids, mask) = pictures(len(lengths)), texts(lengths)
    kept = mask.bool()
    close(model.vlmo(pixel_values=pixels).last_hidden_state, plain.image(pixels))
    close(
        model.vlmo(input_ids=ids, attention_mask=mask).last_hidden_state[kept],
        plain.text(ids, mask)[kept],
    )
    pair, expected = (
        model.vlmo(pixel_values=pixels, input_ids=ids, attention_mask=mask),
        plain.fused(pixels, ids, mask),
    )
    num_image = SIZES.grid**2 + 1
    close(pair.image_hidden_state, expected[:, :num_image])
    close(pair.text_hidden_state[kept], expected[:, num_image:][kept])
    close(pair.last_hidden_state[:, :num_image], expected[:, :num_image])  # image first
    output = model(pixel_values=pixels, input_ids=ids, attention_mask=mask)
    images, captions = plain.image_vector(pixels), plain.text_vector(ids, mask)
    close(output.image_embeds, images)
    close(output.text_embeds, captions)
    close(output.logits_per_image, weights["logit_scale"].exp() * images @ captions.T)
    with pytest.raises(ValueError, match="no matching head"):
        model.match(pixels, ids)


@pytest.mark.parametrize(
    ("name", "sizes", "preset"),
    [("base", BASE, VLMoConfig.beit3_base), ("large", LARGE, VLMoConfig.beit3_large)],
    ids=["base", "large"],
)
@pytest.mark.parametrize("contrast", [False, True])
def test_released_sizes_are_our_presets(name, sizes, preset, contrast):
    tensors = {
        key: torch.empty(shape, device="meta")
        for key, shape in checkpoint_shapes(sizes, contrast=contrast).items()
    }
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


def plain_answers(plain: PlainBEiT3, pixels: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
    pooled = plain.linear(
        plain.norm(plain.fused(pixels, ids, mask)[:, 0], "pooler.norm"), "pooler.dense"
    ).tanh()
    return plain.linear(gelu(plain.norm(plain.linear(pooled, "head.0"), "head.1")), "head.3")


def plain_statements(plain: PlainBEiT3, pixels: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
    states = [plain.fused(one, ids, mask) for one in pixels.unbind(1)]
    first = torch.cat(
        [state[:, place] for state in states for place in (0, SIZES.grid**2 + 1)], dim=-1
    )
    inner = plain.linear(plain.norm(first, "head.norm1"), "head.dense1")
    return plain.linear(gelu(plain.norm(inner, "head.norm2")), "head.dense2")


def plain_classes(plain: PlainBEiT3, pixels: Tensor) -> Tensor:
    return plain.linear(plain.norm(plain.image(pixels)[:, 1:].mean(dim=1), "fc_norm"), "head")


@pytest.mark.parametrize(
    ("task", "model_class", "plain"),
    [
        ("vqa", VLMoForVisualQuestionAnswering, plain_answers),
        ("nlvr2", VLMoForVisualReasoning, plain_statements),
        ("imagenet", VLMoForImageClassification, plain_classes),
    ],
)
@torch.no_grad()
def test_logits_of_a_task_are_those_of_the_plain_implementation(task, model_class, plain):
    weights = fine_tuned_weights(SIZES, task)
    model = load(beit3.convert(weights, num_attention_heads=SIZES.heads))
    assert isinstance(model, model_class)
    assert task != "nlvr2" or model.config.id2label == {0: "False", 1: "True"}
    pixels = pictures(6).unflatten(0, (3, 2)) if task == "nlvr2" else pictures(3)
    given = (pixels,) if task == "imagenet" else (pixels, *texts((7, 3, 1)))
    close(model(*given).logits, plain(PlainBEiT3(weights, SIZES), *given))


SPECIAL = {
    "cls_token_id": 0,
    "pad_token_id": 1,
    "sep_token_id": 2,
    "mask_token_id": SIZES.vocabulary - 1,
}


@pytest.fixture(scope="module")
def captioner() -> tuple[PlainBEiT3, VLMoForImageCaptioning]:
    torch.manual_seed(0)
    weights = fine_tuned_weights(SIZES, "captions")
    weights["beit3.text_embed.weight"] *= 3  # so that words matter
    return PlainBEiT3(weights, SIZES), load(beit3.convert(weights, num_attention_heads=SIZES.heads))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@torch.no_grad()
def test_logits_of_captions_are_those_of_the_plain_implementation(captioner, attention):
    plain, model = captioner
    assert isinstance(model, VLMoForImageCaptioning)
    pixels, (ids, mask) = pictures(3), texts((7, 3, 1))
    model.set_attn_implementation(attention)
    logits = model(ids, mask, pixels).logits
    close(logits[mask.bool()], plain.caption_logits(pixels, ids, mask)[mask.bool()])
    later = ids.clone()
    later[0, 4] = 2 + (ids[0, 4] - 1) % 59  # another word
    assert torch.equal(model(later, mask, pixels).logits[0, :4], logits[0, :4])


@pytest.mark.parametrize(("bias", "lengths"), [(0.0, {9}), (1.0, {2, 3})])
@torch.no_grad()
def test_captions_are_those_of_the_plain_implementation_without_a_cache(captioner, bias, lengths):
    plain, model = captioner
    plain.weights["mlm_head.bias"][2] += bias  # so that captions end
    model.mlm_head.decoder.bias[2] += bias
    torch.manual_seed(100)
    pixels, tokenizer = 3 * pictures(6), SimpleNamespace(**SPECIAL)
    words = {"first": 0, "last": 2, "mask": SPECIAL["mask_token_id"], "longest": 9}
    expected = [plain.greedy_caption(each, **words) for each in pixels]
    assert set(map(len, expected)) == lengths
    found = model.generate(pixels, tokenizer=tokenizer, num_beams=1, max_new_tokens=8).tolist()
    assert found == [each + [1] * (max(lengths) - len(each)) for each in expected]
    for beams, penalty in ((2, 1.0), (3, 0.6), (4, 0.0)):
        options = {"num_beams": beams, "length_penalty": penalty, "max_new_tokens": 8}
        rows = model.generate(pixels[:2], tokenizer=tokenizer, **options).tolist()
        best = [
            plain.beam_caption(each, beams=beams, penalty=penalty, **words) for each in pixels[:2]
        ]
        assert rows == [each + [1] * (max(map(len, best)) - len(each)) for each in best]


def test_heads_without_a_counterpart_are_unused_and_strangers_unknown():
    weights = fine_tuned_weights(SIZES, "captions") | {
        "mim_head.bias": torch.zeros(3),
        "box_head.weight": torch.zeros(3),
    }
    conversion = beit3.convert(weights, num_attention_heads=SIZES.heads)
    assert conversion.model_class is VLMoForMaskedLM
    assert set(conversion.tensors.unused) == {"beit3.vision_embed.mask_token", "mim_head.bias"}
    assert conversion.tensors.unknown == ["box_head.weight"]
    answers = fine_tuned_weights(SIZES, "vqa") | {"mlm_head.bias": torch.zeros(SIZES.vocabulary)}
    assert "mlm_head.bias" in beit3.convert(answers, num_attention_heads=SIZES.heads).tensors.unused


def test_lost_tensors_are_not_made_up():
    weights = random_weights(SIZES, contrast=True)
    without = {
        key: tensor
        for key, tensor in weights.items()
        if not key.startswith("beit3.encoder.layer_norm.")
    }
    answers = fine_tuned_weights(SIZES, "vqa")
    del answers["pooler.norm.weight"]
    for file in (without, answers):
        assert (
            "vlmo.norm.vision.weight"
            not in beit3.convert(file, num_attention_heads=SIZES.heads).weights
        )
    del weights["beit3.encoder.layers.1.self_attn.k_proj.B.weight"]
    made = beit3.convert(weights, num_attention_heads=SIZES.heads).weights
    assert "vlmo.blocks.1.attention.qkv.language.weight" not in made
    assert "vlmo.blocks.1.attention.qkv.vision.weight" in made


def test_recognizes_beit3_and_nothing_else():
    assert beit3.recognizes(random_weights(SIZES, contrast=False))
    assert not beit3.recognizes({"beit3.text_embed.weight": torch.zeros(3)})
    assert not beit3.recognizes(
        {"cls_token": torch.zeros(3), "transformer.cls_token": torch.zeros(3)}
    )


POSITIONS = "beit3.encoder.embed_positions.{}.weight"


@pytest.mark.parametrize(
    ("changes", "heads", "message"),
    [
        ({}, None, "of width 32"),
        ({}, 5, "not a multiple of num_attention_heads 5"),
        ({POSITIONS.format("B"): None}, 4, r"embed_positions\.B\.weight"),
        ({POSITIONS.format("A"): torch.zeros(25, 32)}, 4, "23 rows"),
        ({POSITIONS.format("A"): torch.zeros(2, 32)}, 4, "0 rows"),
        ({POSITIONS.format("B"): torch.zeros(2, 32)}, 4, "0 text positions"),
        ({"beit3.text_embed.weight": torch.zeros(1, 32)}, 4, "1 words"),
        ({"beit3.encoder.layers.4.ffn.A.fc1.bias": torch.zeros(72)}, 4, r"0, 1, 2, 4\]; .* gaps"),
    ],
)
def test_what_cannot_be_converted_is_refused_by_name(changes, heads, message):
    weights = random_weights(SIZES, contrast=False) | changes
    weights = {key: tensor for key, tensor in weights.items() if tensor is not None}
    with pytest.raises(ValueError, match=message):
        beit3.convert(weights, num_attention_heads=heads)


def test_lost_blocks_of_a_published_width_are_said():
    for layers, said in ((12, False), (11, True)):
        sizes = Sizes(**vars(BASE) | {"layers": layers})
        tensors = {
            key: torch.empty(shape, device="meta")
            for key, shape in checkpoint_shapes(sizes, contrast=False).items()
        }
        assert any("is it whole" in note for note in beit3.convert(tensors).notes) == said
