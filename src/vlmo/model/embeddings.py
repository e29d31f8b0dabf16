"""From pixels and word pieces to the sequences that the blocks read (VLMo, "Input Representations"), with positions.

Positions of image, text and pair: the relative bias table, absolute tables, and both at another image size.
"""

from __future__ import annotations

from functools import lru_cache, partial

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.interpolate import make_interp_spline
from torch import Tensor, nn
from torch.nn import functional as F

from vlmo.model.config import VLMoConfig
from vlmo.types import normalize_pixels

_CPU = torch.device("cpu")
NUM_CLASS_ROWS = 3
NUM_CROSS_ROWS = 2
"""Rows of a position table for a class token (to any, any to it, to itself), and between the modalities."""


class ImageEmbeddings(nn.Module):
    """Patches, linearly projected, behind a learnt `[I_CLS]`."""

    def __init__(self, config: VLMoConfig) -> None:
        super().__init__()
        self.grid = config.grid
        patch = config.patch_size
        self.patch_size = patch
        self.projection = nn.Conv2d(
            config.num_channels, config.hidden_size, kernel_size=patch, stride=patch
        )
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.hidden_size))
        self.positions = _positions(1 + self.grid[0] * self.grid[1], config=config)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def grid_of(self, pixel_values: Float[Tensor, "batch 3 height width"]) -> tuple[int, int]:
        """Return the patches along height and width; ValueError if these are no images of patches."""
        channels = self.projection.in_channels
        patch = self.patch_size
        shape = tuple(pixel_values.shape)
        if (
            len(shape) != 4
            or shape[1] != channels
            or any(side < patch or side % patch for side in shape[2:])
        ):
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
        """Embed images (floats in [-1, 1], or uint8), masked patches as `mask_token`; ValueError for another grid."""
        grid = self.grid_of(pixel_values)
        pixels = normalize_pixels(pixel_values).to(self.projection.weight.dtype)
        # (batch, dim, rows, columns) -> (batch, patch, dim)
        patches = self.projection(pixels).flatten(2).transpose(1, 2)
        if bool_masked_pos is not None:
            if bool_masked_pos.shape != patches.shape[:2]:
                given = tuple(bool_masked_pos.shape)
                expected = tuple(patches.shape[:2])
                raise ValueError(
                    f"bool_masked_pos has shape {given}; expected {expected}, one entry for each patch."
                )
            # Replaced before the positions are added, which tell where a masked patch is (BEiT).
            # It comes with the mask.
            assert mask_token is not None
            patches = torch.where(bool_masked_pos[..., None], mask_token.to(patches.dtype), patches)
        hidden = torch.cat(
            [self.cls_token.expand(patches.shape[0], -1, -1).to(patches.dtype), patches], dim=1
        )
        # A relative bias tells positions in attention instead.
        if self.positions is not None:
            hidden = hidden + resize_absolute_positions(
                self.positions, source=self.grid, target=grid
            )
        return self.dropout(hidden)


class TextEmbeddings(nn.Module):
    """BERT's embeddings: word, segment 0 and, with absolute positions, position; then LayerNorm. Or the plain sum."""

    def __init__(self, config: VLMoConfig) -> None:
        super().__init__()
        self.max_text_positions = config.max_text_positions
        # The row of padding stays zero and gets no gradient.
        self.words = nn.Embedding(
            config.vocab_size, config.hidden_size, padding_idx=config.pad_token_id
        )
        plain = config.text_embedding == "plain"
        # All texts are segment 0: kept for published weights, which have both rows.
        self.segments = None if plain else nn.Embedding(2, config.hidden_size)
        self.positions = _positions(config.max_text_positions, config=config)
        self.norm = (
            None if plain else nn.LayerNorm(config.hidden_size, eps=config.text_layer_norm_eps)
        )
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(
        self, input_ids: Int[Tensor, "batch text"], *, start: int = 0
    ) -> Float[Tensor, "batch text dim"]:
        """Embed texts, from position `start` on; ValueError if they are longer than the position tables."""
        if input_ids.ndim != 2 or start + input_ids.shape[1] > self.max_text_positions:
            shape = tuple(input_ids.shape)
            longest = self.max_text_positions
            raise ValueError(
                f"input_ids have shape {shape}; expected (batch, text) with at most {longest} tokens."
            )
        hidden = self.words(input_ids)
        if self.segments is not None:
            # Called, not indexed: what brings weights from disk (a device map) acts at a call.
            hidden = hidden + self.segments(torch.zeros((), dtype=torch.long, device=hidden.device))
        if self.positions is not None:
            hidden = hidden + self.positions[start : start + input_ids.shape[1]]
        return self.dropout(hidden if self.norm is None else self.norm(hidden))


def _positions(count: int, *, config: VLMoConfig) -> nn.Parameter | None:
    return (
        nn.Parameter(torch.zeros(count, config.hidden_size))
        if config.position_embedding == "absolute"
        else None
    )


def num_offset_rows(grid: tuple[int, int]) -> int:
    """Return the number of distinct patch-to-patch offsets on a grid."""
    return (2 * grid[0] - 1) * (2 * grid[1] - 1)


# What is cached is an ordinary tensor, though an evaluation (inference mode) or a model without numbers
# (`torch.device("meta")`) may ask first. It stays on the device, which else would wait for it at each step.
@lru_cache(maxsize=64)
@torch.inference_mode(mode=False)
def relative_position_index(
    *,
    num_text: int,
    grid: tuple[int, int] | None,
    max_text: int,
    table_grid: tuple[int, int],
    device: torch.device = _CPU,
) -> Int[Tensor, "seq seq"]:
    """Return the row of the bias table for each (query, key).

    The sequence is `num_text` text tokens (0 for an image alone), then the class token and the patches of `grid` row by
    row (None for a text alone). The table's rows are, in order: patch offsets; image class token to any, any to it, to
    itself; text to image, image to text; text offsets with their own three class rows at the end.
    """
    offsets = num_offset_rows(grid or table_grid)
    cross = offsets + NUM_CLASS_ROWS
    num_image = 0 if grid is None else 1 + grid[0] * grid[1]
    arange = partial(torch.arange, device="cpu")
    index = torch.empty(num_text + num_image, num_text + num_image, dtype=torch.long, device="cpu")
    # One row for all patches: a text has no place on the grid of an image.
    index[:num_text, num_text:] = cross
    index[num_text:, :num_text] = cross + 1
    if num_text:
        # Offsets between words, from -(max_text - 2) up; position 0 is `[T_CLS]`.
        positions = arange(1, num_text)
        first_row = cross + NUM_CROSS_ROWS
        index[:num_text, :num_text] = _with_class_token(
            first_row + max_text - 2 + positions - positions[:, None],
            first_class_row=first_row + 2 * max_text - 3,
        )
    if grid is not None:
        height, width = grid
        rows = arange(height).repeat_interleave(width)
        columns = arange(width).repeat(height)
        # (patch, patch) offsets, moved to start at 0, as in Swin and BEiT
        down = rows[:, None] - rows + height - 1
        right = columns[:, None] - columns + width - 1
        index[num_text:, num_text:] = _with_class_token(
            down * (2 * width - 1) + right, first_class_row=offsets
        )
    return index.to(device, non_blocking=True)


def _with_class_token(index: Int[Tensor, "n n"], *, first_class_row: int) -> Int[Tensor, "n+1 n+1"]:
    """Add a class token in front: its row first, its column, then the corner, in the order of published tables."""
    index = F.pad(index, (1, 0, 1, 0))
    index[0, :] = first_class_row
    index[:, 0] = first_class_row + 1
    index[0, 0] = first_class_row + 2
    return index


class RelativePositionBias(nn.Module):
    """Learnt bias on attention logits: one table for image, text and pair, one column for each head of each layer."""

    def __init__(self, config: VLMoConfig) -> None:
        super().__init__()
        self.grid = config.grid
        self.max_text = config.max_text_positions
        self.num_layers = config.num_hidden_layers
        self.num_heads = config.num_attention_heads
        # Text offsets: 2 * max_text - 3 of words, 3 of the class token.
        fixed = NUM_CLASS_ROWS + NUM_CROSS_ROWS + 2 * self.max_text
        self.table = nn.Parameter(
            torch.zeros(num_offset_rows(self.grid) + fixed, self.num_layers * self.num_heads)
        )

    def forward(
        self, *, num_text: int, grid: tuple[int, int] | None, rows: slice = slice(None)
    ) -> list[Float[Tensor, "heads rows seq"]]:
        """Return the bias of each layer, of all `rows`. Another grid than the configured one reads a resized table."""
        table = (
            self.table
            if grid is None
            else resize_bias_table(self.table, source=self.grid, target=grid)
        )
        index = relative_position_index(
            num_text=num_text,
            grid=grid,
            max_text=self.max_text,
            table_grid=self.grid,
            device=table.device,
        )
        # A query's row of (rows, seq): words that `decode` adds need no others.
        index = index[rows]
        if table.device.type == "cpu" and not torch.compiler.is_compiling():
            # Column by column, which is read and written in order: several times as quick as to turn rows afterwards.
            bias = (
                table.T.contiguous()
                .gather(1, index.flatten().expand(table.shape[1], -1))
                .unflatten(1, index.shape)
            )
        else:
            # (rows, seq, layers * heads) -> (layers * heads, rows, seq)
            bias = F.embedding(index, table).permute(2, 0, 1).contiguous()
        # (layers, heads, rows, seq), one table for a block
        return list(bias.unflatten(0, (self.num_layers, self.num_heads)).unbind(0))


def resize_bias_table(
    table: Float[Tensor, "rows columns"], *, source: tuple[int, int], target: tuple[int, int]
) -> Float[Tensor, "new_rows columns"]:
    """Return the table for another patch grid: offsets by cubic splines on BEiT's geometric positions."""
    if source == target:
        return table
    count = num_offset_rows(source)
    # In half precision the matrices alone would lose more than the table has.
    precise = table[:count].to(torch.promote_types(table.dtype, torch.float32))
    offsets = precise.unflatten(0, (2 * source[0] - 1, 2 * source[1] - 1))
    down = _spline_matrix(2 * source[0] - 1, 2 * target[0] - 1).to(offsets)
    right = _spline_matrix(2 * source[1] - 1, 2 * target[1] - 1).to(offsets)
    # (source rows, source columns, heads) -> (target rows, target columns, heads), where `heads`
    # are those of all layers.
    resized = torch.einsum("ys,xt,stc->yxc", down, right, offsets).to(table)
    return torch.cat([resized.flatten(0, 1), table[count:]])


@lru_cache(maxsize=32)
@torch.inference_mode(mode=False)
def _spline_matrix(source: int, target: int) -> Float[Tensor, "target source"]:
    """Return cubic spline interpolation from `source` geometric positions to `target` integers, as a matrix."""
    # The other axis alone has another size.
    if source == target:
        return torch.eye(source, dtype=torch.float64)
    positions = _geometric_positions(source, target)
    # Where the positions fall short of the target's edge, FITPACK's splines repeat their last value.
    wanted = np.arange(-(target // 2), target // 2 + 1).clip(positions[0], positions[-1])
    degree = min(3, source - 1)
    return torch.from_numpy(make_interp_spline(positions, np.eye(source), k=degree)(wanted))


def _geometric_positions(source: int, target: int) -> np.ndarray:
    """Return positions 0, +-1, +-(1+q), ... whose last one reaches target // 2; q found by bisection as BEiT does."""
    # BEiT's bounds and tolerance, so that published tables resize to the same numbers.
    low = 1.01
    high = 1.5
    q = 1.0
    while high - low > 1e-6:
        q = (low + high) / 2
        if sum(q**i for i in range(source // 2)) > target // 2:
            high = q
        else:
            low = q
    right = np.cumsum([q**i for i in range(source // 2)])
    return np.concatenate([-right[::-1], [0.0], right])


def sincos_positions(*lengths: int, dim: int) -> Float[Tensor, "positions dim"]:
    """Return sines and cosines of positions along one axis, or of the cells of a grid row by row, from -1 to 1.

    Each axis has `dim / len(lengths)` columns, of angular frequencies from 2 down to 2 / length: the fastest tell
    neighbours apart, the slowest rise or fall along the whole axis.

    Raises:
        ValueError: `dim` is not a multiple of twice the number of axes.
    """
    if dim % (2 * len(lengths)):
        raise ValueError(
            f"dim is {dim}; sine and cosine of {len(lengths)} axes need a multiple of {2 * len(lengths)}"
        )
    half = dim // (2 * len(lengths))
    table = torch.zeros(1, 0)
    for length in lengths:
        # float64, as the slowest angles of long axes differ by little.
        steps = torch.arange(half, dtype=torch.float64) / half
        angles = 2 * torch.arange(length, dtype=torch.float64)[:, None] * float(length) ** -steps
        axis = torch.cat([angles.sin(), angles.cos()], dim=1).float()
        # The last axis runs fastest: cells row by row.
        table = torch.cat([table.repeat_interleave(length, 0), axis.repeat(len(table), 1)], dim=1)
    return table


def resize_absolute_positions(
    table: Float[Tensor, "positions dim"], *, source: tuple[int, int], target: tuple[int, int]
) -> Float[Tensor, "new_positions dim"]:
    """Return absolute image positions for another patch grid: bicubic, the class token's row kept."""
    if source == target:
        return table
    # (1 + patch, dim) -> (1, dim, rows, columns)
    patches = table[1:].T.unflatten(1, source)[None]
    resized = F.interpolate(patches.float(), size=target, mode="bicubic", align_corners=False).to(
        table
    )
    return torch.cat([table[:1], resized[0].flatten(1).T])
