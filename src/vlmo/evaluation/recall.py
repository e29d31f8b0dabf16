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


def recall_metrics(
    *, text_ranks: Int[Tensor, " image"], image_ranks: Int[Tensor, " text"], ks: Sequence[int]
) -> dict[str, float]:
    """Return `tr@K` from the rank of each image's best caption, `ir@K` from the rank of each text's image."""
    both = {"tr": text_ranks, "ir": image_ranks}
    return {f"{name}@{k}": float((ranks <= k).double().mean()) for name, ranks in both.items() for k in ks}


def chance_recall(num_candidates: int, *, k: int, num_positives: int = 1) -> float:
    """Return the recall at k of a random order, exactly: one minus the chance that k draws hit none."""
    # Integers until the last division, so that large sets lose no digit. `comb` is 0 where fewer wrong candidates than
    # draws are left: then a hit is certain.
    draws = min(k, num_candidates)
    return 1 - comb(num_candidates - num_positives, draws) / comb(num_candidates, draws)


def chance_metrics(text_to_image: Int[Tensor, " text"], *, ks: Sequence[int] = (1, 5, 10)) -> dict[str, float]:
    """Return `tr@K` and `ir@K` of a random order; images may have different numbers of captions."""
    num_captions = torch.bincount(text_to_image)
    counts, shares = (each.tolist() for each in num_captions.unique(return_counts=True))
    metrics = {}
    for k in ks:
        chances = [chance_recall(len(text_to_image), k=k, num_positives=count) for count in counts]
        weighted = sum(chance * share for chance, share in zip(chances, shares, strict=True))
        metrics[f"tr@{k}"] = weighted / len(num_captions)
    return metrics | {f"ir@{k}": chance_recall(len(num_captions), k=k) for k in ks}


def chunked_topk(
    queries: Float[Tensor, "query dim"], candidates: Float[Tensor, "candidate dim"], *, k: int, chunk: int = 1024
) -> tuple[Float[Tensor, "query top"], Int[Tensor, "query top"]]:
    """Return scores and indices of the k best candidates of each query by dot product, best first.

    Equal to a full matrix product, of which `chunk` rows are in memory at a time. `top` is k, or the number of
    candidates where that is smaller. Candidates with the same score come in the order of their index; which of them is
    kept where the list ends among them is not defined. ValueError for similarities that are no numbers.
    """
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
        ValueError: A query has no right candidate, or a similarity is not a number.
    """
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


def _scores(queries: Tensor, candidates: Tensor) -> Float[Tensor, "query candidate"]:
    scores = queries @ candidates.T
    # A comparison with NaN is always false: unchecked, a model that diverged would have nobody in front, recall 1.
    if scores.isnan().any():
        raise ValueError("The similarities contain NaN; check the embeddings of the model.")
    return scores
