"""Image-text contrast over the pairs of all processes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from vlmo import distributed
from vlmo.losses.gradient_cache import recomputed, row_blocks


@dataclass(frozen=True)
class SamePairs:
    """Matrix that is True where a row and a global row have a number in common, computed block by block.

    Attributes:
        own: Numbers of this process's rows, such as that of the image and that of the caption.
        every: Those of all processes' rows.
    """

    own: Int[Tensor, "batch numbers"]
    every: Int[Tensor, "global numbers"]

    def __getitem__(self, rows: slice | Int[Tensor, "rows"]) -> Bool[Tensor, "rows global"]:
        return (self.own[rows, None] == self.every).any(dim=-1)


def itc_loss(
    image_embeds: Float[Tensor, "batch dim"],
    text_embeds: Float[Tensor, "batch dim"],
    *,
    logit_scale: Float[Tensor, "1"],
    same: Bool[Tensor, "batch global"] | SamePairs | None = None,
    keys: tuple[Float[Tensor, "global dim"], Float[Tensor, "global dim"]] | None = None,
    false: tuple[Float[Tensor, "batch dim"], Bool[Tensor, "batch"]] | None = None,
) -> Float[Tensor, ""]:
    """Symmetric contrastive loss over all pairs of all processes (VLMo, "Image-Text Contrast").

    Each process compares its own rows with all others, some rows at a time: no matrix of all pairs is ever in memory.
    Logits that do not fit into one block are computed again in the backward pass.

    Args:
        image_embeds: L2-normalised; row i belongs with row i of `text_embeds`.
        logit_scale: Natural logarithm of the inverse temperature.
        same: True where a row and a global row share image or caption (`same_pairs`); such rows are left out of
            each other's softmax. None leaves nothing out.
        keys: Image and text vectors of all processes (`gather_with_grad`), if the caller has them already.
        false: L2-normalised vectors of a false caption of each image, a further negative of this image alone, and
            False where an image has none ("When and Why Vision-Language Models Behave like Bags-of-Words, and What
            to Do About It?", Yuksekgonul et al. 2023).

    Returns:
        Mean of both directions, in nats, equal on every process. Its gradient, averaged over processes, is that of one
        process with the whole batch.
    """
    image_keys, text_keys = keys or map(distributed.gather_with_grad, (image_embeds, text_embeds))
    to_texts = contrast_losses(image_embeds, text_keys, logit_scale=logit_scale, same=same, false=false)
    to_images = contrast_losses(text_embeds, image_keys, logit_scale=logit_scale, same=same)
    count = torch.tensor(float(len(image_embeds)), device=image_embeds.device)
    return distributed.global_mean((to_texts.sum() + to_images.sum()) / 2, count)


def contrast_logits(
    queries: Float[Tensor, "batch dim"], keys: Float[Tensor, "global dim"], *, logit_scale: Float[Tensor, "1"]
) -> Float[Tensor, "batch global"]:
    """Return similarities over temperature, in float32 under autocast too: bfloat16 rounds a logit of 10 to 1/16."""
    with torch.autocast(queries.device.type, enabled=False):
        return logit_scale.float().exp() * queries.float() @ keys.float().T


def contrast_losses(
    queries: Float[Tensor, "batch dim"],
    keys: Float[Tensor, "global dim"],
    *,
    logit_scale: Float[Tensor, "1"],
    same: Bool[Tensor, "batch global"] | SamePairs | None,
    false: tuple[Float[Tensor, "batch dim"], Bool[Tensor, "batch"]] | None = None,
) -> Float[Tensor, "batch"]:
    """Return the cross-entropy of each own row against all rows, in nats; arguments as of `itc_loss`."""
    own = torch.arange(len(queries), device=queries.device) + distributed.rank() * len(queries)

    def of(rows: slice) -> Tensor:
        logits = contrast_logits(queries[rows], keys, logit_scale=logit_scale)
        if same is not None:
            hidden = same[rows].scatter(1, own[rows, None], value=False)
            logits = logits.masked_fill(hidden, float("-inf"))
        if false is not None:
            vectors, found = (each[rows] for each in false)
            with torch.autocast(queries.device.type, enabled=False):
                further = logit_scale.float().exp() * (queries[rows].float() * vectors.float()).sum(dim=1)
            logits = torch.cat([logits, further.masked_fill(~found, float("-inf"))[:, None]], dim=1)
        return F.cross_entropy(logits, own[rows], reduction="none")

    blocks = row_blocks(len(queries), width=len(keys))
    if len(blocks) == 1:
        return of(blocks[0])
    return torch.cat([recomputed(of, rows, device=queries.device) for rows in blocks])


def caption_keys(
    input_ids: Int[Tensor, "batch text"], attention_mask: Int[Tensor, "batch text"]
) -> Int[Tensor, "batch"]:
    """Return a 64-bit hash of each caption's tokens, the same however far the caption is padded."""
    length = input_ids.shape[1]
    powers = torch.ones(length, dtype=torch.long, device=input_ids.device)
    if length > 1:
        powers[1:] = 6364136223846793005  # an odd multiplier of a linear congruential generator (Knuth, MMIX)
    powers = powers.cumprod(0)  # wraps around, which is wanted
    return ((input_ids + 1) * attention_mask * powers).sum(dim=1)


def same_pairs(image_ids: Int[Tensor, "batch"], captions: Int[Tensor, "batch"]) -> SamePairs:
    """Return pairs of rows that share image or caption, over the global batch (each row with itself included)."""
    own = torch.stack([image_ids, captions], dim=1)
    return SamePairs(own, distributed.gather(own))


def own_pairs(batch: int, *, device: torch.device) -> SamePairs:
    """Return pairs of each row with itself alone."""
    every = torch.arange(batch * distributed.world_size(), device=device)[:, None]
    start = distributed.rank() * batch
    return SamePairs(every[start : start + batch], every)
