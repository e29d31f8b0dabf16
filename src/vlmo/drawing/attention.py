"""Attention of the words of a text over a picture, as maps and as a heat over the picture."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from vlmo.drawing.pictures import on_white

_BEGINS = "▁"
_HEAT = np.array([196, 18, 96], dtype=np.float32)  # a red that few drawings use


def attention_over_patches(
    attentions: Sequence[Float[Tensor, "batch heads seq seq"]],
    *,
    text_length: int,
    grid: tuple[int, int],
    layers: Sequence[int] = (-1,),
) -> Float[Tensor, "batch text grid_h grid_w"]:
    """How much each text token looks at each patch, the mean over the heads of the chosen layers.

    Args:
        attentions: One tensor a layer of the fusion encoder, queries before keys. The sequence is the text, then the
            image's class token, then its patches row by row.
        text_length: Number of text tokens, padding included.
        grid: Height and width in patches.
        layers: Which layers; negative numbers count from the last.

    Raises:
        ValueError: If the sequence is not as long as text and grid say, or no layer is chosen.
    """
    if not layers or not all(-len(attentions) <= layer < len(attentions) for layer in layers):
        raise ValueError(f"layers must name some of the {len(attentions)} layers, given {tuple(layers)}.")
    seq, (height, width) = attentions[0].shape[-1], grid
    expected = text_length + 1 + height * width
    if seq != expected:
        raise ValueError(
            f"The attentions are over {seq} tokens; {text_length} of text, a class token and {height} x {width} "
            f"patches make {expected}. Pass output_attentions of an image-text pair and its grid."
        )
    chosen = torch.stack([attentions[layer].float().mean(dim=1) for layer in layers]).mean(dim=0)
    return chosen[:, :text_length, text_length + 1 :].unflatten(-1, (height, width))


def attention_by_word(
    maps: Float[Tensor, "text grid_h grid_w"], *, tokens: Sequence[str]
) -> tuple[list[str], Float[Tensor, "word grid_h grid_w"]]:
    """Words and their maps: pieces join their word, whose map is the mean of theirs.

    Pieces are WordPiece's (`##s` goes on with a word) or SentencePiece's (`▁s` begins one). Special tokens (`[CLS]`,
    `</s>`) are dropped.

    Raises:
        ValueError: If maps and tokens differ in number or no word is left.
    """
    words: list[str] = []
    places: list[list[int]] = []
    sentencepiece = any(token.startswith(_BEGINS) for token in tokens)
    for place, token in enumerate(tokens):
        if f"{token[:1]}{token[-1:]}" in {"[]", "<>"}:
            continue
        goes_on = not token.startswith(_BEGINS) if sentencepiece else token.startswith("##")
        if goes_on and words:
            words[-1] += token.removeprefix("##")
            places[-1].append(place)
        elif piece := token.removeprefix(_BEGINS):
            words.append(piece)
            places.append([place])
    if len(maps) != len(tokens) or not words:
        raise ValueError(f"Expected one map a token and a word among them, given {len(maps)} maps, tokens {tokens}.")
    return words, torch.stack([maps[place].mean(dim=0) for place in places])


def heat_map(picture: Image.Image, weights: Float[Tensor, "grid_h grid_w"], *, size: int = 144) -> Image.Image:
    """The picture, pale, with the weights over it; the largest weight of the map has the full colour."""
    base = on_white(picture).resize((size, size), Image.Resampling.LANCZOS)
    grey = base.convert("L").convert("RGB")
    pale = np.asarray(Image.blend(grey, base, 0.35), dtype=np.float32) * 0.65 + 255 * 0.35
    values = weights.detach().float().cpu().numpy()
    values = values - values.min()
    values = values / max(float(values.max()), 1e-12)
    # Smooth between the centres of patches; cubic interpolation may overshoot.
    heat = Image.fromarray(values).resize((size, size), Image.Resampling.BICUBIC)
    alpha = 0.85 * np.clip(np.asarray(heat), 0, 1)[..., None]
    return Image.fromarray((pale * (1 - alpha) + _HEAT * alpha).round().astype(np.uint8))
