"""Loss and accuracy of masked words (MLM) and of masked patches (MIM)."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from vlmo import distributed


def masked_loss(
    logits: Float[Tensor, "masked vocab"],
    labels: Int[Tensor, "masked"],
    *,
    label_smoothing: float = 0.0,
    drop_worst: float = 0.0,
) -> Float[Tensor, ""]:
    """Cross-entropy in nats over the masked positions of all processes.

    Masked words (VLMo, "Masked Language Modeling") or visual tokens of masked patches (BEiT, "Pre-Training: Masked
    Image Modeling"). `label_smoothing` is the share of a label that is spread over all words, `drop_worst` that of the
    positions, those of the largest losses, that is left out.
    """
    # (masked); half precision would lose small differences of large logits.
    losses = F.cross_entropy(
        logits.float(), labels, reduction="none", label_smoothing=label_smoothing
    )
    count = torch.full((), float(len(labels)), device=logits.device)
    if drop_worst:
        total = longest = len(labels)
        # A process alone need not wait for its device.
        if distributed.world_size() > 1:
            total = int(distributed.all_reduce(count))
            longest = int(distributed.all_reduce(count, op="max"))
        # Padded with inf: processes may hold different numbers of labels, and collectives need
        # equal ones.
        everywhere = (
            distributed.gather(F.pad(losses, (0, longest - len(losses)), value=torch.inf))
            .sort()
            .values
        )
        # The loss of the last position that is kept, over all processes (BEiT-3 drops the worst 20
        # % in captioning).
        is_kept = losses <= everywhere[max(1, int(total * (1 - drop_worst))) - 1]
        losses = losses * is_kept
        count = is_kept.sum().float()
    return distributed.global_mean(losses.sum(), count)


def accuracy(
    logits: Float[Tensor, "rows classes"], labels: Int[Tensor, "rows"]
) -> Float[Tensor, ""]:
    """Share of right predictions over all processes, for the log."""
    right = (logits.detach().argmax(dim=-1) == labels).float()
    count = torch.full((), float(len(labels)), device=right.device)
    return distributed.global_mean(right.sum(), count)
