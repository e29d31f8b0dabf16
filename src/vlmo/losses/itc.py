"""Image-text contrast over the pairs of all processes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from vlmo import distributed
from vlmo.losses.gradient_cache import recomputed, row_blocks


@dataclass(frozen=True)
class SamePairs:
    """Matrix that is True where a row and a global row have an id in common, computed block by block.

    Attributes:
        local_ids: Ids of this process's rows, such as that of the image and that of the caption.
        global_ids: Those of all processes' rows.
    """

    local_ids: Int[Tensor, "batch ids"]
    global_ids: Int[Tensor, "global ids"]

    def __getitem__(self, rows: slice | Int[Tensor, "rows"]) -> Bool[Tensor, "rows global"]:
        # (rows, 1, ids) against (global, ids) -> (rows, global)
        return (self.local_ids[rows, None] == self.global_ids).any(dim=-1)


class FalseCaptions(NamedTuple):
    """False captions, each a further negative of its own image alone.

    "When and Why Vision-Language Models Behave like Bags-of-Words, and What to Do About It?",
    Yuksekgonul et al. 2023.
    """

    embeds: Float[Tensor, "batch dim"]  # L2-normalized
    valid: Bool[Tensor, "batch"]  # False for images that have none


def itc_loss(
    image_embeds: Float[Tensor, "batch dim"],
    text_embeds: Float[Tensor, "batch dim"],
    *,
    logit_scale: Float[Tensor, "1"],
    same: Bool[Tensor, "batch global"] | SamePairs | None = None,
    keys: tuple[Float[Tensor, "global dim"], Float[Tensor, "global dim"]] | None = None,
    false_captions: FalseCaptions | None = None,
) -> Float[Tensor, ""]:
    """Symmetric contrastive loss over all pairs of all processes (VLMo, "Image-Text Contrast").

    Each process compares its own rows with all others, some rows at a time: no matrix of all pairs
    is ever in memory. Logits that do not fit into one block are computed again in the backward pass.

    Args:
        image_embeds: L2-normalized; row i belongs with row i of `text_embeds`.
        logit_scale: Natural logarithm of the inverse temperature.
        same: True where a row and a global row share image or caption (`same_pairs`); such rows are
            left out of each other's softmax. None leaves nothing out.
        keys: Image and text vectors of all processes (`gather_with_grad`), if the caller has them.
        false_captions: Further negatives in the direction from image to text.

    Returns:
        Mean of both directions, in nats, equal on every process. Its gradient, averaged over
        processes, is that of one process with the whole batch.
    """
    if keys is None:
        keys = distributed.gather_with_grad(image_embeds), distributed.gather_with_grad(text_embeds)
    image_keys, text_keys = keys
    image_to_text = contrast_losses(
        image_embeds, text_keys, logit_scale=logit_scale, same=same, false_captions=false_captions
    )
    text_to_image = contrast_losses(text_embeds, image_keys, logit_scale=logit_scale, same=same)
    # Divided by the pairs of all processes: the published code gives the encoders 1/W of this
    # gradient with W processes, so that its balance of losses depends on their number.
    # A number that is filled in on the device: `torch.tensor` would wait for a copy.
    count = torch.full((), float(len(image_embeds)), device=image_embeds.device)
    return distributed.global_mean((image_to_text.sum() + text_to_image.sum()) / 2, count)


def contrast_logits(
    queries: Float[Tensor, "batch dim"],
    keys: Float[Tensor, "global dim"],
    *,
    logit_scale: Float[Tensor, "1"],
) -> Float[Tensor, "batch global"]:
    """Return similarities over temperature, in float32 under autocast too."""
    # bfloat16 would round a logit of 10 to 1/16.
    with torch.autocast(queries.device.type, enabled=False):
        return logit_scale.float().exp() * queries.float() @ keys.float().T


def contrast_losses(
    queries: Float[Tensor, "batch dim"],
    keys: Float[Tensor, "global dim"],
    *,
    logit_scale: Float[Tensor, "1"],
    same: Bool[Tensor, "batch global"] | SamePairs | None,
    false_captions: FalseCaptions | None = None,
) -> Float[Tensor, "batch"]:
    """Return the cross-entropy of local rows against all rows, in nats; see `itc_loss`."""
    # Row i's own key stands at this place of the global batch.
    targets = torch.arange(len(queries), device=queries.device) + distributed.rank() * len(queries)

    def losses_of_rows(rows: slice) -> Float[Tensor, "rows"]:
        logits = contrast_logits(queries[rows], keys, logit_scale=logit_scale)
        if same is not None:
            # A row shares all ids with itself, which is the label and stays.
            excluded = same[rows].scatter(1, targets[rows, None], value=False)
            logits = logits.masked_fill(excluded, float("-inf"))
        if false_captions is not None:
            with torch.autocast(queries.device.type, enabled=False):
                # With its own false caption alone: (rows).
                similarity = (queries[rows].float() * false_captions.embeds[rows].float()).sum(
                    dim=1
                )
                false_logits = logit_scale.float().exp() * similarity
            false_logits = false_logits.masked_fill(~false_captions.valid[rows], float("-inf"))
            # (rows, global + 1)
            logits = torch.cat([logits, false_logits[:, None]], dim=1)
        return F.cross_entropy(logits, targets[rows], reduction="none")

    # A block that is alone is kept for the backward pass: nothing is computed twice.
    blocks = row_blocks(len(queries), width=len(keys))
    if len(blocks) == 1:
        return losses_of_rows(blocks[0])
    return torch.cat([recomputed(losses_of_rows, rows, device=queries.device) for rows in blocks])


def caption_keys(
    input_ids: Int[Tensor, "batch text"], attention_mask: Int[Tensor, "batch text"]
) -> Int[Tensor, "batch"]:
    """Return a 64-bit hash of a caption's tokens, the same however far the caption is padded."""
    length = input_ids.shape[1]
    powers = torch.ones(length, dtype=torch.long, device=input_ids.device)
    if length > 1:
        # An odd multiplier of a linear congruential generator (Knuth, MMIX).
        powers[1:] = 6364136223846793005
    # Wraps around, which is wanted.
    powers = powers.cumprod(0)
    # Padding adds 0, and an id of 0 does not.
    return ((input_ids + 1) * attention_mask * powers).sum(dim=1)


def same_pairs(image_ids: Int[Tensor, "batch"], captions: Int[Tensor, "batch"]) -> SamePairs:
    """Return pairs of rows that share image or caption, over the global batch; a row with itself too."""
    # (batch, 2), of which one in common is enough
    ids = torch.stack([image_ids, captions], dim=1)
    return SamePairs(ids, distributed.gather(ids))


def own_pairs(batch: int, *, device: torch.device) -> SamePairs:
    """Return pairs of a row with itself alone."""
    global_ids = torch.arange(batch * distributed.world_size(), device=device)[:, None]
    start = distributed.rank() * batch
    return SamePairs(global_ids[start : start + batch], global_ids)
