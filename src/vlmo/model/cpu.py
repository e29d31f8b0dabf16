"""Attention that trains faster on a CPU; without this file the model computes the same to rounding."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor
from torch.autograd.function import once_differentiable

from vlmo.losses.gradient_cache import row_slices

# 2 MiB of float32, so that scores, weights and their gradients stay in cache.
_CHUNK_SCORES = 2**19
# Beyond as many, whole matrices cost more memory than they save time.
_FEW_TOKENS = 128


def trains_on_cpu(tensor: Shaped[Tensor, "*shape"]) -> bool:
    """Return True where this file may be faster than PyTorch's kernels: on a CPU, with gradients."""
    is_training = torch.is_grad_enabled() and not torch.compiler.is_compiling()
    return tensor.device.type == "cpu" and is_training


def prefers_chunks(
    qkv: Float[Tensor, "batch seq 3 heads dim"], bias: Float[Tensor, "#heads seq seq"]
) -> bool:
    """Return True where `chunked_attention` is the fastest: many tokens with a learned bias."""
    return bias.requires_grad and qkv.shape[1] > _FEW_TOKENS and trains_on_cpu(qkv)


def prefers_matrices(
    query: Float[Tensor, "batch heads queries dim"],
    key: Float[Tensor, "batch heads seq dim"],
    bias: Float[Tensor, "#heads #rows seq"] | None,
) -> bool:
    """Return True where whole score matrices are the fastest: few tokens, in bfloat16 or with a learned bias."""
    is_learned = bias is not None and bias.requires_grad
    is_slow = is_learned or query.dtype == torch.bfloat16  # in PyTorch's kernels
    return is_slow and key.shape[2] <= _FEW_TOKENS and trains_on_cpu(query)


def chunked_attention(
    qkv: Float[Tensor, "batch seq 3 heads dim"],
    *,
    bias: Float[Tensor, "#heads seq seq"],
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
    def forward(ctx: Any, qkv: Tensor, bias: Tensor, attention_mask: Tensor | None) -> Tensor:
        ctx.save_for_backward(qkv, bias, attention_mask)
        attended = torch.empty_like(qkv[:, :, 0], memory_format=torch.contiguous_format)
        # Types are chosen here; autocast would cast the float32 scores.
        with torch.autocast("cpu", enabled=False):
            for rows in _chunks(qkv):
                value = qkv[rows, :, 2].transpose(1, 2)
                weights = _weights(qkv, bias, attention_mask, rows=rows)
                attended[rows] = (weights.to(value.dtype) @ value).transpose(1, 2)
        return attended

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        qkv, bias, attention_mask = ctx.saved_tensors
        grad_qkv = torch.empty_like(qkv, memory_format=torch.contiguous_format)
        grad_bias = torch.zeros_like(bias)
        with torch.autocast("cpu", enabled=False):
            for rows in _chunks(qkv):
                query, key, value = qkv[rows].transpose(1, 3).unbind(2)
                weights = _weights(qkv, bias, attention_mask, rows=rows)
                grad_attended = grad[rows].transpose(1, 2)
                grad_weights = (grad_attended @ value.mT).to(weights.dtype)
                # Softmax: grad_scores = weights * (grad_weights - sum(weights * grad_weights)).
                grad_scores = torch._softmax_backward_data(grad_weights, weights, -1, weights.dtype)
                # Rows share the bias, so their gradients add up: (rows, heads, seq, seq) -> (heads,
                # seq, seq).
                grad_bias += grad_scores.sum_to_size(1, *bias.shape)[0]
                # The bias is added after the scale, which only queries and keys see.
                grad_scores = (qkv.shape[-1] ** -0.5 * grad_scores).to(qkv.dtype)
                grad_qkv[rows, :, 0] = (grad_scores @ key).transpose(1, 2)
                grad_qkv[rows, :, 1] = (grad_scores.mT @ query).transpose(1, 2)
                grad_qkv[rows, :, 2] = (weights.to(qkv.dtype).mT @ grad_attended).transpose(1, 2)
        return grad_qkv, grad_bias, None


def _chunks(qkv: Float[Tensor, "batch seq 3 heads dim"]) -> list[slice]:
    batch, length, _, heads, _ = qkv.shape
    return row_slices(batch, size=max(1, _CHUNK_SCORES // (heads * length**2)))


def _weights(
    qkv: Float[Tensor, "batch seq 3 heads dim"],
    bias: Float[Tensor, "#heads seq seq"],
    attention_mask: Bool[Tensor, "batch seq"] | None,
    *,
    rows: slice,
) -> Float[Tensor, "rows heads seq seq"]:
    exact = torch.promote_types(qkv.dtype, torch.float32)
    # Queries and keys: (rows, heads, seq, dim).
    query, key, _ = qkv[rows].transpose(1, 3).to(exact).unbind(2)
    scores = (qkv.shape[-1] ** -0.5 * query @ key.mT).add_(bias)
    if attention_mask is not None:
        # Finite, so that a row that hides everything has even weights rather than none.
        scores.masked_fill_(~attention_mask[rows, None, None], torch.finfo(exact).min)
    return scores.softmax(dim=-1)
