"""What a pass through the blocks costs, from shapes alone: operations, and what is kept for the backward pass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

from vlmo.model.config import VLMoConfig

_FULL, _HALF = 4, 2  # bytes of a number


@dataclass(frozen=True)
class Pass:
    """A sequence on its way through so many blocks; `num_image` counts patches and class token."""

    blocks: int
    num_text: int = 0
    num_image: int = 0

    @property
    def length(self) -> int:
        """Tokens of the sequence."""
        return self.num_text + self.num_image


def training_flops(config: VLMoConfig, sequence: Pass, *, frozen_attention: bool = False) -> int:
    """Floating point operations of the blocks, forward and backward; a multiplication and its addition are two.

    Backward costs twice the forward pass: once for inputs, once for weights. With frozen attention its projections
    have no gradients of weights. Norms, softmax and activations are left out.
    """
    dim, inner, tokens = config.hidden_size, cast("int", config.intermediate_size), sequence.length
    projections, products, expert = 8 * tokens * dim**2, 4 * tokens**2 * dim, 4 * tokens * dim * inner
    return sequence.blocks * ((2 if frozen_attention else 3) * projections + 3 * products + 3 * expert)


def block_bytes(config: VLMoConfig, sequence: Pass, *, half: bool) -> int:
    """Bytes that one block keeps for the backward pass; `half` for bf16 activations (autocast).

    Of each token, in numbers of the hidden size: the residual stream before both norms, which is float32 all the same,
    and what the norms give (4); queries, keys and values (3); what attention gives (1), and what LayerScale multiplies
    (2). Of the expert: before and after its activation. Scores of attention are computed again.
    """
    dim, inner = config.hidden_size, cast("int", config.intermediate_size)
    scaled = 0 if config.layer_scale_init is None else 2
    return sequence.length * (2 * _FULL * dim + (_HALF if half else _FULL) * ((6 + scaled) * dim + 2 * inner))


def input_bytes(config: VLMoConfig, sequence: Pass) -> int:
    """Bytes of what goes into a block, all that is kept of it under activation checkpointing."""
    return sequence.length * _FULL * config.hidden_size
