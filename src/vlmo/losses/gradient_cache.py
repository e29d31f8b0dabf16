"""Gradient cache: work on some rows at a time, so that memory does not grow with the batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

T = TypeVar("T")

_BLOCK_ELEMENTS = 2**22
"""Most numbers of a block of logits: 16 MiB in float32."""


def row_blocks(count: int, *, width: int) -> list[slice]:
    """Return rows 0 to `count` in blocks of about equal memory: the wider a row, the fewer rows."""
    return row_slices(count, size=max(1, _BLOCK_ELEMENTS // max(width, 1)))


def row_slices(count: int, *, size: int) -> list[slice]:
    """Return rows 0 to `count` in slices of `size`; the last may be shorter. At least one slice, if an empty one."""
    return [slice(start, min(start + size, count)) for start in range(0, max(count, 1), size)]


def cached(
    encode: Callable[..., Sequence[Tensor]], *, size: int | None
) -> Callable[..., Sequence[Tensor]]:
    """Return an encoder of `size` rows of its arguments at a time, computed again in the backward pass.

    Keyword arguments are the same for all rows. A size of None returns `encode` as it is.
    """
    if size is None:
        return encode

    def encode_in_chunks(*inputs: Tensor, **constants: object) -> Sequence[Tensor]:
        encode_chunk = partial(encode, **constants)
        outputs = []
        for rows in row_slices(len(inputs[0]), size=size):
            chunk = [tensor[rows] for tensor in inputs]
            outputs.append(recomputed(encode_chunk, *chunk, device=inputs[0].device))
        # Outputs of the encoder may be several: a list of chunks -> whole outputs.
        return [torch.cat(chunks) for chunks in zip(*outputs, strict=True)]

    return encode_in_chunks


def recomputed(function: Callable[..., T], *args: object, device: torch.device) -> T:
    """Return `function(*args)` without keeping intermediate results: backward computes it again, dropout replayed.

    For the encoders of a contrastive batch this is the gradient cache ("Scaling Deep Contrastive Learning Batch Size
    under Memory Limited Setup", Gao et al. 2021): first all embeddings, then the loss and its
    gradient for every embedding, then chunk by chunk the encoder again with its backward pass. All of
    it happens in one ordinary `backward()`, so data parallelism averages the gradients once.
    """

    def run(*args: object) -> T:
        # Autocast would cast a weight once for all chunks, whose gradients would then be summed up in bfloat16.
        with torch.autocast(
            device.type,
            enabled=torch.is_autocast_enabled(device.type),
            dtype=torch.get_autocast_dtype(device.type),
            cache_enabled=False,
        ):
            return function(*args)

    # By tensors among the arguments `checkpoint` knows whose random numbers to replay: a GPU samples its own. What
    # its check of shapes remembers would grow with the number of chunks.
    here = torch.empty(0, device=device)
    return checkpoint(
        lambda _, *args: run(*args), here, *args, use_reentrant=False, determinism_check="none"
    )
