"""The chunked attention of training on a CPU: the same numbers as whole score matrices, and every gradient."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from vlmo.model import cpu
from vlmo.model.cpu import chunked_attention
from vlmo.model.multiway import attend

BATCH, LENGTH, HEADS, DIM = 5, 19, 2, 4


def whole(qkv: Tensor, *, bias: Tensor | None, attention_mask: Tensor | None) -> Tensor:
    query, key, value = qkv.permute(2, 0, 3, 1, 4)
    scores = query @ key.mT / DIM**0.5
    scores = scores if bias is None else scores + bias
    if attention_mask is not None:
        scores = scores.masked_fill(~attention_mask[:, None, None], torch.finfo(scores.dtype).min)
    return (scores.softmax(dim=-1) @ value).transpose(1, 2)


def inputs(dtype: torch.dtype, *, heads_of_bias: int = HEADS) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    qkv = torch.randn(BATCH, LENGTH, 3, HEADS, DIM, generator=generator).to(dtype)
    bias = torch.randn(heads_of_bias, LENGTH, LENGTH, generator=generator).to(dtype)
    hidden = torch.zeros(BATCH, LENGTH, dtype=torch.bool)
    hidden[0, 7:] = hidden[1, 3:9] = True
    return qkv.requires_grad_(), bias.requires_grad_(), hidden


@pytest.mark.parametrize("rows_of_a_chunk", [1, 2, 5])
@pytest.mark.parametrize("heads_of_bias", [1, HEADS])
@pytest.mark.parametrize("is_padded", [False, True])
def test_chunks_equal_whole_matrices_in_value_and_gradient(
    is_padded, heads_of_bias, rows_of_a_chunk, monkeypatch
):
    monkeypatch.setattr(cpu, "_CHUNK_SCORES", rows_of_a_chunk * HEADS * LENGTH**2)
    qkv, bias, hidden = inputs(torch.float64, heads_of_bias=heads_of_bias)
    learnt = [qkv, bias]
    options = {"bias": bias, "attention_mask": ~hidden if is_padded else None}
    expected, actual = whole(qkv, **options), chunked_attention(qkv, **options)
    torch.testing.assert_close(actual, expected)
    probe = torch.randn(
        expected.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
    )
    gradients = [torch.autograd.grad(output, learnt, probe) for output in (expected, actual)]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(other, one)


def test_no_rows_have_no_attention_and_no_gradient():
    qkv = torch.zeros(0, LENGTH, 3, HEADS, DIM, requires_grad=True)
    attended = chunked_attention(qkv, bias=inputs(qkv.dtype)[1], attention_mask=None)
    assert attended.shape == (0, LENGTH, HEADS, DIM)
    attended.sum().backward()
    assert qkv.grad.shape == qkv.shape


def test_row_that_hides_everything_has_even_weights():
    qkv, bias, hidden = inputs(torch.float64)
    hidden[2] = True
    attended = chunked_attention(qkv, bias=bias, attention_mask=~hidden)
    torch.testing.assert_close(attended[2], qkv[2, :, 2].mean(dim=0).expand(LENGTH, -1, -1))
    attended.sum().backward()
    assert torch.isfinite(qkv.grad).all()
    assert torch.isfinite(bias.grad).all()


def test_half_precision_keeps_scores_in_float32():
    qkv, bias, hidden = inputs(torch.bfloat16)
    reference = qkv.detach().float().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        actual = chunked_attention(qkv, bias=bias.float(), attention_mask=~hidden)
    expected = whole(reference, bias=bias.float(), attention_mask=~hidden)
    assert actual.dtype == torch.bfloat16
    # Weights, values and the result are rounded to eight bits, scores are not.
    torch.testing.assert_close(actual.float(), expected, atol=0.02, rtol=0.01)
    (gradient,) = torch.autograd.grad(actual.sum(), qkv)
    (wanted,) = torch.autograd.grad(expected.sum(), reference)
    torch.testing.assert_close(gradient.float(), wanted, atol=0.03, rtol=0.02)


def test_nothing_of_the_size_of_scores_is_kept_for_the_backward_pass():
    qkv = torch.randn(3, 64, 3, 2, 8, requires_grad=True)
    bias = torch.randn(2, 64, 64, requires_grad=True)
    kept: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        chunked_attention(qkv, bias=bias, attention_mask=None).sum().backward()
    assert sorted(kept) == sorted([qkv.numel(), bias.numel()])


@pytest.mark.parametrize("given", ["nothing", "bias", "hidden keys", "both"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.bfloat16, 0.02)])
def test_attention_with_a_bias_that_does_not_learn_is_that_of_whole_matrices(
    given, dtype, tolerance, monkeypatch
):
    monkeypatch.setattr(cpu, "chunked_attention", None)  # not called
    qkv, bias, hidden = inputs(dtype)
    options = {
        "bias": bias.detach() if given in ("bias", "both") else None,
        "attention_mask": ~hidden if given in ("hidden keys", "both") else None,
    }
    reference = qkv.detach().double().requires_grad_()
    expected = whole(reference, **options).flatten(2)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        actual, _ = attend(qkv, **options, queries=None, eager=False)
    assert actual.dtype == dtype
    torch.testing.assert_close(actual.double(), expected, atol=tolerance, rtol=tolerance)
    (gradient,) = torch.autograd.grad(actual.sum(), qkv)
    (wanted,) = torch.autograd.grad(expected.sum(), reference)
    torch.testing.assert_close(gradient.double(), wanted, atol=tolerance, rtol=tolerance)
