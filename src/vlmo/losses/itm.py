"""Image-text matching and its hard negatives, sampled from the batch of all processes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from vlmo import distributed
from vlmo.losses.gradient_cache import row_blocks
from vlmo.losses.itc import SamePairs, contrast_logits


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


@dataclass(frozen=True)
class HardNegatives:
    """Global rows of the hard negatives of some own rows; `found` is False where there was nothing to sample from.

    Attributes:
        count: Negative texts, and images, of each row; they are neighbours.
    """

    text: Int[Tensor, "negatives"]
    image: Int[Tensor, "negatives"]
    text_found: Bool[Tensor, "negatives"]
    image_found: Bool[Tensor, "negatives"]
    count: int = 1

    @property
    def labels(self) -> Int[Tensor, "pairs"]:
        """Labels of true pairs, pairs with another image and pairs with another text, in this order."""
        true = torch.ones_like(self.text[:: self.count])
        return torch.cat([true, torch.zeros_like(self.image), torch.zeros_like(self.text)])

    @property
    def valid(self) -> Bool[Tensor, "pairs"]:
        """True for those pairs that count."""
        true = torch.ones_like(self.text_found[:: self.count])
        return torch.cat([true, self.image_found, self.text_found])


@torch.no_grad()
def sample_by_similarity(
    queries: Float[Tensor, "rows dim"],
    keys: Float[Tensor, "global dim"],
    *,
    logit_scale: Float[Tensor, "1"],
    uniform: Float[Tensor, "rows"],
    same: SamePairs,
    rows: Int[Tensor, "rows"],
    groups: int = 1,
    sharpness: float = 1.0,
) -> tuple[Int[Tensor, "rows"], Bool[Tensor, "rows"]]:
    """Sample one global row for each query by its ITC logits times `sharpness`, some queries at a time.

    Args:
        rows: Numbers of the queries among this process's rows.
        groups: Groups of neighbouring global rows; a query's row comes from its own group.
    """
    size, chosen, found = len(keys) // groups, [], []
    for part in row_blocks(len(queries), width=len(keys)):
        excluded = same[rows[part]]
        if groups > 1:
            own = (distributed.rank() * len(same.own) + rows[part]) // size
            excluded = excluded | (own[:, None] != torch.arange(len(keys), device=rows.device) // size)
        logits = contrast_logits(queries[part], keys, logit_scale=logit_scale) * sharpness
        numbers, any_found = sample_hard_negatives(logits, excluded=excluded, uniform=uniform[part])
        chosen.append(numbers)
        found.append(any_found)
    return torch.cat(chosen), torch.cat(found)


def sample_hard_negatives(
    similarities: Float[Tensor, "batch global"],
    *,
    excluded: Bool[Tensor, "batch global"],
    uniform: Float[Tensor, "batch"],
) -> tuple[Int[Tensor, "batch"], Bool[Tensor, "batch"]]:
    """Sample one global row for each row with probability softmax(similarity) among those not excluded.

    Args:
        similarities: ITC logits (temperature applied).
        excluded: True where the global row is a true pair of the row; the row itself must be among them.
        uniform: In [0, 1); the sample of row i is a pure function of `uniform[i]`.

    Returns:
        Row numbers in the global batch, and False for rows with nothing to sample from (their number is 0).
    """
    possible = ~excluded.all(dim=1)
    # The largest allowed logit is subtracted before exp, so that some weight is always 1: never all zero.
    logits = similarities.detach().float().masked_fill(excluded, float("-inf"))
    logits = torch.where(possible[:, None], logits, torch.zeros_like(logits))
    exact = torch.device("cpu") if logits.device.type == "mps" else logits.device  # Apple's GPUs have no float64
    cumulative = logits.softmax(dim=1).to(exact).double().cumsum(dim=1)
    target = uniform.to(exact).double()[:, None] * cumulative[:, -1:]
    chosen = torch.searchsorted(cumulative, target, right=True)[:, 0].to(logits.device)
    # Logits that are not finite would point past the end; their loss is not finite either, and the step is skipped.
    chosen = chosen.clamp(max=logits.shape[1] - 1)
    return torch.where(possible, chosen, torch.zeros_like(chosen)), possible


def sample_uniform(seed: Int[Tensor, ""], *, batch: int, rounds: int) -> Float[Tensor, "rounds batch"]:
    """Return this process's share of uniform numbers that depend only on the seed and the row's global number."""
    generator = torch.Generator().manual_seed(int(seed))
    numbers = torch.rand(rounds, batch * distributed.world_size(), generator=generator)
    start = distributed.rank() * batch
    return numbers[:, start : start + batch].to(seed.device)
