"""Masked image modelling on visual tokens."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from vlmo import distributed


def mim_loss(logits: Float[Tensor, "masked visual_vocab"], tokens: Int[Tensor, "masked"]) -> Float[Tensor, ""]:
    """Cross-entropy in nats over the masked patches of all processes (BEiT, "Pre-Training: Masked Image Modeling")."""
    count = torch.tensor(float(len(tokens)), device=logits.device)
    return distributed.global_mean(F.cross_entropy(logits.float(), tokens, reduction="sum"), count)
