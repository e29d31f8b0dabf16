"""The peer of stage3_step.py: the published stage 3 step, written plainly on the same weights.

Six passes, each of which embeds its images and texts anew and looks up its own position bias; texts padded to one
length; attention scores multiplied, masked and normalised in float32; the final norm on every token; word logits at
every text position. Losses are those of `VisionLanguageObjective` with the paper's settings.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from vlmo.losses.itm import sample_hard_negatives, sample_uniform
from vlmo.model import VLMoConfig, VLMoForPreTraining
from vlmo.model.embeddings import relative_position_index
from vlmo.model.multiway import LANGUAGE, SHARED, VISION, VISION_LANGUAGE, Expert, MultiwayBlock
from vlmo.types import Batch

MLM_WEIGHT = 0.25


@dataclass(frozen=True)
class _Tokens:
    """Hidden states with what each block needs beside them."""

    hidden: Float[Tensor, "batch seq dim"]
    num_text: int
    mask: Bool[Tensor, "batch seq"]
    bias: list[Float[Tensor, "heads seq seq"]]


def check_plain(config: VLMoConfig) -> None:
    """Raises ValueError for a variant of the model that is not written here."""
    variant = (
        config.attention,
        config.experts,
        config.position_embedding,
        config.contrast_fusion_branch,
    )
    if variant != ("shared", "multiway", "relative", True):
        raise ValueError(
            f"the plain step knows VLMo-Base and -Large as published, not {variant}; choose base or large"
        )


def plain_step(model: VLMoForPreTraining, batch: Batch) -> dict[str, Tensor]:
    """`loss` and its parts."""
    pixels, mask, ids = batch["pixel_values"], batch["attention_mask"], batch["input_ids"]
    heads = (model.contrast_head, model.fusion_contrast_head)
    images = [
        head.embed_image(first)
        for head, first in zip(heads, _endings(model, _tokens(model, pixels=pixels)), strict=True)
    ]
    texts = [
        head.embed_text(first)
        for head, first in zip(
            heads, _endings(model, _tokens(model, ids=ids, mask=mask)), strict=True
        )
    ]
    own = torch.arange(len(ids), device=ids.device)
    contrasts, first_logits = [], None
    for head, image, text in zip(heads, images, texts, strict=True):
        logits = head(image, text)
        first_logits = logits.detach() if first_logits is None else first_logits
        contrasts.append((F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2)
    itc = torch.stack(contrasts).mean()

    masked = _fused(model, pixels=pixels, ids=batch["mlm_input_ids"], mask=mask)
    word_logits = model.mlm_head(masked[:, : ids.shape[1]])
    mlm = F.cross_entropy(
        word_logits.flatten(0, 1).float(), batch["mlm_labels"].flatten(), ignore_index=-100
    )

    text_of_image, image_of_text = _negatives(first_logits, batch["step_seed"])
    pairs = [
        _fused(model, pixels=pixels, ids=ids, mask=mask),
        _fused(model, pixels=pixels[image_of_text], ids=ids, mask=mask),
        _fused(model, pixels=pixels, ids=ids[text_of_image], mask=mask[text_of_image]),
    ]
    match_logits = torch.cat([model.match_head(model.vlmo.pooler(states)) for states in pairs])
    labels = torch.cat([torch.ones_like(own), torch.zeros_like(own), torch.zeros_like(own)])
    itm = F.cross_entropy(match_logits.float(), labels)
    return {
        "loss": itc + MLM_WEIGHT * mlm + itm,
        "itc": itc.detach(),
        "mlm": mlm.detach(),
        "itm": itm.detach(),
    }


def _negatives(
    logits: Float[Tensor, "batch batch"], step_seed: Tensor
) -> tuple[Int[Tensor, "batch"], Int[Tensor, "batch"]]:
    uniform = sample_uniform(step_seed, batch=len(logits), rounds=2)
    own = torch.eye(len(logits), dtype=torch.bool, device=logits.device)
    text_of_image, _ = sample_hard_negatives(logits, excluded=own, uniform=uniform[0])
    image_of_text, _ = sample_hard_negatives(logits.T, excluded=own, uniform=uniform[1])
    return text_of_image, image_of_text


def _tokens(
    model: VLMoForPreTraining,
    *,
    pixels: Tensor | None = None,
    ids: Tensor | None = None,
    mask: Tensor | None = None,
) -> _Tokens:
    backbone = model.vlmo
    parts, masks, grid, num_text = [], [], None, 0
    if ids is not None and mask is not None:
        parts.append(backbone.text_embeddings(ids) + backbone.modality_types.weight[0])
        masks.append(mask.bool())
        num_text = ids.shape[1]
    if pixels is not None:
        parts.append(backbone.image_embeddings(pixels) + backbone.modality_types.weight[1])
        masks.append(torch.ones(parts[-1].shape[:2], dtype=torch.bool, device=pixels.device))
        grid = backbone.config.grid
    positions = backbone.position_bias
    index = relative_position_index(
        num_text=num_text, grid=grid, max_text=positions.max_text, table_grid=positions.grid
    ).to(parts[0].device)
    bias = (
        F.embedding(index, positions.table)
        .permute(2, 0, 1)
        .contiguous()
        .chunk(len(backbone.blocks))
    )
    return _Tokens(
        torch.cat(parts, dim=1), num_text=num_text, mask=torch.cat(masks, dim=1), bias=list(bias)
    )


def _endings(model: VLMoForPreTraining, tokens: _Tokens) -> list[Float[Tensor, "batch dim"]]:
    """First token after the own experts, and after the top blocks' `vision_language` experts."""
    backbone = model.vlmo
    depth, fusion = len(backbone.blocks), backbone.config.num_fusion_layers
    below = _run(model, tokens, tokens.hidden, range(depth - fusion), fusion=False)
    top = range(depth - fusion, depth)
    return [
        backbone.norm(_run(model, tokens, below, top, fusion=fused))[:, 0]
        for fused in (False, True)
    ]


def _fused(
    model: VLMoForPreTraining, *, pixels: Tensor, ids: Tensor, mask: Tensor
) -> Float[Tensor, "batch seq dim"]:
    tokens = _tokens(model, pixels=pixels, ids=ids, mask=mask)
    return model.vlmo.norm(
        _run(model, tokens, tokens.hidden, range(len(model.vlmo.blocks)), fusion=True)
    )


def _run(
    model: VLMoForPreTraining, tokens: _Tokens, hidden: Tensor, layers: range, *, fusion: bool
) -> Tensor:
    for layer in layers:
        hidden = _block(model.vlmo.blocks[layer], hidden, tokens, tokens.bias[layer], fusion=fusion)
    return hidden


def _block(
    block: MultiwayBlock, hidden: Tensor, tokens: _Tokens, bias: Tensor, *, fusion: bool
) -> Tensor:
    hidden = hidden + block.gamma_1 * _attention(block, block.norm1[SHARED](hidden), tokens, bias)
    if fusion and VISION_LANGUAGE in block.experts:
        changed = _expert(block.experts[VISION_LANGUAGE], hidden)
    else:
        text, image = hidden[:, : tokens.num_text], hidden[:, tokens.num_text :]
        changed = torch.cat(
            [_expert(block.experts[LANGUAGE], text), _expert(block.experts[VISION], image)], dim=1
        )
    return hidden + block.gamma_2 * changed


def _expert(expert: Expert, hidden: Tensor) -> Tensor:
    """Written out, as our module computes GELU again backward instead of keeping its result: a saving of ours alone."""
    return expert.fc2(F.gelu(expert.fc1(expert.norm(hidden))))


def _attention(block: MultiwayBlock, hidden: Tensor, tokens: _Tokens, bias: Tensor) -> Tensor:
    attention = block.attention
    heads = attention.config.num_attention_heads
    query, key, value = (
        attention.qkv[SHARED](hidden).unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
    )
    with torch.autocast(hidden.device.type, enabled=False):
        scores = (query * query.shape[-1] ** -0.5).float() @ key.float().transpose(-2, -1)
        scores = scores + bias
        scores = scores.masked_fill(~tokens.mask[:, None, None], float("-inf"))
        weights = scores.softmax(dim=-1)
    attended = weights.to(value.dtype) @ value
    return attention.projection[SHARED](attended.transpose(1, 2).flatten(2))
