"""What a pass through the blocks costs, from shapes alone: operations, and what is kept for the backward pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from vlmo.model.config import VLMoConfig

_FULL, _HALF = 4, 2  # bytes of a number


@dataclass(frozen=True)
class Pass:
    """Sequences of one shape on their way through blocks.

    Attributes:
        blocks: How many they pass.
        num_image: Patches and class token.
        rows: Sequences for each sample.
    """

    blocks: int
    num_text: int = 0
    num_image: int = 0
    rows: float = 1.0

    @property
    def length(self) -> int:
        """Tokens of a sequence."""
        return self.num_text + self.num_image


def block_flops(config: VLMoConfig, tokens: int) -> tuple[int, int, int]:
    """Floating point operations of one block on a sequence, forward: attention's projections, its products, expert.

    A multiplication and its addition are two; norms, softmax and activations are left out.
    """
    dim, inner = config.hidden_size, cast("int", config.intermediate_size)
    return 8 * tokens * dim**2, 4 * tokens**2 * dim, 4 * tokens * dim * inner


def training_flops(config: VLMoConfig, passes: Sequence[Pass], *, frozen_attention: bool = False) -> float:
    """Operations of the blocks for one sample, forward and backward.

    Backward costs twice the forward pass: once for inputs, once for weights. With frozen attention its projections
    have no gradients of weights.
    """
    total = 0.0
    for each in passes:
        projections, products, expert = block_flops(config, each.length)
        block = (2 if frozen_attention else 3) * projections + 3 * products + 3 * expert
        total += each.rows * each.blocks * block
    return total


def saved_bytes(config: VLMoConfig, passes: Sequence[Pass], *, half: bool) -> float:
    """Bytes that the blocks keep of one sample for the backward pass; `half` for bf16 activations (autocast).

    Of each token a block keeps, in numbers of the hidden size: the residual stream before both norms and what the norms
    give (4); scaled queries and keys, and values (3); what attention gives (1), and what LayerScale multiplies (2). Of
    the expert: before and after its activation. Of each pair of tokens and head: the attention weights. Under autocast
    the residual stream, and a second copy of the weights, are float32.
    """
    dim, inner, heads = config.hidden_size, cast("int", config.intermediate_size), config.num_attention_heads
    size = _HALF if half else _FULL
    scaled = 0 if config.layer_scale_init is None else 2
    token = 2 * _FULL * dim + size * ((6 + scaled) * dim + 2 * inner)
    weights = heads * ((_HALF + _FULL) if half else _FULL)
    return sum(each.rows * each.blocks * each.length * (token + weights * each.length) for each in passes)
