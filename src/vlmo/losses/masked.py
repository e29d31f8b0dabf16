"""Loss and accuracy of masked words (MLM) and of masked patches (MIM)."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from vlmo import distributed


def masked_loss(logits: Float[Tensor, "masked vocab"], labels: Int[Tensor, "masked"]) -> Float[Tensor, ""]:
    """Cross-entropy in nats over the masked positions of all processes.

    Masked words (VLMo, "Masked Language Modeling") or visual tokens of masked patches (BEiT, "Pre-Training: Masked
    Image Modeling").
    """
    count = torch.tensor(float(len(labels)), device=logits.device)
    return distributed.global_mean(F.cross_entropy(logits.float(), labels, reduction="sum"), count)


def accuracy(logits: Float[Tensor, "rows classes"], labels: Int[Tensor, "rows"]) -> Float[Tensor, ""]:
    """Share of right predictions over all processes, for the log."""
    right = (logits.detach().argmax(dim=-1) == labels).float()
    return distributed.global_mean(right.sum(), torch.tensor(float(len(labels)), device=right.device))
