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
    """Squared distance to a teacher's vectors, a weighted mean over the pairs of all processes.

    Feature mimicry ("CLIP-KD", Yang et al. 2024). A pair's weight is the probability that the teacher's
    contrast gives it in the batch, the mean of both directions: pairs that the teacher cannot tell
    apart are left to the other losses.

    Args:
        vectors: L2-normalized vectors of images and their texts.
        targets: Those of the teacher, without gradients.
        logit_scale: Natural logarithm of the teacher's inverse temperature.
        same: Pairs that share an image or a text, left out of each other's softmax.

    Returns:
        Sum of the distances of image and text, 0 to 8, equal on every process.
    """
    image_embeds, text_embeds = vectors
    image_targets, text_targets = targets
    with torch.no_grad():
        to_texts = contrast_losses(
            image_targets, distributed.gather(text_targets), logit_scale=logit_scale, same=same
        )
        to_images = contrast_losses(
            text_targets, distributed.gather(image_targets), logit_scale=logit_scale, same=same
        )
        # Cross-entropy of a pair is -log of its probability.
        weight = ((-to_texts).exp() + (-to_images).exp()) / 2
    # Unit vectors: 2 - 2 cos, 0 to 4.
    image_distance = (image_embeds - image_targets).square().sum(dim=-1)
    text_distance = (text_embeds - text_targets).square().sum(dim=-1)
    distance = image_distance + text_distance
    return distributed.global_mean((weight * distance).sum(), weight.sum())
