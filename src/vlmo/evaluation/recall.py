"""Recall at K, ranks and exact top k: pure functions of tensors.

Both directions of retrieval are one problem here. Every query and every candidate carries a label, and a candidate is
right for a query when their labels are equal. Text to image: queries are labelled with `text_to_image`, candidates with
their own number. Image to text: the other way round, with as many right candidates as the image has captions.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import comb

import torch
from jaxtyping import Float, Int
from torch import Tensor


def recall_at_k(ranks: Int[Tensor, " query"], *, k: int) -> float:
    """Return the share of queries whose rank is at most k; ValueError without a query, or for k or a rank below 1."""
    if k < 1 or len(ranks) == 0 or int(ranks.min()) < 1:
        raise ValueError(f"Recall needs k >= 1 and ranks counted from 1, given k = {k} and {len(ranks)} ranks.")
    return float((ranks <= k).double().mean())


def recall_metrics(
    *, text_ranks: Int[Tensor, " image"], image_ranks: Int[Tensor, " text"], ks: Sequence[int]
) -> dict[str, float]:
    """Return `tr@K` from the rank of each image's best caption, `ir@K` from the rank of each text's image."""
    metrics = {f"tr@{k}": recall_at_k(text_ranks, k=k) for k in ks}
    return metrics | {f"ir@{k}": recall_at_k(image_ranks, k=k) for k in ks}


def chance_recall(num_candidates: int, *, k: int, num_positives: int = 1) -> float:
    """Return the recall at k of a random order, exactly: one minus the chance that k draws miss all right candidates.

    Raises:
        ValueError: If k or `num_positives` is below 1, or there are more right candidates than candidates.
    """
    if k < 1 or not 1 <= num_positives <= num_candidates:
        raise ValueError(
            f"Chance needs k >= 1 and 1 <= num_positives <= num_candidates, "
            f"given k = {k}, num_positives = {num_positives}, num_candidates = {num_candidates}."
        )
    # Integers until the last division, so that large sets lose no digit. `comb` is 0 where fewer wrong candidates than
    # draws are left: then a hit is certain.
    draws = min(k, num_candidates)
    return 1 - comb(num_candidates - num_positives, draws) / comb(num_candidates, draws)


def chance_metrics(text_to_image: Int[Tensor, " text"], *, ks: Sequence[int] = (1, 5, 10)) -> dict[str, float]:
    """Return `tr@K` and `ir@K` of a random order; images may have different numbers of captions."""
    num_captions = torch.bincount(text_to_image)
    num_images, num_texts = len(num_captions), len(text_to_image)
    counts, shares = num_captions.unique(return_counts=True)
    metrics: dict[str, float] = {}
    for k in ks:
        chances = [chance_recall(num_texts, k=k, num_positives=int(count)) for count in counts]
        weighted = sum(chance * int(share) for chance, share in zip(chances, shares, strict=True))
        metrics[f"tr@{k}"] = weighted / num_images
    return metrics | {f"ir@{k}": chance_recall(num_images, k=k) for k in ks}


def chunked_topk(
    queries: Float[Tensor, "query dim"], candidates: Float[Tensor, "candidate dim"], *, k: int, chunk: int = 1024
) -> tuple[Float[Tensor, "query top"], Int[Tensor, "query top"]]:
    """Return scores and indices of the k best candidates of each query by dot product, best first.

    Equal to a full matrix product, of which `chunk` rows are in memory at a time. `top` is k, or the number of
    candidates where that is smaller. Candidates with the same score come in the order of their index; which of them is
    kept where the list ends among them is not defined.

    Raises:
        ValueError: If k or chunk is below 1 or a similarity is not a number.
    """
    if k < 1 or chunk < 1:
        raise ValueError(f"k and chunk must be at least 1, given {k} and {chunk}.")
    all_scores, all_indices = [], []
    for part in queries.split(chunk):
        best = _scores(part, candidates).topk(min(k, len(candidates)), dim=1)
        # By index first, then stably by score: equal scores stay in the order of their index.
        indices, order = best.indices.sort(dim=1)
        scores, order = best.values.gather(1, order).sort(dim=1, descending=True, stable=True)
        all_scores.append(scores)
        all_indices.append(indices.gather(1, order))
    return torch.cat(all_scores), torch.cat(all_indices)


def chunked_ranks(
    queries: Float[Tensor, "query dim"],
    candidates: Float[Tensor, "candidate dim"],
    *,
    query_labels: Int[Tensor, " query"],
    candidate_labels: Int[Tensor, " candidate"],
    chunk: int = 1024,
) -> Int[Tensor, " query"]:
    """Return the rank, from 1, of the best placed right candidate of each query by dot product.

    Ties count against the model: a wrong candidate with the same score stands in front of the right one. A model that
    returns a constant is therefore last, never first. Other right candidates never stand in front. A few tensors of
    `chunk` x candidates are in memory at a time.

    Raises:
        ValueError: If there is not a label for each row, a query has no right candidate, or a similarity is not a
            number.
    """
    rows, labels = [len(queries), len(candidates)], [len(query_labels), len(candidate_labels)]
    if rows != labels:
        raise ValueError(f"given are {rows} queries and candidates, but {labels} labels; give one for each")
    lost = (~torch.isin(query_labels, candidate_labels)).nonzero().flatten().tolist()
    if lost:
        raise ValueError(
            f"{len(lost)} queries have no right candidate (first: {lost[:5]}); "
            "every image needs a caption and every caption an image of the set."
        )

    ranks = []
    for part, labels in zip(queries.split(chunk), query_labels.split(chunk), strict=True):
        scores = _scores(part, candidates)
        right = labels[:, None] == candidate_labels
        best = scores.masked_fill(~right, -torch.inf).amax(dim=1, keepdim=True)
        ranks.append(1 + ((scores >= best) & ~right).sum(dim=1))
    return torch.cat(ranks)


def _scores(
    queries: Float[Tensor, "query dim"], candidates: Float[Tensor, "candidate dim"]
) -> Float[Tensor, "query candidate"]:
    scores = queries @ candidates.T
    # A comparison with NaN is always false: unchecked, a model that diverged would have nobody in front, recall 1.
    if scores.isnan().any():
        raise ValueError("The similarities contain NaN; check the embeddings of the model.")
    return scores
