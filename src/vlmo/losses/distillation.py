"""Distillation: a dual encoder learns the vectors of another one."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from vlmo import distributed
from vlmo.losses.itc import SamePairs, contrast_losses


def distillation_loss(
    vectors: tuple[Float[Tensor, "batch dim"], Float[Tensor, "batch dim"]],
    targets: tuple[Float[Tensor, "batch dim"], Float[Tensor, "batch dim"]],
    *,
    logit_scale: Float[Tensor, "1"],
    same: SamePairs | None = None,
) -> Float[Tensor, ""]:
    """Squared distance to a teacher's vectors, averaged over the pairs of all processes that the teacher knows.

    Feature mimicry ("CLIP-KD", Yang et al. 2024), where a pair counts by the probability that the teacher's contrast
    gives it in the batch, the mean of both directions: what the teacher cannot tell apart is left to other losses.

    Args:
        vectors: L2-normalised vectors of images and their texts.
        targets: Those of the teacher, without gradients.
        logit_scale: Natural logarithm of the teacher's inverse temperature.
        same: Pairs that share an image or a text, which are left out of each other's softmax.

    Returns:
        Sum of the distances of image and text, 0 to 8, equal on every process.
    """
    with torch.no_grad():
        images, texts = (distributed.gather(each) for each in targets)
        known = [
            (-contrast_losses(queries, keys, logit_scale=logit_scale, same=same)).exp()
            for queries, keys in ((targets[0], texts), (targets[1], images))
        ]
        share = (known[0] + known[1]) / 2
    distance = sum((own - target).square().sum(dim=-1) for own, target in zip(vectors, targets, strict=True))
    return distributed.global_mean((share * distance).sum(), share.sum())
