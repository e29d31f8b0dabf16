"""Image-text contrast over the pairs of all processes."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from vlmo import distributed


def itc_loss(
    image_embeds: Float[Tensor, "batch dim"],
    text_embeds: Float[Tensor, "batch dim"],
    *,
    logit_scale: Float[Tensor, "1"],
    same: Bool[Tensor, "batch global"] | None = None,
) -> Float[Tensor, ""]:
    """Symmetric contrastive loss over all pairs of all processes (VLMo, "Image-Text Contrast").

    Args:
        image_embeds: L2-normalised; row i belongs with row i of `text_embeds`.
        logit_scale: Natural logarithm of the inverse temperature.
        same: True where a row and a global row share picture or caption (`same_pairs`); such rows are left out of
            each other's softmax. None leaves nothing out.

    Returns:
        Mean of both directions, in nats, equal on every process. Its gradient, averaged over processes, is that of one
        process with the whole batch.
    """
    batch = image_embeds.shape[0]
    own = torch.arange(batch, device=image_embeds.device) + distributed.rank() * batch
    losses = []
    for queries, keys in ((image_embeds, text_embeds), (text_embeds, image_embeds)):
        logits = contrast_logits(queries, distributed.gather_with_grad(keys), logit_scale=logit_scale)
        if same is not None:
            hidden = same.scatter(1, own[:, None], value=False)
            logits = logits.masked_fill(hidden, float("-inf"))
        losses.append(F.cross_entropy(logits, own, reduction="sum"))
    count = torch.tensor(float(batch), device=image_embeds.device)
    return distributed.global_mean(torch.stack(losses).mean(), count)


def contrast_logits(
    queries: Float[Tensor, "batch dim"], keys: Float[Tensor, "global dim"], *, logit_scale: Float[Tensor, "1"]
) -> Float[Tensor, "batch global"]:
    """Similarities over temperature, in float32 also under autocast: bfloat16 would round a logit of 10 to 1/16."""
    with torch.autocast(queries.device.type, enabled=False):
        return logit_scale.float().exp() * queries.float() @ keys.float().T


def caption_keys(
    input_ids: Int[Tensor, "batch text"], attention_mask: Int[Tensor, "batch text"]
) -> Int[Tensor, "batch"]:
    """A 64-bit hash of each caption's tokens, the same however far the caption is padded."""
    length = input_ids.shape[1]
    powers = torch.ones(length, dtype=torch.long, device=input_ids.device)
    if length > 1:
        powers[1:] = 6364136223846793005  # an odd multiplier of a linear congruential generator (Knuth, MMIX)
    powers = powers.cumprod(0)  # wraps around, which is wanted
    return ((input_ids + 1) * attention_mask * powers).sum(dim=1)


def same_pairs(image_ids: Int[Tensor, "batch"], captions: Int[Tensor, "batch"]) -> Bool[Tensor, "batch global"]:
    """True where a row shares its picture or its caption with a row of the global batch (itself included)."""
    same_image = image_ids[:, None] == distributed.gather(image_ids)
    return same_image | (captions[:, None] == distributed.gather(captions))
