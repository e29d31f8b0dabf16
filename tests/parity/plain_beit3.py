"""BEiT-3 written down a second time, from the published layout alone: plain tensors, loops over tokens' branches.

It shares no code with the package, so that a mistake there does not repeat here. As in BEiT-3, True in a padding mask
hides.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

POSITION_OFFSET = 2
EPS = 1e-5
IMAGE, TEXT = "A", "B"


@dataclass(frozen=True)
class Sizes:
    """Shape of a checkpoint; the defaults are tiny, and no two of them are equal."""

    width: int = 32
    layers: int = 3
    heads: int = 4
    intermediate: int = 72
    patch: int = 8
    grid: int = 5
    vocabulary: int = 61
    text_rows: int = 50
    projection: int = 24


BASE = Sizes(768, 12, 12, 3072, patch=16, grid=14, vocabulary=64010, text_rows=1024, projection=768)
LARGE = Sizes(1024, 24, 16, 4096, patch=16, grid=14, vocabulary=64010, text_rows=1024, projection=1024)


def shapes(sizes: Sizes, *, contrast: bool) -> dict[str, tuple[int, ...]]:
    """Every key of a checkpoint with the shape of its tensor."""
    width, inner = sizes.width, sizes.intermediate
    found: dict[str, tuple[int, ...]] = {
        "beit3.text_embed.weight": (sizes.vocabulary, width),
        "beit3.vision_embed.cls_token": (1, 1, width),
        "beit3.vision_embed.mask_token": (1, 1, width),
        "beit3.vision_embed.proj.weight": (width, 3, sizes.patch, sizes.patch),
        "beit3.vision_embed.proj.bias": (width,),
        "beit3.encoder.embed_positions.A.weight": (sizes.grid**2 + 1 + POSITION_OFFSET, width),
        "beit3.encoder.embed_positions.B.weight": (sizes.text_rows, width),
    }
    for branch in (IMAGE, TEXT):
        for layer in range(sizes.layers):
            start = f"beit3.encoder.layers.{layer}."
            linear = {f"self_attn.{name}_proj.{branch}": (width, width) for name in ("q", "k", "v", "out")} | {
                f"ffn.{branch}.fc1": (inner, width),
                f"ffn.{branch}.fc2": (width, inner),
            }
            norms = {
                f"self_attn.inner_attn_ln.{branch}": width,
                f"self_attn_layer_norm.{branch}": width,
                f"ffn.{branch}.ffn_layernorm": inner,
                f"final_layer_norm.{branch}": width,
            }
            found |= {f"{start}{name}.weight": shape for name, shape in linear.items()}
            found |= {f"{start}{name}.bias": shape[:1] for name, shape in linear.items()}
            found |= {f"{start}{name}.{kind}": (size,) for name, size in norms.items() for kind in ("weight", "bias")}
        found |= {f"beit3.encoder.layer_norm.{branch}.{kind}": (width,) for kind in ("weight", "bias")}
    if contrast:
        found |= {
            "vision_head.weight": (sizes.projection, width),
            "language_head.weight": (sizes.projection, width),
            "logit_scale": (),
        }
    return found


def random_weights(sizes: Sizes, *, contrast: bool) -> dict[str, Tensor]:
    """Weights that are all nonzero and differ between branches and layers."""
    return {key: torch.randn(shape) * 0.3 for key, shape in shapes(sizes, contrast=contrast).items()}


def fine_tuned_weights(sizes: Sizes, task: str, *, labels: int = 7) -> dict[str, Tensor]:
    """A file for "vqa", "imagenet" or "nlvr2": the first two have no norm after the blocks."""
    width = sizes.width
    heads = {
        "vqa": {"pooler.norm": (width,), "pooler.dense": (width, width), "head.0": (2 * width, width)}
        | {"head.1": (2 * width,), "head.3": (labels, 2 * width)},
        "imagenet": {"fc_norm": (width,), "head": (labels, width)},
        "nlvr2": {"head.norm1": (4 * width,), "head.dense1": (2 * width, 4 * width), "head.norm2": (2 * width,)}
        | {"head.dense2": (2, 2 * width)},
    }[task]
    weights = random_weights(sizes, contrast=False)
    if task != "nlvr2":
        weights = {key: tensor for key, tensor in weights.items() if not key.startswith("beit3.encoder.layer_norm.")}
    weights |= {f"{name}.weight": torch.randn(shape) * 0.3 for name, shape in heads.items()}
    return weights | {f"{name}.bias": torch.randn(shape[:1]) * 0.3 for name, shape in heads.items()}


class PlainBEiT3:
    """Final hidden states and retrieval vectors of a state dict."""

    def __init__(self, weights: dict[str, Tensor], sizes: Sizes) -> None:
        self.weights, self.sizes = weights, sizes

    def image(self, pixels: Tensor) -> Tensor:
        """States of the class token and the patches, row by row."""
        embedded = self._embed_image(pixels)
        return self._encode(embedded, [IMAGE] * embedded.shape[1], torch.zeros(embedded.shape[:2], dtype=torch.bool))

    def text(self, ids: Tensor, hidden: Tensor) -> Tensor:
        """States of the tokens; `hidden` is True at padding."""
        return self._encode(self._embed_text(ids), [TEXT] * ids.shape[1], hidden)

    def fused(self, pixels: Tensor, ids: Tensor, hidden: Tensor) -> Tensor:
        """States of image, then text."""
        image, text = self._embed_image(pixels), self._embed_text(ids)
        mask = torch.cat([torch.zeros(image.shape[:2], dtype=torch.bool), hidden], dim=1)
        branches = [IMAGE] * image.shape[1] + [TEXT] * text.shape[1]
        return self._encode(torch.cat([image, text], dim=1), branches, mask)

    def image_vector(self, pixels: Tensor) -> Tensor:
        """Normalised retrieval vector."""
        return _unit(self.image(pixels)[:, 0] @ self.weights["vision_head.weight"].T)

    def text_vector(self, ids: Tensor, hidden: Tensor) -> Tensor:
        """Normalised retrieval vector."""
        return _unit(self.text(ids, hidden)[:, 0] @ self.weights["language_head.weight"].T)

    def _embed_image(self, pixels: Tensor) -> Tensor:
        side, grid = self.sizes.patch, self.sizes.grid
        kernel = self.weights["beit3.vision_embed.proj.weight"].flatten(1)
        patches = []
        for row in range(grid):
            for column in range(grid):
                corner = pixels[:, :, row * side : (row + 1) * side, column * side : (column + 1) * side]
                patches.append(corner.flatten(1) @ kernel.T + self.weights["beit3.vision_embed.proj.bias"])
        class_token = self.weights["beit3.vision_embed.cls_token"][0].expand(len(pixels), -1)
        tokens = torch.stack([class_token, *patches], dim=1)
        return tokens + self._positions(IMAGE, tokens.shape[1])

    def _embed_text(self, ids: Tensor) -> Tensor:
        return self.weights["beit3.text_embed.weight"][ids] + self._positions(TEXT, ids.shape[1])

    def _positions(self, branch: str, count: int) -> Tensor:
        rows = torch.arange(count) + POSITION_OFFSET
        return self.weights[f"beit3.encoder.embed_positions.{branch}.weight"][rows]

    def _encode(self, states: Tensor, branches: list[str], hidden: Tensor) -> Tensor:
        for layer in range(self.sizes.layers):
            start = f"beit3.encoder.layers.{layer}."
            normed = self._norm(states, f"{start}self_attn_layer_norm.{{}}", branches)
            states = states + self._attend(normed, f"{start}self_attn.", branches, hidden)
            normed = self._norm(states, f"{start}final_layer_norm.{{}}", branches)
            inner = self._linear(normed, f"{start}ffn.{{}}.fc1", branches)
            inner = 0.5 * inner * (1 + torch.erf(inner / 2**0.5))
            inner = self._norm(inner, f"{start}ffn.{{}}.ffn_layernorm", branches)
            states = states + self._linear(inner, f"{start}ffn.{{}}.fc2", branches)
        if "beit3.encoder.layer_norm.A.weight" not in self.weights:
            return states
        return self._norm(states, "beit3.encoder.layer_norm.{}", branches)

    def _attend(self, states: Tensor, start: str, branches: list[str], hidden: Tensor) -> Tensor:
        query, key, value = (self._linear(states, f"{start}{name}_proj.{{}}", branches) for name in "qkv")
        size = self.sizes.width // self.sizes.heads
        outputs = []
        for head in range(self.sizes.heads):
            part = slice(head * size, (head + 1) * size)
            logits = query[..., part] @ key[..., part].transpose(1, 2) / size**0.5
            logits = logits.masked_fill(hidden[:, None, :], float("-inf"))
            outputs.append(logits.softmax(dim=-1) @ value[..., part])
        attended = self._norm(torch.cat(outputs, dim=-1), f"{start}inner_attn_ln.{{}}", branches)
        return self._linear(attended, f"{start}out_proj.{{}}", branches)

    def _linear(self, states: Tensor, name: str, branches: list[str]) -> Tensor:
        """Each token through the matrix of its branch."""
        tokens = []
        for index, branch in enumerate(branches):
            matrix = self.weights[f"{name.format(branch)}.weight"]
            tokens.append(states[:, index] @ matrix.T + self.weights[f"{name.format(branch)}.bias"])
        return torch.stack(tokens, dim=1)

    def _norm(self, states: Tensor, name: str, branches: list[str]) -> Tensor:
        centred = states - states.mean(dim=-1, keepdim=True)
        scaled = centred / (centred.square().mean(dim=-1, keepdim=True) + EPS).sqrt()
        weight = torch.stack([self.weights[f"{name.format(branch)}.weight"] for branch in branches])
        return scaled * weight + torch.stack([self.weights[f"{name.format(branch)}.bias"] for branch in branches])


def _unit(vectors: Tensor) -> Tensor:
    return vectors / vectors.square().sum(dim=-1, keepdim=True).sqrt()
