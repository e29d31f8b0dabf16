"""The published VLMo layout: random checkpoints in it, and the model written down a second time from it.

The model is for checkpoints with absolute positions (base_plus); those with a table have outputs of the published code
as their witness.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from tests.parity.plain import (
    Plain,
    Shapes,
    attend,
    gelu,
    linear_shapes,
    norm_shapes,
    random_tensors,
)
from torch import Tensor

TABLE_TEXT_LENGTH = 196
SPECIAL_TOKENS = ("[PAD]", "[CLS]", "[SEP]", "[MASK]", "[UNK]")
EXPERTS = ("imag", "text", "vl")


@dataclass(frozen=True)
class Sizes:
    """Shape of a checkpoint; the defaults are tiny, and no two of them are equal."""

    width: int = 30
    layers: int = 4
    heads: int = 5
    fusion_layers: int = 2
    intermediate: int = 72
    patch: int = 8
    grid: int = 3
    vocabulary: int = 96
    text_rows: int = 40
    relative: bool = False


BASE = Sizes(768, 12, 12, 2, 3072, patch=16, grid=14, vocabulary=30522, relative=True)
BASE_PLUS = Sizes(544, 24, 16, 3, 2176, patch=16, grid=14, vocabulary=30522)
LARGE = Sizes(1024, 24, 16, 3, 4096, patch=16, grid=14, vocabulary=30522, relative=True)


def checkpoint_shapes(sizes: Sizes, *heads: str, classes: int = 2) -> Shapes:
    """Every key of a checkpoint with these heads, and the shape of its tensor."""
    width, inner = sizes.width, sizes.intermediate
    shapes = {
        "transformer.cls_token": (1, 1, width),
        "transformer.patch_embed.proj.weight": (width, 3, sizes.patch, sizes.patch),
        "transformer.patch_embed.proj.bias": (width,),
        "text_embeddings.word_embeddings.weight": (sizes.vocabulary, width),
        "text_embeddings.position_embeddings.weight": (sizes.text_rows, width),
        "text_embeddings.token_type_embeddings.weight": (2, width),
        "token_type_embeddings.weight": (2, width),
        **norm_shapes("transformer.norm", width),
        **norm_shapes("text_embeddings.LayerNorm", width),
    }
    if sizes.relative:
        rows = (2 * sizes.grid - 1) ** 2 + 3 + 2 + 2 * TABLE_TEXT_LENGTH
        shapes["relative_position_bias_table"] = (rows, sizes.layers * sizes.heads)
    else:
        shapes["transformer.pos_embed"] = (1, sizes.grid**2 + 1, width)
    for layer in range(sizes.layers):
        start = f"transformer.blocks.{layer}."
        shapes |= norm_shapes(f"{start}norm1", width) | linear_shapes(
            f"{start}attn.proj", width, width
        )
        shapes |= {f"{start}attn.qkv.weight": (3 * width, width)}
        vectors = (
            "attn.q_bias",
            "attn.v_bias",
            *(("gamma_1", "gamma_2") if sizes.relative else ()),
        )
        shapes |= {f"{start}{name}": (width,) for name in vectors}
        for expert in EXPERTS[: 3 if layer >= sizes.layers - sizes.fusion_layers else 2]:
            shapes |= norm_shapes(f"{start}norm2_{expert}", width)
            shapes |= linear_shapes(f"{start}mlp_{expert}.fc1", inner, width)
            shapes |= linear_shapes(f"{start}mlp_{expert}.fc2", width, inner)
    for head in heads:
        shapes |= {
            "pooler": linear_shapes("pooler.dense", width, width),
            "itc": dict.fromkeys(
                ("itc_image_proj.fc.weight", "itc_text_proj.fc.weight"), (width, width)
            )
            | {"logit_scale": ()},
            "itc_vl": dict.fromkeys(
                ("itc_vl_image_proj.fc.weight", "itc_vl_text_proj.fc.weight"), (width, width)
            )
            | {"logit_vl_scale": ()},
            "itm": linear_shapes("itm_score.fc", 2, width),
            "mlm": linear_shapes("mlm_score.transform.dense", width, width)
            | norm_shapes("mlm_score.transform.LayerNorm", width)
            | {
                "mlm_score.decoder.weight": (sizes.vocabulary, width),
                "mlm_score.bias": (sizes.vocabulary,),
            },
            "vqa": _classifier("vqa_classifier", classes, width, into=width),
            "nlvr2": _classifier("nlvr2_classifier", classes, width, into=2 * width),
        }[head]
    return shapes


def _classifier(name: str, classes: int, width: int, *, into: int) -> Shapes:
    shapes = linear_shapes(f"{name}.0", 2 * width, into) | norm_shapes(f"{name}.1", 2 * width)
    return shapes | linear_shapes(f"{name}.3", classes, 2 * width)


def random_checkpoint(
    sizes: Sizes, *heads: str, classes: int = 2, scale: float = 0.3
) -> dict[str, Tensor]:
    """Random weights, with the ids of positions that published files hold."""
    shapes = checkpoint_shapes(sizes, *heads, classes=classes)
    return random_tensors(shapes, scale=scale) | {
        "text_embeddings.position_ids": torch.arange(sizes.text_rows)[None]
    }


def write_vocabulary(path: Path, *, size: int = 96) -> Path:
    """A `vocab.txt` whose special tokens have the numbers of the reference files: 0 pads, 1 starts, 2 ends, 3 masks."""
    words = [f"word{number}" for number in range(size - len(SPECIAL_TOKENS))]
    path.write_text("\n".join([*SPECIAL_TOKENS, *words]) + "\n")
    return path


class PlainVLMo(Plain):
    IMAGE, TEXT, EPS = "imag", "text", 1e-6
    CLASS_TOKEN, PATCHES = "transformer.cls_token", "transformer.patch_embed.proj"
    IMAGE_HEAD, TEXT_HEAD = "itc_image_proj.fc.weight", "itc_text_proj.fc.weight"

    def match(self, pixels: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        pooled = torch.tanh(self.linear(self.fused(pixels, ids, mask)[:, 0], "pooler.dense"))
        return self.linear(pooled, "itm_score.fc")

    def embed_image(self, pixels: Tensor) -> Tensor:
        states = self.patches(pixels) + self.weights["transformer.pos_embed"]
        return states + self.weights["token_type_embeddings.weight"][1]

    def embed_text(self, ids: Tensor) -> Tensor:
        states = self.weights["text_embeddings.word_embeddings.weight"][ids]
        states = states + self.weights["text_embeddings.token_type_embeddings.weight"][0]
        states = states + self.weights["text_embeddings.position_embeddings.weight"][: ids.shape[1]]
        states = self.norm(states, "text_embeddings.LayerNorm", eps=1e-12)
        return states + self.weights["token_type_embeddings.weight"][0]

    def encode(self, states: Tensor, kinds: list[str], mask: Tensor) -> Tensor:
        for layer in range(self.sizes.layers):
            start = f"transformer.blocks.{layer}."
            normed = self.norm(states, f"{start}norm1")
            parts = self.weights[f"{start}attn.qkv.weight"].reshape(
                3, self.sizes.width, self.sizes.width
            )
            query, key, value = (normed @ part.T for part in parts)
            query, value = (
                query + self.weights[f"{start}attn.q_bias"],
                value + self.weights[f"{start}attn.v_bias"],
            )
            attended = attend(query, key, value, heads=self.sizes.heads, mask=mask)
            states = states + self.linear(attended, f"{start}attn.proj")
            fused = len(set(kinds)) > 1 and layer >= self.sizes.layers - self.sizes.fusion_layers
            experts = ["vl"] * len(kinds) if fused else kinds
            normed = self.each(self.norm, states, f"{start}norm2_{{}}", experts)
            inner = gelu(self.each(self.linear, normed, f"{start}mlp_{{}}.fc1", experts))
            states = states + self.each(self.linear, inner, f"{start}mlp_{{}}.fc2", experts)
        return self.norm(states, "transformer.norm")
