"""The published implementation's outputs for a tiny checkpoint in its own layout, reproduced to 1e-5."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from vlmo.interop.official import from_published
from vlmo.model import VLMoConfig, VLMoForImageTextRetrieval, VLMoForPreTraining
from vlmo.model.position import resize_bias_table
from vlmo.objectives.itc import itc_loss
from vlmo.objectives.itm import itm_loss
from vlmo.objectives.mlm import mlm_loss

REFERENCE = Path(__file__).parent / "reference"
ATOL = 1e-5  # float32, two implementations that sum in different orders


def published_config(**changes) -> VLMoConfig:
    return VLMoConfig.tiny(max_text_positions=196, vocab_size=96, **changes)


def load(cls, name: str, **changes):
    weights, unused = from_published(load_file(REFERENCE / f"tiny_rel.{name}.weights.safetensors"))
    model = cls(published_config(**changes)).eval()
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert not unexpected
    assert set(unused) <= {"text_embeddings.position_ids", "text_embeddings.position_embeddings.weight"}
    return model, missing


@pytest.fixture(scope="module")
def cases() -> dict[str, torch.Tensor]:
    return load_file(REFERENCE / "tiny_rel.cases.safetensors")


@pytest.fixture(scope="module", params=["sdpa", "eager"])
def model(request) -> VLMoForPreTraining:
    model, missing = load(VLMoForPreTraining, "pretrain")
    assert not missing
    model.set_attn_implementation(request.param)
    return model


def close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(actual, expected, atol=ATOL, rtol=0)


def text_of(cases, name: str = "input_ids") -> dict[str, torch.Tensor]:
    return {"input_ids": cases[f"in.{name}"], "attention_mask": cases["in.attention_mask"]}


@torch.no_grad()
def test_hidden_states_of_all_three_ways_in(model, cases):
    pixels = cases["in.pixel_values"]
    close(model.vlmo(pixel_values=pixels).last_hidden_state, cases["image.hidden"])
    close(model.vlmo(**text_of(cases)).last_hidden_state, cases["text.hidden"])
    fused = model.vlmo(pixel_values=pixels, **text_of(cases))
    close(fused.text_hidden_state, cases["fused.text_hidden"])
    close(fused.image_hidden_state, cases["fused.image_hidden"])
    close(fused.pooler_output, cases["fused.pooled"])


@torch.no_grad()
def test_itc_vectors_and_loss_of_both_endings(model, cases):
    backbone = model.vlmo
    pixels, text = cases["in.pixel_values"], text_of(cases)
    image_own, image_fusion = backbone.contrast_endings(backbone.join(image=backbone.embed_image(pixels), grid=(4, 4)))
    text_own, text_fusion = backbone.contrast_endings(
        backbone.join(text=backbone.embed_text(text["input_ids"]), attention_mask=text["attention_mask"])
    )
    own, fusion = model.contrast_head, model.fusion_contrast_head
    close(own.embed_image(image_own), cases["image.itc"])
    close(own.embed_text(text_own), cases["text.itc"])
    close(fusion.embed_image(image_fusion), cases["image.itc_vl"])
    close(fusion.embed_text(text_fusion), cases["text.itc_vl"])
    close(model.get_image_features(pixels), cases["image.itc"])
    close(model.get_text_features(**text), cases["text.itc"])
    close(model(pixel_values=pixels, **text).logits_per_image, cases["itc.logits_per_image"])
    losses = [
        itc_loss(cases["image.itc"], cases["text.itc"], logit_scale=own.logit_scale),
        itc_loss(cases["image.itc_vl"], cases["text.itc_vl"], logit_scale=fusion.logit_scale),
    ]
    close(sum(losses) / 2, cases["itc.loss"])


@torch.no_grad()
def test_mlm_logits_and_loss(model, cases):
    fused = model.vlmo(pixel_values=cases["in.pixel_values"], **text_of(cases, "mlm_input_ids"))
    close(model.mlm_head(fused.text_hidden_state), cases["mlm.logits"])
    labels = cases["in.mlm_labels"]
    loss = mlm_loss(model.mlm_head(fused.text_hidden_state[labels != -100]), labels[labels != -100])
    close(loss * 0.25, cases["mlm.loss_times_quarter"])


@torch.no_grad()
def test_itm_logits_and_loss(model, cases):
    pixels, ids, mask = cases["in.pixel_values"], cases["in.input_ids"], cases["in.attention_mask"]
    image, text = cases["in.itm_negative_image"], cases["in.itm_negative_text"]
    logits = model.match(
        torch.cat([pixels, pixels[image], pixels]),
        torch.cat([ids, ids, ids[text]]),
        torch.cat([mask, mask, mask[text]]),
    )
    close(logits, cases["itm.logits"])
    labels = torch.tensor([1] * 4 + [0] * 8)
    close(itm_loss(logits, labels), cases["itm.loss"])


@torch.no_grad()
def test_retrieval_fine_tuned_checkpoint(cases):
    model, missing = load(VLMoForImageTextRetrieval, "irtr")
    assert all("match_head" in name or "vision_language" in name for name in missing)
    output = model(pixel_values=cases["in.pixel_values"], **text_of(cases))
    close(output.image_embeds, cases["irtr.image"])
    close(output.text_embeds, cases["irtr.text"])
    loss = itc_loss(output.image_embeds, output.text_embeds, logit_scale=model.contrast_head.logit_scale)
    close(loss, cases["irtr.loss"])


@torch.no_grad()
def test_table_resized_to_128_pixels():
    expected = load_file(REFERENCE / "tiny_rel.resize128.cases.safetensors")
    model, _ = load(VLMoForImageTextRetrieval, "irtr")
    table = resize_bias_table(model.vlmo.position_bias.table, source=(4, 4), target=(8, 8))
    close(table, expected["relative_position_bias_table"])
    close(model.get_image_features(expected["in.pixel_values"]), expected["irtr.image"])
    close(model.get_text_features(expected["in.input_ids"], expected["in.attention_mask"]), expected["irtr.text"])
