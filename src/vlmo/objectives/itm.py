"""Image-text matching and its hard negatives, drawn from the gathered batch."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from vlmo import distributed


def itm_loss(
    logits: Float[Tensor, "pairs 2"], labels: Int[Tensor, "pairs"], *, valid: Bool[Tensor, "pairs"] | None = None
) -> Float[Tensor, ""]:
    """Cross-entropy over matching and non-matching pairs of all processes (VLMo, "Image-Text Matching").

    Args:
        valid: False for pairs that do not count (no negative could be found). None counts all.
    """
    losses = F.cross_entropy(logits.float(), labels, reduction="none")
    weights = torch.ones_like(losses) if valid is None else valid.to(losses.dtype)
    return distributed.global_mean((losses * weights).sum(), weights.sum())


def draw_hard_negatives(
    similarities: Float[Tensor, "batch global"],
    *,
    excluded: Bool[Tensor, "batch global"],
    uniform: Float[Tensor, "batch"],
) -> tuple[Int[Tensor, "batch"], Bool[Tensor, "batch"]]:
    """For each row one global row, drawn with probability softmax(similarity) among those not excluded.

    Args:
        similarities: ITC logits (temperature applied).
        excluded: True where the global row is a true pair of the row; the row itself must be among them.
        uniform: In [0, 1); row i's draw is a pure function of `uniform[i]`.

    Returns:
        Row numbers in the global batch, and whether there was anything to draw from (if not, the number is 0).
    """
    possible = ~excluded.all(dim=1)
    # The largest allowed logit is subtracted before exp, so that some weight is always 1: never all zero.
    logits = similarities.detach().float().masked_fill(excluded, float("-inf"))
    logits = torch.where(possible[:, None], logits, torch.zeros_like(logits))
    cumulative = logits.softmax(dim=1).double().cumsum(dim=1)
    target = uniform.double()[:, None] * cumulative[:, -1:]
    chosen = torch.searchsorted(cumulative, target, right=True)[:, 0]
    # Logits that are not finite would point past the end; their loss is not finite either, and the step is skipped.
    chosen = chosen.clamp(max=logits.shape[1] - 1)
    return torch.where(possible, chosen, torch.zeros_like(chosen)), possible


def draws(seed: Int[Tensor, ""], *, batch: int, rounds: int) -> Float[Tensor, "rounds batch"]:
    """This process's share of uniform numbers that depend only on the seed and the row's place in the global batch."""
    generator = torch.Generator().manual_seed(int(seed))
    numbers = torch.rand(rounds, batch * distributed.world_size(), generator=generator)
    start = distributed.rank() * batch
    return numbers[:, start : start + batch].to(seed.device)
