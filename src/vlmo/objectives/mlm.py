"""Masked language modelling."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from vlmo import distributed


def mlm_loss(logits: Float[Tensor, "masked vocab"], labels: Int[Tensor, "masked"]) -> Float[Tensor, ""]:
    """Cross-entropy in nats over the masked tokens of all processes (VLMo, "Masked Language Modeling")."""
    count = torch.tensor(float(len(labels)), device=logits.device)
    return distributed.global_mean(F.cross_entropy(logits.float(), labels, reduction="sum"), count)
