"""Losses of masked modelling against numbers worked out by hand."""

import math

import pytest
import torch

from vlmo.objectives.unimodal import masked_loss


def test_loss_is_the_mean_over_masked_tokens():
    # Two classes: logits (0, 0) cost log 2; logits (0, log 3) give the classes 1/4 and 3/4.
    logits = torch.tensor([[0.0, 0.0], [0.0, math.log(3)], [0.0, math.log(3)]])
    expected = (math.log(2) + math.log(4) + math.log(4 / 3)) / 3
    assert masked_loss(logits, torch.tensor([1, 0, 1])).item() == pytest.approx(expected)


def test_loss_of_nothing_is_zero_with_a_gradient():
    logits = torch.zeros(0, 5, requires_grad=True)
    value = masked_loss(logits, torch.zeros(0, dtype=torch.long))
    value.backward()
    assert value.item() == 0
    assert logits.grad.shape == (0, 5)


def test_loss_is_taken_in_float32():
    logits = torch.tensor([[1.0, 0.0]] * 100, dtype=torch.bfloat16)  # which has three digits
    value = masked_loss(logits, torch.zeros(100, dtype=torch.long))
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(math.log(1 + math.exp(-1)), abs=1e-6)


def test_gradient_is_softmax_minus_truth_over_the_count():
    logits = torch.randn(4, 6, requires_grad=True)
    labels = torch.tensor([0, 5, 2, 2])
    masked_loss(logits, labels).backward()
    truth = torch.nn.functional.one_hot(labels, 6)
    torch.testing.assert_close(logits.grad, (logits.detach().softmax(dim=1) - truth) / 4)
