"""Attention that trains faster on a CPU; without this file the model computes the same to rounding."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor
from torch.autograd.function import once_differentiable

_CHUNK_SCORES = 2**19  # 2 MiB of float32, so that scores, weights and their gradients stay in cache
_FEW_TOKENS = 128  # beyond, the matrices cost more memory than they save time
_ALIGNMENT = 16  # lines of whole 64 bytes, without which float32 products are a third slower


def trains_on_cpu(tensor: Shaped[Tensor, "*shape"]) -> bool:
    """Return True where this file may be faster than PyTorch's kernels: on a CPU, with gradients."""
    is_training = torch.is_grad_enabled() and not torch.compiler.is_compiling()
    return tensor.device.type == "cpu" and is_training


def prefers_chunks(
    qkv: Float[Tensor, "batch seq 3 heads dim"], bias: Float[Tensor, "#heads seq seq"] | None
) -> bool:
    """Return True where `chunked_attention` is faster than PyTorch's kernel: with a learned bias."""
    return bias is not None and bias.requires_grad and trains_on_cpu(qkv)


def prefers_matrices(
    query: Float[Tensor, "batch heads queries dim"], key: Float[Tensor, "batch heads seq dim"]
) -> bool:
    """Return True where whole score matrices are several times as fast: few tokens in bfloat16."""
    return trains_on_cpu(query) and query.dtype == torch.bfloat16 and key.shape[2] <= _FEW_TOKENS


def chunked_attention(
    qkv: Float[Tensor, "batch seq 3 heads dim"],
    *,
    bias: Float[Tensor, "#heads seq seq"] | None,
    attention_mask: Bool[Tensor, "batch seq"] | None,
) -> Float[Tensor, "batch seq heads dim"]:
    """Softmax attention a few rows at a time, with the gradient of a learned bias.

    PyTorch's fused CPU kernel returns no gradient for a bias; with one it falls back to whole score
    matrices, which are kept for the backward pass and cross the memory many times. Here the scores of a
    few rows fit the cache, and are computed again backward. Scores and softmax are float32 whatever the
    type of `qkv` (float64 for float64).

    Args:
        attention_mask: True for the tokens that are attended to.
    """
    return _ChunkedAttention.apply(qkv, bias, attention_mask)


class _ChunkedAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, qkv: Tensor, bias: Tensor | None, attention_mask: Tensor | None
    ) -> Tensor:
        ctx.save_for_backward(qkv, bias, attention_mask)
        attended = torch.empty_like(qkv[:, :, 0], memory_format=torch.contiguous_format)
        with torch.autocast("cpu", enabled=False):
            for chunk in _chunks(qkv, bias, attention_mask):
                _fill(attended[chunk.rows], chunk.weights.to(qkv.dtype) @ chunk.value)
        return attended

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, None]:
        qkv, bias, attention_mask = ctx.saved_tensors
        _, length, _, heads, dim = qkv.shape
        scale = dim**-0.5
        grad_qkv = torch.empty_like(qkv, memory_format=torch.contiguous_format)
        grad_bias = None
        with torch.autocast("cpu", enabled=False):
            for rows, query, key, value, weights in _chunks(qkv, bias, attention_mask):
                grad_attended = grad[rows].transpose(1, 2).flatten(0, 1)
                grad_weights = (grad_attended @ value.mT).to(weights.dtype)
                grad_scores = torch._softmax_backward_data(grad_weights, weights, -1, weights.dtype)
                if ctx.needs_input_grad[1]:
                    if grad_bias is None:
                        grad_bias = torch.zeros_like(grad_scores)
                    grad_bias[: len(grad_scores)] += grad_scores  # the last chunk may be shorter
                grad_scores = grad_scores.to(qkv.dtype)
                _fill(grad_qkv[rows, :, 0], grad_scores @ key, scale=scale)
                _fill(grad_qkv[rows, :, 1], grad_scores.mT @ query, scale=scale)
                _fill(grad_qkv[rows, :, 2], weights.to(qkv.dtype).mT @ grad_attended)
        if grad_bias is not None:
            grad_bias = grad_bias[..., :length].unflatten(0, (-1, heads)).sum(dim=0)
            grad_bias = grad_bias.sum_to_size(bias.shape).to(bias.dtype)
        return grad_qkv, grad_bias, None


class _Chunk(NamedTuple):
    """Some rows, with their heads in one dimension; keys and values are filled up with zeros."""

    rows: slice
    query: Float[Tensor, "chunk*heads seq dim"]
    key: Float[Tensor, "chunk*heads aligned dim"]
    value: Float[Tensor, "chunk*heads aligned dim"]
    weights: Float[Tensor, "chunk*heads seq aligned"]


def _chunks(
    qkv: Float[Tensor, "batch seq 3 heads dim"],
    bias: Float[Tensor, "#heads seq seq"] | None,
    attention_mask: Bool[Tensor, "batch seq"] | None,
) -> Iterator[_Chunk]:
    """Yield all rows with their attention weights; the next chunk overwrites a chunk's tensors."""
    batch, length, _, heads, dim = qkv.shape
    exact = torch.float64 if qkv.dtype == torch.float64 else torch.float32
    aligned = length + -length % _ALIGNMENT
    size = max(1, min(batch, _CHUNK_SCORES // (heads * aligned**2)))
    # The bias, with the keys that fill up hidden.
    added = qkv.new_full((size, heads, length, aligned), float("-inf"), dtype=exact)
    added[..., :length] = 0 if bias is None else bias
    added = added.flatten(0, 1)
    has_padding = [False] * batch
    if attention_mask is not None:
        has_padding = (~attention_mask).any(dim=1).tolist()
    parts = qkv.new_zeros(3, size, heads, aligned, dim)
    for start in range(0, batch, size):
        rows = slice(start, min(start + size, batch))
        chunk = parts[:, : rows.stop - start]
        chunk[..., :length, :] = qkv[rows].permute(2, 0, 3, 1, 4)
        query, key, value = chunk.flatten(1, 2)
        query = query[:, :length]
        scores = torch.baddbmm(
            added[: len(query)], query.to(exact), key.to(exact).mT, alpha=dim**-0.5
        )
        if attention_mask is not None and any(has_padding[rows]):
            # Finite, so that a row that hides everything has even weights rather than none. Added, which
            # is several times quicker than to fill.
            lowest = (~attention_mask[rows, None, None]).to(exact).mul_(torch.finfo(exact).min)
            scores.unflatten(0, (-1, heads))[..., :length].add_(lowest)
        yield _Chunk(rows, query, key, value, scores.softmax(dim=-1))


def _fill(
    target: Float[Tensor, "chunk seq heads dim"],
    part: Float[Tensor, "chunk*heads aligned dim"],
    *,
    scale: float = 1.0,
) -> None:
    part = part[:, : target.shape[1]].unflatten(0, (len(target), -1))
    torch.mul(part.transpose(1, 2), scale, out=target)
