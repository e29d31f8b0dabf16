"""Softmax attention for training on a CPU: a few rows at a time, with the gradient of a learnt bias.

PyTorch's fused CPU kernel returns no gradient for a bias; with one it falls back to whole score matrices, which are
kept for the backward pass and cross the memory many times. Here the scores of a few rows fit the cache, and are
computed again backward. Scores and softmax are float32 whatever the type of queries, keys and values (float64 for
float64).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

_CHUNK_SCORES = 2**19  # 2 MiB of float32, so that scores, weights and their gradients stay in cache
_ALIGNMENT = 16  # lines of whole 64 bytes; without them, float32 products of this size lose a third of their speed


def chunked_attention(
    qkv: Float[Tensor, "batch seq 3 heads dim"],
    *,
    bias: Float[Tensor, "#heads seq seq"] | None,
    hidden_keys: Bool[Tensor, "batch seq"] | None,
) -> Float[Tensor, "batch seq heads dim"]:
    """Attends: `bias` is added to the scaled scores, and `hidden_keys` get no weight."""
    return _ChunkedAttention.apply(qkv, bias, hidden_keys)


class _ChunkedAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, qkv: Tensor, bias: Tensor | None, hidden_keys: Tensor | None) -> Tensor:
        ctx.save_for_backward(qkv, bias, hidden_keys)
        attended = torch.empty_like(qkv[:, :, 0], memory_format=torch.contiguous_format)
        with torch.autocast("cpu", enabled=False):
            for rows, (_, _, value), weights in _weights_by_chunk(qkv, bias, hidden_keys):
                _fill(attended[rows], weights.to(value.dtype) @ value)
        return attended

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, None]:
        qkv, bias, hidden_keys = ctx.saved_tensors
        grad_qkv = torch.empty_like(qkv, memory_format=torch.contiguous_format)
        grad_bias = None
        with torch.autocast("cpu", enabled=False):
            for rows, (query, key, value), weights in _weights_by_chunk(qkv, bias, hidden_keys):
                grad_attended = _aligned(grad[rows])
                grad_weights = grad_attended.to(weights.dtype) @ value.to(weights.dtype).mT
                mean = (grad_weights * weights).sum(dim=-1, keepdim=True)
                grad_scores = grad_weights.sub_(mean).mul_(weights)
                if ctx.needs_input_grad[1]:
                    total = grad_scores.sum(dim=0)
                    grad_bias = total if grad_bias is None else grad_bias.add_(total)
                grad_scores = grad_scores.mul_(query.shape[-1] ** -0.5).to(query.dtype)
                _fill(grad_qkv[rows, :, 0], grad_scores @ key)
                _fill(grad_qkv[rows, :, 1], grad_scores.mT @ query)
                _fill(grad_qkv[rows, :, 2], weights.to(value.dtype).mT @ grad_attended)
        if grad_bias is not None:
            length = qkv.shape[1]
            grad_bias = grad_bias[:, :length, :length].sum_to_size(bias.shape).to(bias.dtype)
        return grad_qkv, grad_bias, None


def _weights_by_chunk(
    qkv: Float[Tensor, "batch seq 3 heads dim"],
    bias: Float[Tensor, "#heads seq seq"] | None,
    hidden_keys: Bool[Tensor, "batch seq"] | None,
) -> Iterator[tuple[slice, tuple[Tensor, ...], Float[Tensor, "chunk heads aligned aligned"]]]:
    """Rows, their queries, keys and values, and the attention weights; `aligned` is `seq` filled up with zeros."""
    batch, length, _, heads, dim = qkv.shape
    exact = torch.float64 if qkv.dtype == torch.float64 else torch.float32
    extra = -length % _ALIGNMENT
    if bias is None:
        bias = qkv.new_zeros(1, length, length, dtype=exact)
    bias = F.pad(F.pad(bias.to(exact), (0, 0, 0, extra)), (0, extra), value=float("-inf"))
    hidden = None
    if hidden_keys is not None:
        hidden = qkv.new_zeros(batch, 1, 1, length + extra, dtype=exact)
        # Finite, so that a row that hides everything has even weights rather than none.
        hidden[..., :length].masked_fill_(hidden_keys[:, None, None], torch.finfo(exact).min)
    size = max(1, _CHUNK_SCORES // (heads * (length + extra) ** 2))
    for start in range(0, batch, size):
        rows = slice(start, start + size)
        parts = tuple(_aligned(qkv[rows, :, number]) for number in range(3))
        scores = torch.add(bias, parts[0].to(exact) @ parts[1].to(exact).mT, alpha=dim**-0.5)
        if hidden is not None:
            scores.add_(hidden[rows])
        yield rows, parts, scores.softmax(dim=-1)


def _aligned(part: Float[Tensor, "chunk seq heads dim"]) -> Float[Tensor, "chunk heads aligned dim"]:
    """Heads first, and the sequence filled up with zeros."""
    return F.pad(part.transpose(1, 2), (0, 0, 0, -part.shape[1] % _ALIGNMENT)).contiguous()


def _fill(target: Float[Tensor, "chunk seq heads dim"], part: Float[Tensor, "chunk heads aligned dim"]) -> None:
    target.copy_(part[:, :, : target.shape[1]].transpose(1, 2))
