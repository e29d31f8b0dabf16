"""The score that reranking orders by; without torch, which searches by exported models do not import."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

SEARCH_RERANK = 32
"""Candidates that a search reranks by default, at most."""
_UNCERTAIN = 0.2
"""Share of the probability that may be left to candidates without a match score, for a result of one image; chosen on
the validation splits of `benchmarks/rerank_pairs.py`."""


def rerank_score(similarity: Any, match: Any, *, weight: Any, scale: Any) -> Any:
    """Return the score that candidates are ordered by, in nats, of numbers, arrays or tensors.

    Args:
        similarity: Cosine similarity by the dual encoder.
        match: Log-odds of a match by the fusion encoder.
        weight: Share of the match score, 0 to 1.
        scale: Inverse temperature of the similarity.
    """
    return (1 - weight) * scale * similarity + weight * match


def is_settled(similarity: Sequence[float], match: Sequence[float], *, weight: float, scale: float, top: int) -> bool:
    """Return True if the `top` best candidates are certain enough without match scores for the others.

    The model takes a candidate for the one that the query describes with a probability that is proportional to
    exp(scale * similarity + weight / (1 - weight) * match): the dual encoder's softmax times the fusion encoder's odds,
    which count as even where they are not known. That it is one of the others, which would be a loss of recall, must
    have a probability below 0.2 / `top`.

    Args:
        similarity: Cosine similarity of all candidates, best first.
        match: Log-odds of a match of the first of them.
        weight: Share of the match score, 0 to 1. With 1 nothing is certain without it.
    """
    if weight == 1:
        return False
    odds = [*match, *[0.0] * (len(similarity) - len(match))]
    pairs = zip(similarity, odds, strict=True)
    logits = [rerank_score(one, other, weight=weight, scale=scale) / (1 - weight) for one, other in pairs]
    shares = [math.exp(logit - max(logits)) for logit in logits]
    return sum(shares[len(match) :]) < _UNCERTAIN / top * sum(shares)
