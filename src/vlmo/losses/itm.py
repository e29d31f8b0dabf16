"""Image-text matching: its loss, its hard negatives out of the batch of all processes, and its pairs."""

from __future__ import annotations

from collections.abc import Sequence
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
    logits: Float[Tensor, "pairs 2"],
    labels: Int[Tensor, "pairs"],
    *,
    valid: Bool[Tensor, "pairs"] | None = None,
) -> Float[Tensor, ""]:
    """Cross-entropy over pairs of all processes, matching or not (VLMo, "Image-Text Matching").

    Args:
        valid: False for pairs that do not count (there was no negative to sample). None counts all.
    """
    # In float32, also where autocast made the logits bfloat16.
    losses = F.cross_entropy(logits.float(), labels, reduction="none")
    weights = torch.ones_like(losses) if valid is None else valid.to(losses.dtype)
    return distributed.global_mean((losses * weights).sum(), weights.sum())


class HardNegatives(NamedTuple):
    """Global rows of the hard negatives of local rows; invalid where there was none to sample."""

    text: Int[Tensor, "negatives"]
    text_valid: Bool[Tensor, "negatives"]
    image: Int[Tensor, "negatives"]
    image_valid: Bool[Tensor, "negatives"]


class FusedPairs(NamedTuple):
    """Pairs for the fusion encoder, with the targets of MLM and ITM."""

    images: Int[Tensor, "pairs"]  # rows of the pixels
    input_ids: Int[Tensor, "pairs text"]
    attention_mask: Int[Tensor, "pairs text"]
    mlm_labels: Int[Tensor, "pairs text"]  # words to predict, -100 elsewhere
    targets: Int[Tensor, "pairs"]  # 1 for a match, 0 for a negative
    valid: Bool[Tensor, "pairs"]  # True for pairs that count in ITM


def join_pairs(parts: Sequence[FusedPairs]) -> FusedPairs:
    """Return the pairs of all parts, one part after the other."""
    return FusedPairs(*map(torch.cat, zip(*parts, strict=True)))


def mlm_pairs(batch: Batch, *, rows: Int[Tensor, "rows"]) -> FusedPairs:
    """Return `rows` of the batch with masked words, which do not count in ITM."""
    return FusedPairs(
        images=rows,
        input_ids=batch["mlm_input_ids"][rows],
        attention_mask=batch["attention_mask"][rows],
        mlm_labels=batch["mlm_labels"][rows],
        # Without meaning: `valid` is False.
        targets=torch.ones_like(rows),
        valid=torch.zeros_like(rows, dtype=torch.bool),
    )


def itm_pairs(
    batch: Batch, negatives: HardNegatives, *, rows: Int[Tensor, "rows"]
) -> tuple[Float[Tensor, "images 3 height width"], FusedPairs]:
    """Return the images of ITM, the batch's first, and its pairs (VLMo, "Image-Text Matching").

    The pairs are the true ones of `rows`, each text with its negative images, each image with its
    negative texts, both fetched from their processes, and each image with its false caption if the
    batch has one.
    """
    ids = batch["input_ids"]
    mask = batch["attention_mask"]
    # Only the sampled images travel. The published code gathers all of them, 602 KB each at 224
    # pixels, on every device.
    pixels, negative_images = distributed.append_rows(batch["pixel_values"], negatives.image)
    # (negatives, 2, text): ids and mask travel together.
    negative_texts = distributed.exchange(torch.stack([ids, mask], dim=1), negatives.text)
    # The row of each negative: a row has several.
    anchors = rows.repeat_interleave(len(negatives.text) // len(rows))
    all_valid = torch.ones_like(rows, dtype=torch.bool)
    parts = [
        _unmasked_pairs(rows, ids[rows], mask[rows], target=1, valid=all_valid),
        _unmasked_pairs(
            negative_images, ids[anchors], mask[anchors], target=0, valid=negatives.image_valid
        ),
        _unmasked_pairs(
            anchors,
            negative_texts[:, 0],
            negative_texts[:, 1],
            target=0,
            valid=negatives.text_valid,
        ),
    ]
    if "false_input_ids" in batch:
        false_ids = batch["false_input_ids"][rows]
        false_mask = batch["false_attention_mask"][rows]
        has_words = false_mask.any(dim=1)
        parts.append(_unmasked_pairs(rows, false_ids, false_mask, target=0, valid=has_words))
    return pixels, join_pairs(parts)


def _unmasked_pairs(
    images: Int[Tensor, "pairs"],
    input_ids: Int[Tensor, "pairs text"],
    attention_mask: Int[Tensor, "pairs text"],
    *,
    target: int,
    valid: Bool[Tensor, "pairs"],
) -> FusedPairs:
    no_labels = torch.full_like(input_ids, -100)
    targets = torch.full_like(images, target)
    return FusedPairs(images, input_ids, attention_mask, no_labels, targets, valid)


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
    """Sample `count` texts and `count` images for each of the local `rows`.

    Args:
        vectors: Those of local images and texts; `keys` are those of all processes.
        same: Pairs that are no negatives.
        groups: Groups of neighboring global rows; a row's negatives come from its own group.
        sharpness: Negatives are sampled by the softmax of ITC's logits times this.
    """
    image_embeds, text_embeds = vectors
    image_keys, text_keys = keys
    global_rows = torch.arange(len(text_keys), device=rows.device)
    group_size = len(text_keys) // groups
    uniform = sample_uniform(seed, batch=len(image_embeds), rounds=2 * count)
    uniform = uniform.to(rows.device, non_blocking=True)[:, rows]
    # Rounds are the texts' first, then the images'; the negatives of a row stand together.
    uniform = uniform.view(2, count, len(rows)).transpose(1, 2).flatten(1)
    rows = rows.repeat_interleave(count)

    def sample(queries: Tensor, candidates: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor]:
        parts = []
        for block in row_blocks(len(rows), width=len(candidates)):
            anchors = rows[block]
            excluded = same[anchors]
            if groups > 1:
                group = (distributed.rank() * len(queries) + anchors) // group_size
                excluded = excluded | (group[:, None] != global_rows // group_size)
            logits = contrast_logits(queries[anchors], candidates, logit_scale=logit_scale)
            logits = logits * sharpness
            parts.append(sample_hard_negatives(logits, excluded=excluded, uniform=numbers[block]))
        samples, valid = zip(*parts, strict=True)
        return torch.cat(samples), torch.cat(valid)

    text, text_valid = sample(image_embeds, text_keys, uniform[0])
    image, image_valid = sample(text_embeds, image_keys, uniform[1])
    return HardNegatives(text, text_valid, image, image_valid)


def sample_hard_negatives(
    similarities: Float[Tensor, "batch global"],
    *,
    excluded: Bool[Tensor, "batch global"],
    uniform: Float[Tensor, "batch"],
) -> tuple[Int[Tensor, "batch"], Bool[Tensor, "batch"]]:
    """Sample a global row for each local row by the softmax of similarities that are not excluded.

    Args:
        similarities: ITC logits (temperature applied).
        excluded: True where the global row is a true pair of the row; the row itself is among them.
        uniform: In [0, 1); the sample of row i is a pure function of `uniform[i]`.

    Returns:
        Row numbers in the global batch, and False for rows with nothing to sample from (their number is 0).
    """
    possible = ~excluded.all(dim=1)
    # The largest allowed logit is subtracted before exp, so that some weight is always 1: never all zero.
    logits = similarities.detach().float().masked_fill(excluded, float("-inf"))
    # A row of -inf alone would have a softmax of NaN.
    logits = torch.where(possible[:, None], logits, torch.zeros_like(logits))
    # float64, which Apple's GPUs lack: a sum over many rows in float32 would never reach the last ones.
    exact = torch.device("cpu") if logits.device.type == "mps" else logits.device
    cumulative = logits.softmax(dim=1).to(exact).double().cumsum(dim=1)
    target = uniform.to(exact).double()[:, None] * cumulative[:, -1:]
    # Inverse transform sampling, the first row whose cumulative weight exceeds the number; the
    # published code samples row by row with `multinomial`.
    chosen = torch.searchsorted(cumulative, target, right=True)[:, 0].to(logits.device)
    # Logits that are not finite would point past the end; their loss is not finite either, and the
    # step is skipped.
    chosen = chosen.clamp(max=logits.shape[1] - 1)
    return torch.where(possible, chosen, torch.zeros_like(chosen)), possible


def sample_uniform(
    seed: Int[Tensor, ""], *, batch: int, rounds: int
) -> Float[Tensor, "rounds batch"]:
    """Return uniform numbers of this process's rows, on the CPU: pure functions of the seed and the global row."""
    # The CPU's numbers are the same with every device and number of processes.
    generator = torch.Generator().manual_seed(int(seed))
    numbers = torch.rand(rounds, batch * distributed.world_size(), generator=generator)
    start = distributed.rank() * batch
    return numbers[:, start : start + batch]
