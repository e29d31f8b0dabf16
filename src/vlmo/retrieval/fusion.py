"""Fusion of two orders of images, by the model's vectors and by words, by reciprocal ranks."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from vlmo.retrieval.words import OwnWords, singular

# Constant of Cormack et al., "Reciprocal Rank Fusion outperforms Condorcet and Individual Rank
# Learning Methods", 2009.
_RANK = 60


def fuse_ranks(
    by_vectors: Sequence[str],
    shares: Mapping[str, float],
    words: Sequence[str],
    own_words: Callable[[str], OwnWords],
) -> dict[str, float]:
    """Return the sums of reciprocal ranks by image id, the best first.

    Words count twice, times the square of the share of the query's words that an image has: an image
    with all of them comes before those that only the model finds, and few of many words change little.
    They count three times if a text of the image has no other words.

    Args:
        by_vectors: Ids of images in the order of the model.
        shares: Share of the query's words by id, of the images that words find, in their order.
        words: Words of the query.
        own_words: Words of an image's own texts.
    """
    rank_by_vectors = {image_id: rank for rank, image_id in enumerate(by_vectors, start=1)}
    query_words = singular(words)  # the plural of a query is no other word
    # Images of which a text has no words but the query's.
    titles = set()
    scores: dict[str, float] = {}
    # By words: rank + 60 in the denominator, so that the first few ranks do not decide alone.
    for rank, (image_id, share) in enumerate(shares.items(), start=1):
        weight = 2
        if share == 1 and any(text <= query_words for text in own_words(image_id)[1]):
            titles.add(image_id)
            weight = 3
        scores[image_id] = weight * share**2 / (_RANK + rank)
    for image_id, rank in rank_by_vectors.items():
        scores[image_id] = scores.get(image_id, 0) + 1 / (_RANK + rank)
    nameless = [
        image_id for image_id in by_vectors if image_id not in shares and own_words(image_id)[0] < 2
    ]
    named = sorted(shares.keys() - titles, key=lambda image_id: (-scores[image_id], image_id))
    _raise_nameless(scores, nameless, named, rank_by_vectors)
    # Of equal scores, those without words come first.
    order = sorted(scores, key=lambda image_id: (-scores[image_id], image_id in shares))
    return {image_id: scores[image_id] for image_id in order}


def _raise_nameless(
    scores: dict[str, float],
    nameless: list[str],
    named: Sequence[str],
    rank_by_vectors: Mapping[str, int],
) -> None:
    """Raise the scores of images without words of their own, such as IMG_1.jpg, which words cannot find.

    The best of these comes before the best of those that words find, if the model has it before that; then the next.
    """
    # The best is taken from the end.
    nameless.reverse()
    for image_id in named:
        rank = rank_by_vectors.get(image_id, math.inf)
        if nameless and rank_by_vectors[nameless[-1]] < rank:
            raised = nameless.pop()
            scores[raised] = max(scores[raised], scores[image_id])
