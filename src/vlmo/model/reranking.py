"""The score that reranking orders by; without torch, which searches by exported models do not import."""

from __future__ import annotations

from typing import Any

SEARCH_RERANK = 32
"""Candidates that a search reranks by default."""


def rerank_score(similarity: Any, match: Any, *, weight: Any, scale: Any) -> Any:
    """Return the score that candidates are ordered by, in nats, of numbers, arrays or tensors.

    Args:
        similarity: Cosine similarity by the dual encoder.
        match: Log-odds of a match by the fusion encoder.
        weight: Share of the match score, 0 to 1.
        scale: Inverse temperature of the similarity.
    """
    return (1 - weight) * scale * similarity + weight * match
