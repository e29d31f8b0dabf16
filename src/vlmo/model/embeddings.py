"""From pixels and word pieces to the sequences that the blocks read (VLMo, "Input Representations")."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from vlmo.model.config import VLMoConfig
from vlmo.model.position import resize_absolute_positions
from vlmo.types import normalize_pixels


class ImageEmbeddings(nn.Module):
    """Patches, linearly projected, behind a learnt `[I_CLS]`."""

    def __init__(self, config: VLMoConfig) -> None:
        super().__init__()
        self.grid, self.patch_size = config.grid, config.patch_size
        self.projection = nn.Conv2d(
            config.num_channels, config.hidden_size, kernel_size=config.patch_size, stride=config.patch_size
        )
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.hidden_size))
        self.positions = _positions(1 + self.grid[0] * self.grid[1], config=config)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def grid_of(self, pixel_values: Float[Tensor, "batch 3 height width"]) -> tuple[int, int]:
        """Return the patches along height and width; ValueError if these are no images of patches."""
        channels, patch = self.projection.in_channels, self.patch_size
        shape = tuple(pixel_values.shape)
        if len(shape) != 4 or shape[1] != channels or any(side < patch or side % patch for side in shape[2:]):
            raise ValueError(
                f"pixel_values have shape {shape}; expected (batch, {channels}, height, width), sides that are "
                f"multiples of the patch size {patch}."
            )
        return shape[2] // patch, shape[3] // patch

    def forward(
        self,
        pixel_values: Float[Tensor, "batch 3 height width"],
        *,
        bool_masked_pos: Bool[Tensor, "batch patch"] | None = None,
        mask_token: Float[Tensor, "dim"] | None = None,
    ) -> Float[Tensor, "batch 1+patch dim"]:
        """Embed images (floats in [-1, 1], or uint8); masked patches become `mask_token`; ValueError without it."""
        grid = self.grid_of(pixel_values)
        pixels = normalize_pixels(pixel_values).to(self.projection.weight.dtype)
        patches = self.projection(pixels).flatten(2).transpose(1, 2)
        if bool_masked_pos is not None:
            if mask_token is None:
                raise ValueError("bool_masked_pos was given without a mask_token to stand for the patches.")
            if bool_masked_pos.shape != patches.shape[:2]:
                given, expected = tuple(bool_masked_pos.shape), tuple(patches.shape[:2])
                raise ValueError(f"bool_masked_pos has shape {given}; expected {expected}, one entry for each patch.")
            patches = torch.where(bool_masked_pos[..., None], mask_token.to(patches.dtype), patches)
        hidden = torch.cat([self.cls_token.expand(patches.shape[0], -1, -1).to(patches.dtype), patches], dim=1)
        if self.positions is not None:
            hidden = hidden + resize_absolute_positions(self.positions, source=self.grid, target=grid)
        return self.dropout(hidden)


class TextEmbeddings(nn.Module):
    """BERT's embeddings: word, segment 0 and, with absolute positions, position; then LayerNorm. Or the plain sum."""

    def __init__(self, config: VLMoConfig) -> None:
        super().__init__()
        self.max_text_positions = config.max_text_positions
        self.words = nn.Embedding(config.vocab_size, config.hidden_size, padding_idx=config.pad_token_id)
        plain = config.text_embedding == "plain"
        self.segments = None if plain else nn.Embedding(2, config.hidden_size)
        self.positions = _positions(config.max_text_positions, config=config)
        self.norm = None if plain else nn.LayerNorm(config.hidden_size, eps=config.text_layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, input_ids: Int[Tensor, "batch text"]) -> Float[Tensor, "batch text dim"]:
        """Embed texts; ValueError if they are longer than the position tables."""
        if input_ids.ndim != 2 or input_ids.shape[1] > self.max_text_positions:
            shape, longest = tuple(input_ids.shape), self.max_text_positions
            raise ValueError(f"input_ids have shape {shape}; expected (batch, text) with at most {longest} tokens.")
        hidden = self.words(input_ids)
        if self.segments is not None:
            # Called, not indexed: what brings weights from disk (a device map) acts at a call.
            hidden = hidden + self.segments(torch.zeros((), dtype=torch.long, device=hidden.device))
        if self.positions is not None:
            hidden = hidden + self.positions[: input_ids.shape[1]]
        return self.dropout(hidden if self.norm is None else self.norm(hidden))


def _positions(count: int, *, config: VLMoConfig) -> nn.Parameter | None:
    return nn.Parameter(torch.zeros(count, config.hidden_size)) if config.position_embedding == "absolute" else None
