"""Image-text matching: its loss, its hard negatives out of the batch of all processes, and its pairs."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from vlmo import distributed
from vlmo.losses.gradient_cache import row_blocks
from vlmo.losses.itc import SamePairs, contrast_logits
from vlmo.types import Batch


def itm_loss(
    logits: Float[Tensor, "pairs 2"], labels: Int[Tensor, "pairs"], *, valid: Bool[Tensor, "pairs"] | None = None
) -> Float[Tensor, ""]:
    """Cross-entropy over matching and non-matching pairs of all processes (VLMo, "Image-Text Matching").

    Args:
        valid: False for pairs that do not count (no negative could be found). None counts all.
    """
    losses = F.cross_entropy(logits.float(), labels, reduction="none")
    weights = torch.ones_like(losses) if valid is None else valid.to(losses.dtype)
    return distributed.global_mean((losses * weights).sum(), weights.sum())


class HardNegatives(NamedTuple):
    """Global rows of the hard negatives of own rows, row by row; `found` is False where there was none to sample."""

    text: Int[Tensor, "negatives"]
    text_found: Bool[Tensor, "negatives"]
    image: Int[Tensor, "negatives"]
    image_found: Bool[Tensor, "negatives"]


class FusedPairs(NamedTuple):
    """Pairs for the fusion encoder, with the targets of MLM and ITM."""

    images: Int[Tensor, "pairs"]  # rows of the pixels
    input_ids: Int[Tensor, "pairs text"]
    attention_mask: Int[Tensor, "pairs text"]
    mlm_labels: Int[Tensor, "pairs text"]  # words to predict, -100 elsewhere
    targets: Int[Tensor, "pairs"]  # 1 for a match, 0 for a negative
    valid: Bool[Tensor, "pairs"]  # True for pairs that count in ITM


def mlm_pairs(batch: Batch, *, rows: Int[Tensor, "rows"]) -> FusedPairs:
    """Return `rows` of the batch with masked words, which do not count in ITM."""
    ids, mask, labels = (batch[name][rows] for name in ("mlm_input_ids", "attention_mask", "mlm_labels"))
    return FusedPairs(rows, ids, mask, labels, torch.ones_like(rows), valid=torch.zeros_like(rows, dtype=torch.bool))


def itm_pairs(
    batch: Batch, negatives: HardNegatives, *, rows: Int[Tensor, "rows"]
) -> tuple[Float[Tensor, "images 3 height width"], FusedPairs]:
    """Return the images of ITM, those of the batch first, and its pairs (VLMo, "Image-Text Matching").

    These are the true pairs of `rows`, each text with its negative images and each image with its negative texts, which
    are fetched from their processes, and with its false caption where the batch has one.
    """
    ids, mask = batch["input_ids"], batch["attention_mask"]
    again = rows.repeat_interleave(len(negatives.text) // len(rows))
    pixels, images = distributed.append_rows(batch["pixel_values"], negatives.image)
    other_ids, other_mask = distributed.exchange(torch.stack([ids, mask], dim=1), negatives.text).unbind(1)
    no_match = torch.zeros_like(again)
    pairs = [
        (rows, ids[rows], mask[rows], torch.ones_like(rows), torch.ones_like(rows, dtype=torch.bool)),
        (images, ids[again], mask[again], no_match, negatives.image_found),
        (again, other_ids, other_mask, no_match, negatives.text_found),
    ]
    if "false_input_ids" in batch:
        false_mask = batch["false_attention_mask"][rows]
        found = false_mask.any(dim=1)
        pairs.append((rows, batch["false_input_ids"][rows], false_mask, torch.zeros_like(rows), found))
    images, ids, mask, targets, valid = map(torch.cat, zip(*pairs, strict=True))
    return pixels, FusedPairs(images, ids, mask, torch.full_like(ids, -100), targets, valid)


@torch.no_grad()
def sample_negatives(
    vectors: tuple[Float[Tensor, "batch dim"], Float[Tensor, "batch dim"]],
    keys: tuple[Float[Tensor, "global dim"], Float[Tensor, "global dim"]],
    *,
    logit_scale: Float[Tensor, "1"],
    same: SamePairs,
    rows: Int[Tensor, "rows"],
    seed: Int[Tensor, ""],
    count: int = 1,
    groups: int = 1,
    sharpness: float = 1.0,
) -> HardNegatives:
    """Sample `count` texts and `count` images for each of the own `rows` by ITC logits times `sharpness`.

    Args:
        vectors: Of the own images and texts; `keys` are those of all processes.
        same: Pairs that are no negatives.
        groups: Groups of neighbouring global rows; a row's negatives come from its own group.
    """
    uniform = sample_uniform(seed, batch=len(vectors[0]), rounds=2 * count)[:, rows]
    uniform = uniform.view(2, count, len(rows)).transpose(1, 2).flatten(1)
    rows, size = rows.repeat_interleave(count), len(keys[0]) // groups

    def sample(own: Tensor, others: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor]:
        chosen, found = [], []
        for part in row_blocks(len(rows), width=len(others)):
            excluded = same[rows[part]]
            if groups > 1:
                group = (distributed.rank() * len(same.own) + rows[part]) // size
                excluded = excluded | (group[:, None] != torch.arange(len(others), device=rows.device) // size)
            logits = contrast_logits(own[rows[part]], others, logit_scale=logit_scale) * sharpness
            sampled, any_found = sample_hard_negatives(logits, excluded=excluded, uniform=numbers[part])
            chosen.append(sampled)
            found.append(any_found)
        return torch.cat(chosen), torch.cat(found)

    (text, text_found), (image, image_found) = map(sample, vectors, reversed(keys), uniform)
    return HardNegatives(text, text_found, image, image_found)


def sample_hard_negatives(
    similarities: Float[Tensor, "batch global"],
    *,
    excluded: Bool[Tensor, "batch global"],
    uniform: Float[Tensor, "batch"],
) -> tuple[Int[Tensor, "batch"], Bool[Tensor, "batch"]]:
    """Sample one global row for each row with probability softmax(similarity) among those not excluded.

    Args:
        similarities: ITC logits (temperature applied).
        excluded: True where the global row is a true pair of the row; the row itself must be among them.
        uniform: In [0, 1); the sample of row i is a pure function of `uniform[i]`.

    Returns:
        Row numbers in the global batch, and False for rows with nothing to sample from (their number is 0).
    """
    possible = ~excluded.all(dim=1)
    # The largest allowed logit is subtracted before exp, so that some weight is always 1: never all zero.
    logits = similarities.detach().float().masked_fill(excluded, float("-inf"))
    logits = torch.where(possible[:, None], logits, torch.zeros_like(logits))
    exact = torch.device("cpu") if logits.device.type == "mps" else logits.device  # Apple's GPUs have no float64
    cumulative = logits.softmax(dim=1).to(exact).double().cumsum(dim=1)
    target = uniform.to(exact).double()[:, None] * cumulative[:, -1:]
    chosen = torch.searchsorted(cumulative, target, right=True)[:, 0].to(logits.device)
    # Logits that are not finite would point past the end; their loss is not finite either, and the step is skipped.
    chosen = chosen.clamp(max=logits.shape[1] - 1)
    return torch.where(possible, chosen, torch.zeros_like(chosen)), possible


def sample_uniform(seed: Int[Tensor, ""], *, batch: int, rounds: int) -> Float[Tensor, "rounds batch"]:
    """Return this process's share of uniform numbers that depend only on the seed and the row's global number."""
    generator = torch.Generator().manual_seed(int(seed))
    numbers = torch.rand(rounds, batch * distributed.world_size(), generator=generator)
    start = distributed.rank() * batch
    return numbers[:, start : start + batch].to(seed.device)
