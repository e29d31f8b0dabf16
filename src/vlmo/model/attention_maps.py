"""Attention of the words of a text over the patches of an image."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vlmo.model.backbone import VLMoPreTrainedModel

_BEGINS_WORD = "▁"


@torch.no_grad()
def attention_maps(
    model: VLMoPreTrainedModel,
    *,
    pixel_values: Float[Tensor, "batch 3 height width"],
    input_ids: Int[Tensor, "batch text"],
    attention_mask: Int[Tensor, "batch text"] | None = None,
) -> Float[Tensor, "batch text grid_h grid_w"]:
    """Attention of each text token to each patch in the fusion encoder, mean over the heads of the fusion layers.

    Of the last layer, if there are none.
    """
    backbone = model.backbone
    num_layers = max(1, model.config.num_fusion_layers)
    implementation = model.config._attn_implementation or "sdpa"
    # The only implementation that returns its weights.
    model.set_attn_implementation("eager")
    try:
        attentions = backbone(
            pixel_values, input_ids, attention_mask, output_attentions=True
        ).attentions
    finally:
        model.set_attn_implementation(implementation)
    # (batch, seq, seq): query by key, mean over heads and layers
    weights = torch.stack([each.float().mean(dim=1) for each in attentions[-num_layers:]]).mean(
        dim=0
    )
    num_text = input_ids.shape[1]
    num_image = weights.shape[-1] - input_ids.shape[1]
    if model.config.token_order == "image_first":
        # Text queries, image keys without the class token.
        weights = weights[:, num_image:, 1:num_image]
    else:
        weights = weights[:, :num_text, num_text + 1 :]
    return weights.unflatten(-1, backbone.image_embeddings.grid_of(pixel_values))


def maps_by_word(
    maps: Float[Tensor, "text grid_h grid_w"], *, tokens: Sequence[str]
) -> tuple[list[str], Float[Tensor, "word grid_h grid_w"]]:
    """Return words and their maps, the mean over pieces; ValueError if maps and tokens differ, or no word is left.

    Pieces are WordPiece's (`##s` continues a word) or SentencePiece's (`▁s` begins one). Special tokens (`[CLS]`,
    `</s>`) are dropped.
    """
    words: list[str] = []
    positions: list[list[int]] = []
    sentencepiece = any(token.startswith(_BEGINS_WORD) for token in tokens)
    for position, token in enumerate(tokens):
        if f"{token[:1]}{token[-1:]}" in {"[]", "<>"}:
            continue
        continues = not token.startswith(_BEGINS_WORD) if sentencepiece else token.startswith("##")
        if continues and words:
            words[-1] += token.removeprefix("##")
            positions[-1].append(position)
        else:
            # Empty where the piece is the space alone, and the word follows.
            words.append(token.removeprefix(_BEGINS_WORD))
            positions.append([position])
    found = [(word, pieces) for word, pieces in zip(words, positions, strict=True) if word]
    if len(maps) != len(tokens) or not found:
        raise ValueError(
            f"Expected one map a token and a word among them, given {len(maps)} maps, tokens {tokens}."
        )
    return [word for word, _ in found], torch.stack(
        [maps[pieces].mean(dim=0) for _, pieces in found]
    )
