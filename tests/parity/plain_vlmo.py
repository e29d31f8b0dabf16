"""The published VLMo layout: random checkpoints in it, and the model written down a second time from it.

The model shares no code with the package, so that a mistake there does not repeat here. It computes the states of
checkpoints with absolute positions (base_plus); those with a table have outputs of the published code as their witness.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

EPS, TEXT_EPS = 1e-6, 1e-12
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
    modality_types: int = 2
    relative: bool = False


BASE = Sizes(768, 12, 12, 2, 3072, patch=16, grid=14, vocabulary=30522, relative=True)
BASE_PLUS = Sizes(544, 24, 16, 3, 2176, patch=16, grid=14, vocabulary=30522)
LARGE = Sizes(1024, 24, 16, 3, 4096, patch=16, grid=14, vocabulary=30522, relative=True)


def backbone_shapes(sizes: Sizes) -> dict[str, tuple[int, ...]]:
    """Every key of a backbone with the shape of its tensor."""
    width, positions = sizes.width, sizes.grid**2 + 1
    shapes: dict[str, tuple[int, ...]] = {
        "transformer.cls_token": (1, 1, width),
        "transformer.patch_embed.proj.weight": (width, 3, sizes.patch, sizes.patch),
        "transformer.patch_embed.proj.bias": (width,),
        "text_embeddings.word_embeddings.weight": (sizes.vocabulary, width),
        "text_embeddings.position_embeddings.weight": (sizes.text_rows, width),
        "text_embeddings.token_type_embeddings.weight": (2, width),
        "token_type_embeddings.weight": (sizes.modality_types, width),
        **_norm("transformer.norm", width),
        **_norm("text_embeddings.LayerNorm", width),
    }
    if sizes.relative:
        rows = (2 * sizes.grid - 1) ** 2 + 3 + 2 + 2 * TABLE_TEXT_LENGTH
        shapes["relative_position_bias_table"] = (rows, sizes.layers * sizes.heads)
    else:
        shapes["transformer.pos_embed"] = (1, positions, width)
    for layer in range(sizes.layers):
        start = f"transformer.blocks.{layer}."
        shapes |= _norm(f"{start}norm1", width) | _linear(f"{start}attn.proj", width, width)
        shapes |= {f"{start}attn.qkv.weight": (3 * width, width)}
        shapes |= {f"{start}attn.q_bias": (width,), f"{start}attn.v_bias": (width,)}
        if sizes.relative:
            shapes |= {f"{start}gamma_1": (width,), f"{start}gamma_2": (width,)}
        for expert in EXPERTS[: 3 if layer >= sizes.layers - sizes.fusion_layers else 2]:
            shapes |= _norm(f"{start}norm2_{expert}", width)
            shapes |= _linear(f"{start}mlp_{expert}.fc1", sizes.intermediate, width)
            shapes |= _linear(f"{start}mlp_{expert}.fc2", width, sizes.intermediate)
    return shapes


def head_shapes(sizes: Sizes, head: str, *, classes: int = 2) -> dict[str, tuple[int, ...]]:
    """Keys of one head: pooler, itc, itc_vl, itm, mlm, vqa or nlvr2."""
    width = sizes.width
    if head == "pooler":
        return _linear("pooler.dense", width, width)
    if head in {"itc", "itc_vl"}:
        sides = {f"{head}_{side}_proj.fc.weight": (width, width) for side in ("image", "text")}
        return sides | {"logit_scale" if head == "itc" else "logit_vl_scale": ()}
    if head == "itm":
        return _linear("itm_score.fc", 2, width)
    if head == "mlm":
        return {
            **_linear("mlm_score.transform.dense", width, width),
            **_norm("mlm_score.transform.LayerNorm", width),
            "mlm_score.decoder.weight": (sizes.vocabulary, width),
            "mlm_score.bias": (sizes.vocabulary,),
        }
    name, into = {"vqa": ("vqa_classifier", width), "nlvr2": ("nlvr2_classifier", 2 * width)}[head]
    return {
        **_linear(f"{name}.0", 2 * width, into),
        **_norm(f"{name}.1", 2 * width),
        **_linear(f"{name}.3", classes, 2 * width),
    }


def checkpoint_shapes(sizes: Sizes, *heads: str, classes: int = 2) -> dict[str, tuple[int, ...]]:
    """Every key of a checkpoint with these heads."""
    shapes = backbone_shapes(sizes)
    for head in heads:
        shapes |= head_shapes(sizes, head, classes=classes)
    return shapes


def random_checkpoint(sizes: Sizes, *heads: str, classes: int = 2, scale: float = 0.3) -> dict[str, Tensor]:
    """Weights that are all nonzero and differ everywhere, with the ids of positions that published files hold."""
    shapes = checkpoint_shapes(sizes, *heads, classes=classes)
    weights = {key: torch.randn(shape) * scale for key, shape in shapes.items()}
    return weights | {"text_embeddings.position_ids": torch.arange(sizes.text_rows)[None]}


def write_vocabulary(path: Path, *, size: int = 96) -> Path:
    """A `vocab.txt` whose special tokens have the numbers of the reference files: 0 pads, 1 starts, 2 ends, 3 masks."""
    words = [f"word{number}" for number in range(size - len(SPECIAL_TOKENS))]
    path.write_text("\n".join([*SPECIAL_TOKENS, *words]) + "\n")
    return path


def _linear(name: str, out: int, into: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (out, into), f"{name}.bias": (out,)}


def _norm(name: str, width: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


class PlainVLMo:
    """Final hidden states of a state dict with absolute positions; 1 in a mask keeps."""

    def __init__(self, weights: dict[str, Tensor], sizes: Sizes) -> None:
        self.weights, self.sizes = weights, sizes

    def image(self, pixels: Tensor) -> Tensor:
        """States of the class token and the patches, row by row."""
        states = self._embed_image(pixels)
        return self._encode(states, ["imag"] * states.shape[1], torch.ones(states.shape[:2]), fused=False)

    def text(self, ids: Tensor, mask: Tensor) -> Tensor:
        """States of the words."""
        return self._encode(self._embed_text(ids), ["text"] * ids.shape[1], mask, fused=False)

    def fused(self, pixels: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        """States of text, then image."""
        text, image = self._embed_text(ids), self._embed_image(pixels)
        experts = ["text"] * text.shape[1] + ["imag"] * image.shape[1]
        whole = torch.cat([mask, torch.ones(image.shape[:2], dtype=mask.dtype)], dim=1)
        return self._encode(torch.cat([text, image], dim=1), experts, whole, fused=True)

    def image_vector(self, pixels: Tensor) -> Tensor:
        """Normalised retrieval vector."""
        return _unit(self.image(pixels)[:, 0] @ self.weights["itc_image_proj.fc.weight"].T)

    def text_vector(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Normalised retrieval vector."""
        return _unit(self.text(ids, mask)[:, 0] @ self.weights["itc_text_proj.fc.weight"].T)

    def match(self, pixels: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        """Matching logits."""
        pooled = torch.tanh(self._linear(self.fused(pixels, ids, mask)[:, 0], "pooler.dense"))
        return self._linear(pooled, "itm_score.fc")

    def _embed_image(self, pixels: Tensor) -> Tensor:
        side, grid = self.sizes.patch, self.sizes.grid
        kernel = self.weights["transformer.patch_embed.proj.weight"].flatten(1)
        tokens = [self.weights["transformer.cls_token"][0].expand(len(pixels), -1)]
        for row in range(grid):
            for column in range(grid):
                corner = pixels[:, :, row * side : (row + 1) * side, column * side : (column + 1) * side]
                tokens.append(corner.flatten(1) @ kernel.T + self.weights["transformer.patch_embed.proj.bias"])
        states = torch.stack(tokens, dim=1) + self.weights["transformer.pos_embed"]
        return states + self.weights["token_type_embeddings.weight"][1]

    def _embed_text(self, ids: Tensor) -> Tensor:
        states = self.weights["text_embeddings.word_embeddings.weight"][ids]
        states = states + self.weights["text_embeddings.token_type_embeddings.weight"][0]
        states = states + self.weights["text_embeddings.position_embeddings.weight"][: ids.shape[1]]
        states = self._norm(states, "text_embeddings.LayerNorm", eps=TEXT_EPS)
        return states + self.weights["token_type_embeddings.weight"][0]

    def _encode(self, states: Tensor, experts: list[str], mask: Tensor, *, fused: bool) -> Tensor:
        for layer in range(self.sizes.layers):
            start = f"transformer.blocks.{layer}."
            states = states + self._attend(self._norm(states, f"{start}norm1"), f"{start}attn.", mask)
            top = layer >= self.sizes.layers - self.sizes.fusion_layers
            added = []
            for place, own in enumerate(experts):
                expert = "vl" if fused and top else own
                token = self._norm(states[:, place], f"{start}norm2_{expert}")
                inner = self._linear(token, f"{start}mlp_{expert}.fc1")
                inner = 0.5 * inner * (1 + torch.erf(inner / math.sqrt(2)))
                added.append(self._linear(inner, f"{start}mlp_{expert}.fc2"))
            states = states + torch.stack(added, dim=1)
        return self._norm(states, "transformer.norm")

    def _attend(self, states: Tensor, start: str, mask: Tensor) -> Tensor:
        width, heads = self.sizes.width, self.sizes.heads
        query, key, value = (states @ part.T for part in self.weights[f"{start}qkv.weight"].reshape(3, width, width))
        query, value = query + self.weights[f"{start}q_bias"], value + self.weights[f"{start}v_bias"]
        size, outputs = width // heads, []
        for head in range(heads):
            part = slice(head * size, (head + 1) * size)
            logits = query[..., part] @ key[..., part].transpose(1, 2) / math.sqrt(size)
            logits = logits.masked_fill(mask[:, None, :] == 0, float("-inf"))
            outputs.append(logits.softmax(dim=-1) @ value[..., part])
        return self._linear(torch.cat(outputs, dim=-1), f"{start}proj")

    def _linear(self, states: Tensor, name: str) -> Tensor:
        return states @ self.weights[f"{name}.weight"].T + self.weights[f"{name}.bias"]

    def _norm(self, states: Tensor, name: str, *, eps: float = EPS) -> Tensor:
        centred = states - states.mean(dim=-1, keepdim=True)
        scaled = centred / (centred.square().mean(dim=-1, keepdim=True) + eps).sqrt()
        return scaled * self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"]


def _unit(vectors: Tensor) -> Tensor:
    return vectors / vectors.square().sum(dim=-1, keepdim=True).sqrt()
