"""Image-text contrast against plain loops, and which pairs count as the same."""

import math

import pytest
import torch
from torch.nn import functional as F

from vlmo.losses import gradient_cache
from vlmo.losses.itc import FalseCaptions, caption_keys, contrast_logits, itc_loss, same_pairs

ATOL = 1e-6  # float32 sums in another order


def embeds(count: int = 6, *, seed: int = 0) -> torch.Tensor:
    return F.normalize(torch.randn(count, 5, generator=torch.Generator().manual_seed(seed)), dim=-1)


def loss_by_loops(
    images: torch.Tensor, texts: torch.Tensor, scale: float, same: list[list[bool]] | None
) -> float:
    """Mean over rows and both directions of -log(exp(s_ii) / sum_j exp(s_ij)), leaving out what is the same."""
    total = 0.0
    for queries, keys in ((images, texts), (texts, images)):
        for i in range(len(queries)):
            terms = [
                math.exp(scale * float(queries[i] @ keys[j]))
                for j in range(len(keys))
                if same is None or i == j or not same[i][j]
            ]
            total -= math.log(math.exp(scale * float(queries[i] @ keys[i])) / sum(terms))
    return total / (2 * len(images))


SAME = torch.eye(6, dtype=torch.bool)
SAME[0, 3] = SAME[3, 0] = SAME[1, 2] = SAME[2, 1] = True


@pytest.mark.parametrize(
    "same", [None, SAME, torch.eye(6, dtype=torch.bool), torch.ones(6, 6, dtype=torch.bool)]
)
def test_itc_equals_plain_loops(same):
    images, texts = embeds(), embeds(seed=1)
    loss = itc_loss(images, texts, logit_scale=torch.tensor([2.0]), same=same)
    expected = loss_by_loops(images, texts, math.exp(2), None if same is None else same.tolist())
    assert loss.shape == ()
    assert loss.item() == pytest.approx(expected, abs=1e-5)


def test_false_caption_is_a_further_negative_of_its_image_alone():
    # Logits of image 0: 1 (its text), 0 (the other), 0.6 (its false caption); image 1 has none, texts have none.
    identity, found = torch.eye(2), torch.tensor([True, False])
    false = torch.tensor([[0.6, 0.8], [0.6, 0.8]], requires_grad=True)
    loss = itc_loss(
        identity, identity, logit_scale=torch.zeros(1), false_captions=FalseCaptions(false, found)
    )
    expected = (math.log(1 + math.exp(-1) + math.exp(0.6 - 1)) + 3 * math.log(1 + math.exp(-1))) / 4
    assert loss.item() == pytest.approx(expected)
    loss.backward()
    share = math.exp(0.6) / (math.exp(1) + 1 + math.exp(0.6))
    torch.testing.assert_close(false.grad, torch.tensor([[share / 4, 0], [0, 0]]))


@pytest.mark.parametrize("rows_of_a_block", [2, 6])
def test_false_captions_equal_plain_loops(rows_of_a_block, monkeypatch):
    monkeypatch.setattr(gradient_cache, "_BLOCK_ELEMENTS", rows_of_a_block * 6)
    images, texts, false = (embeds(seed=seed).requires_grad_() for seed in range(3))
    found = torch.tensor([True, False, True, True, False, True])
    scale = torch.tensor([1.5], requires_grad=True)
    expected = torch.zeros(())
    for row in range(6):
        others = [other for other in range(6) if other == row or not SAME[row, other]]
        to_texts = [(scale.exp() * images[row] @ texts[other]).exp() for other in others]
        to_images = [(scale.exp() * texts[row] @ images[other]).exp() for other in others]
        if found[row]:
            to_texts.append((scale.exp() * images[row] @ false[row]).exp())
        pair = scale.exp() * images[row] @ texts[row]
        expected = expected + (sum(to_texts).log() + sum(to_images).log() - 2 * pair).squeeze() / 12
    loss = itc_loss(
        images, texts, logit_scale=scale, same=SAME, false_captions=FalseCaptions(false, found)
    )
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=0)
    inputs = [images, texts, false, scale]
    gradients = [torch.autograd.grad(value, inputs) for value in (loss, expected)]
    for actual, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-4)


def test_itc_leaves_out_pairs_and_their_gradients():
    images, texts = embeds().requires_grad_(), embeds(seed=1).requires_grad_()
    same = torch.eye(6, dtype=torch.bool)
    same[:5, :5] = True  # the first five are all the same and see only the last
    itc_loss(images[:5], texts[:5], logit_scale=torch.zeros(1), same=same[:5, :5]).backward()
    assert torch.all(images.grad == 0)
    itc_loss(images, texts, logit_scale=torch.zeros(1), same=same).backward()
    assert torch.all(images.grad.abs().sum(dim=1) > 0)
    assert torch.isfinite(images.grad).all()


def keys(rows: list[list[int]], *, padded_to: int) -> list[int]:
    ids = torch.zeros(len(rows), padded_to, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for number, row in enumerate(rows):
        ids[number, : len(row)] = torch.tensor(row, dtype=torch.long)
        mask[number, : len(row)] = 1
    return caption_keys(ids, mask).tolist()


def test_caption_keys_do_not_depend_on_padding():
    captions = [[2, 7, 9, 3], [2, 3], [2, 50, 3]]
    assert (
        keys(captions, padded_to=4) == keys(captions, padded_to=8) == keys(captions, padded_to=40)
    )
    ids, mask = torch.tensor([[2, 7, 3, 99], [2, 7, 3, 0]]), torch.tensor([[1, 1, 1, 0]] * 2)
    assert (
        caption_keys(ids, mask).unique().numel() == 1
    )  # what stands in the padding does not count


def test_same_pairs_share_a_picture_or_a_caption():
    images, captions = torch.tensor([1, 2, 1, 3]), torch.tensor([7, 8, 9, 8])
    assert same_pairs(images, captions)[:].int().tolist() == [
        [1, 0, 1, 0],
        [0, 1, 0, 1],
        [1, 0, 1, 0],
        [0, 1, 0, 1],
    ]


def test_logits_are_float32_under_autocast():
    images, texts = (torch.nn.functional.normalize(torch.randn(6, 8), dim=-1) for _ in range(2))
    scale = torch.tensor([4.6])  # logits up to 100, where bfloat16 counts in halves
    expected = itc_loss(images, texts, logit_scale=scale)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(
            itc_loss(images, texts, logit_scale=scale), expected, atol=1e-6, rtol=0
        )
        assert contrast_logits(images, texts, logit_scale=scale).dtype == torch.float32
