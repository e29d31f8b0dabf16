"""What published layouts share: shapes of layers, and models written down a second time, head by head.

It shares no code with the package, so that a mistake there does not repeat here.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Shapes = dict[str, tuple[int, ...]]


def linear_shapes(name: str, out: int, into: int) -> Shapes:
    return {f"{name}.weight": (out, into), f"{name}.bias": (out,)}


def norm_shapes(name: str, width: int) -> Shapes:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def random_tensors(shapes: Shapes, *, scale: float = 0.3) -> dict[str, Tensor]:
    """Weights that are all nonzero and differ everywhere."""
    return {key: torch.randn(shape) * scale for key, shape in shapes.items()}


def gelu(states: Tensor) -> Tensor:
    return 0.5 * states * (1 + torch.erf(states / math.sqrt(2)))


def attend(query: Tensor, key: Tensor, value: Tensor, *, heads: int, mask: Tensor) -> Tensor:
    size, outputs = query.shape[-1] // heads, []
    for head in range(heads):
        part = slice(head * size, (head + 1) * size)
        logits = query[..., part] @ key[..., part].transpose(1, 2) / math.sqrt(size)
        logits = logits.masked_fill(
            (mask if mask.ndim == 3 else mask[:, None, :]) == 0, float("-inf")
        )
        outputs.append(logits.softmax(dim=-1) @ value[..., part])
    return torch.cat(outputs, dim=-1)


class Plain:
    """Final hidden states and retrieval vectors of a state dict; 1 in a mask keeps.

    A layout says what its weights are called, how it embeds image and text, and what its blocks do with the tokens.
    """

    IMAGE, TEXT, CLASS_TOKEN, PATCHES, IMAGE_HEAD, TEXT_HEAD = ("",) * 6
    IMAGE_FIRST = False
    EPS = 0.0
    embed_image: Callable[[Tensor], Tensor]
    embed_text: Callable[[Tensor], Tensor]
    encode: Callable[[Tensor, list[str], Tensor], Tensor]

    def __init__(self, weights: dict[str, Tensor], sizes: Any) -> None:
        self.weights, self.sizes = weights, sizes

    def image(self, pixels: Tensor) -> Tensor:
        """States of the class token and the patches, row by row."""
        states = self.embed_image(pixels)
        return self.encode(states, [self.IMAGE] * states.shape[1], torch.ones(states.shape[:2]))

    def text(self, ids: Tensor, mask: Tensor) -> Tensor:
        """States of the words."""
        return self.encode(self.embed_text(ids), [self.TEXT] * ids.shape[1], mask)

    def fused(self, pixels: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        """States of both, in the layout's order."""
        parts = [(self.embed_text(ids), self.TEXT, mask.bool())]
        image = self.embed_image(pixels)
        parts.insert(
            0 if self.IMAGE_FIRST else 1,
            (image, self.IMAGE, torch.ones(image.shape[:2], dtype=torch.bool)),
        )
        states, kinds, masks = zip(*parts, strict=True)
        kinds = [kind for part, kind, _ in parts for _ in range(part.shape[1])]
        return self.encode(torch.cat(states, dim=1), kinds, torch.cat(masks, dim=1))

    def image_vector(self, pixels: Tensor) -> Tensor:
        """Normalised retrieval vector."""
        return _unit(self.image(pixels)[:, 0] @ self.weights[self.IMAGE_HEAD].T)

    def text_vector(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Normalised retrieval vector."""
        return _unit(self.text(ids, mask)[:, 0] @ self.weights[self.TEXT_HEAD].T)

    def patches(self, pixels: Tensor) -> Tensor:
        """The class token and the projected patches, without positions."""
        side, grid = self.sizes.patch, self.sizes.grid
        kernel, bias = (
            self.weights[f"{self.PATCHES}.weight"].flatten(1),
            self.weights[f"{self.PATCHES}.bias"],
        )
        tokens = [self.weights[self.CLASS_TOKEN][0].expand(len(pixels), -1)]
        for row in range(grid):
            for column in range(grid):
                corner = pixels[
                    :, :, row * side : (row + 1) * side, column * side : (column + 1) * side
                ]
                tokens.append(corner.flatten(1) @ kernel.T + bias)
        return torch.stack(tokens, dim=1)

    def each(
        self, layer: Callable[[Tensor, str], Tensor], states: Tensor, name: str, kinds: list[str]
    ) -> Tensor:
        """Each token through the layer of its kind, which stands in the name."""
        return torch.stack(
            [layer(states[:, place], name.format(kind)) for place, kind in enumerate(kinds)], dim=1
        )

    def linear(self, states: Tensor, name: str) -> Tensor:
        return states @ self.weights[f"{name}.weight"].T + self.weights[f"{name}.bias"]

    def norm(self, states: Tensor, name: str, *, eps: float | None = None) -> Tensor:
        centred = states - states.mean(dim=-1, keepdim=True)
        scaled = centred / (centred.square().mean(dim=-1, keepdim=True) + (eps or self.EPS)).sqrt()
        return scaled * self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"]


def _unit(vectors: Tensor) -> Tensor:
    return vectors / vectors.square().sum(dim=-1, keepdim=True).sqrt()
