"""The score that reranking orders by; without torch, which searches by exported models do not import."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

SEARCH_RERANK = 32
"""Candidates that a search reranks by default, at most."""
_LOST = 0.005
"""Probability that may be left of losing the right image; chosen on validation splits
(experiments/log.md, "Candidates that are not scored")."""


def rerank_score(similarity: Any, match: Any, *, weight: Any, scale: Any) -> Any:
    """Return the score that candidates are ordered by, in nats, of numbers, arrays or tensors.

    Args:
        similarity: Cosine similarity by the dual encoder.
        match: Log-odds of a match by the fusion encoder.
        weight: Share of the match score, 0 to 1.
        scale: Inverse temperature of the similarity.
    """
    return (1 - weight) * scale * similarity + weight * match


def num_wanted(
    similarity: Sequence[float], match: Sequence[float], *, weight: float, scale: float, top: int
) -> int:
    """Return how many of the next candidates need a match score before the `top` best are certain enough; 0 if none.

    A candidate is the one that the query describes with a probability proportional to exp(scale * similarity + match):
    the dual encoder's softmax times the fusion encoder's odds, which count as even where they are not known. It comes
    among the best with the probability of log-odds as large as that takes, in a normal distribution around the largest
    known ones with the standard deviation of all. Summed over the rest, the product of both, a loss of recall, must be
    below 0.005.

    Args:
        similarity: Cosine similarity of all candidates, best first.
        match: Log-odds of a match of the first of them.
        weight: Share of the match score, 0 to 1. With 1 nothing is certain without it, with 0 all is.
    """
    similar = np.asarray(similarity)
    known = np.asarray(match)
    count = len(match)
    if weight in {0, 1} or count < top:
        return 0 if weight == 0 and count >= top else len(similar) - count
    # Log-odds of 0 where they are not known, which is even.
    logits = scale * similar + np.pad(known, (0, len(similar) - count))
    shares = np.exp(logits - logits.max())
    # The score of the last of the best, which a candidate has to reach,
    least = np.sort(rerank_score(similar[:count], known, weight=weight, scale=scale))[-top]
    # the log-odds that it takes, less the largest known ones,
    above = (least - (1 - weight) * scale * similar[count:]) / weight - known.max()
    spread = max(known.std().item(), 1e-6) * math.sqrt(2)
    # and the probability of more in a normal distribution: half the complementary error function.
    lost = shares[count:] / shares.sum() * [math.erfc(each / spread) / 2 for each in above.tolist()]
    # Where a score is not a number, the comparison is False: all are wanted.
    return int((~(lost[::-1].cumsum() < _LOST)).sum())
