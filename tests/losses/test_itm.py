"""Image-text matching: the loss, and the draw of hard negatives at its limits."""

import itertools
import math

import pytest
import torch

from vlmo import distributed
from vlmo.losses.itm import itm_loss, sample_hard_negatives, sample_uniform

BELOW_ONE = 1 - 2**-24  # the largest number that torch.rand gives
EXTREMES = (1e4, -1e4, 0.0, 1e-30, -88.0, 3e38, -3e38)


def test_itm_loss_by_hand():
    # Logits (0, 1): -log softmax is log(1 + e) - 1 for the match and log(1 + e) for the other class.
    logits, labels = torch.tensor([[0.0, 1.0], [0.0, 1.0]]), torch.tensor([1, 0])
    match, other = math.log(1 + math.e) - 1, math.log(1 + math.e)
    assert itm_loss(logits, labels).item() == pytest.approx((match + other) / 2)
    assert itm_loss(logits, labels, valid=torch.tensor([True, False])).item() == pytest.approx(
        match
    )
    assert itm_loss(logits, labels, valid=torch.tensor([False, False])).item() == 0
    assert itm_loss(logits.bfloat16(), labels).dtype == torch.float32


def test_negatives_follow_the_softmax_of_similarities():
    similarities = torch.tensor([2.0, 0.0, 1.0, -1.0, 0.5])
    excluded = torch.tensor([False, True, False, False, False])
    count = 20_000
    drawn, valid = sample_hard_negatives(
        similarities.expand(count, -1),
        excluded=excluded.expand(count, -1),
        uniform=(torch.arange(count) + 0.5)
        / count,  # evenly spread, so counts are exact up to one at each border
    )
    assert valid.all()
    expected = similarities.masked_fill(excluded, -torch.inf).softmax(dim=0)
    torch.testing.assert_close(
        drawn.bincount(minlength=5) / count, expected, atol=2 / count, rtol=0
    )


@pytest.mark.parametrize("uniform", [0.0, 1e-8, 0.5, BELOW_ONE])
def test_negatives_are_allowed_whatever_the_similarities(uniform):
    rows, exclusions = [], []
    for values in itertools.product(EXTREMES, repeat=4):
        for excluded in (
            (True, False, False, False),
            (False, False, False, True),
            (True, False, True, False),
        ):
            rows.append(values)
            exclusions.append(excluded)
    excluded = torch.tensor(exclusions)
    drawn, valid = sample_hard_negatives(
        torch.tensor(rows), excluded=excluded, uniform=torch.full((len(rows),), uniform)
    )
    assert valid.all()
    assert not excluded.gather(1, drawn[:, None]).any()


def test_negatives_survive_weights_that_underflow():
    # The own pair is far ahead: the softmax over all gives every other row exactly 0.
    similarities = torch.tensor([[200.0, 0.0, -1.0], [-200.0, 500.0, 7.0]])
    excluded = torch.eye(3, dtype=torch.bool)[:2]
    assert similarities.softmax(dim=1)[~excluded].max() == 0
    counts = torch.zeros(2, 3)
    for uniform in torch.linspace(0, BELOW_ONE, 1000):
        drawn, valid = sample_hard_negatives(
            similarities, excluded=excluded, uniform=uniform.expand(2)
        )
        assert valid.all()
        counts[torch.arange(2), drawn] += 1
    # exp(0) against exp(-1), and exp(7) against exp(-200).
    torch.testing.assert_close(
        counts / 1000, torch.tensor([[0.0, 0.731, 0.269], [0.0, 0.0, 1.0]]), atol=2e-3, rtol=0
    )


def test_rows_without_candidates_are_not_valid():
    excluded = torch.tensor([[True, True, True], [True, True, False]])
    drawn, valid = sample_hard_negatives(
        torch.randn(2, 3), excluded=excluded, uniform=torch.tensor([0.9, 0.9])
    )
    assert valid.tolist() == [False, True]
    assert drawn.tolist() == [0, 2]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_similarities_that_are_not_finite_still_give_a_row(bad):
    drawn, _ = sample_hard_negatives(
        torch.full((3, 4), bad),
        excluded=torch.eye(4, dtype=torch.bool)[:3],
        uniform=torch.tensor([0.0, 0.5, 0.9]),
    )
    assert torch.all((drawn >= 0) & (drawn < 4))


@pytest.mark.parametrize("world_size", [2, 4])
def test_draws_are_a_share_of_the_global_numbers(world_size, monkeypatch):
    seed = torch.tensor(5)
    whole = sample_uniform(seed, batch=8, rounds=2)
    assert whole.shape == (2, 8)
    monkeypatch.setattr(distributed, "world_size", lambda: world_size)
    shares = []
    for rank in range(world_size):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        shares.append(sample_uniform(seed, batch=8 // world_size, rounds=2))
    assert torch.equal(torch.cat(shares, dim=1), whole)
