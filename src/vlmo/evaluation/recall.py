"""Recall at K, ranks and exact top k: pure functions of tensors.

Both directions of retrieval are one problem here. Every query and every candidate carries a label, and a candidate is
right for a query when their labels are equal. Text to image: queries are labelled with `text_to_image`, candidates with
their own number. Image to text: the other way round, with as many right candidates as the image has captions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import comb

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def positive_ranks(
    similarity: Float[Tensor, "query candidate"],
    *,
    query_labels: Int[Tensor, " query"],
    candidate_labels: Int[Tensor, " candidate"],
) -> Int[Tensor, " query"]:
    """Return the rank, from 1, of the best placed right candidate of each query.

    Ties count against the model: a wrong candidate with the same score stands in front of the right one. A model that
    returns a constant is therefore last, never first. Other right candidates never stand in front.

    Raises:
        ValueError: If the shapes disagree, a query has no right candidate or a similarity is not a number.
    """
    num_queries, num_candidates = len(query_labels), len(candidate_labels)
    if similarity.shape != (num_queries, num_candidates):
        raise ValueError(
            f"The similarity has shape {tuple(similarity.shape)}, expected (queries, candidates) = "
            f"({num_queries}, {num_candidates}); transpose it or pass the labels of the other side."
        )
    _check_labels(query_labels, candidate_labels)
    _check_numbers(similarity)
    positive = _equal(query_labels, candidate_labels)
    best = _best_positive(similarity, positive)
    return 1 + _num_in_front(similarity, positive, best=best)


def recall_at_k(ranks: Int[Tensor, " query"], *, k: int) -> float:
    """Return the share of queries whose rank is at most k, a fraction.

    Raises:
        ValueError: If there is no query, k is below 1 or a rank is below 1.
    """
    if k < 1 or len(ranks) == 0 or int(ranks.min()) < 1:
        raise ValueError(f"Recall needs k >= 1 and ranks counted from 1, given k = {k} and {len(ranks)} ranks.")
    return float((ranks <= k).double().mean())


def retrieval_recall(
    similarity: Float[Tensor, "image text"], *, text_to_image: Int[Tensor, " text"], ks: Sequence[int] = (1, 5, 10)
) -> dict[str, float]:
    """Return `tr@K` and `ir@K` of a full matrix of similarities, fractions.

    TR@K is the share of images with any of their captions among the K best texts, IR@K the share of texts with their
    image among the K best images. Ties as in `positive_ranks`.
    """
    images = torch.arange(similarity.shape[0], device=similarity.device)
    text_to_image = text_to_image.to(similarity.device)
    text_ranks = positive_ranks(similarity, query_labels=images, candidate_labels=text_to_image)
    image_ranks = positive_ranks(similarity.T, query_labels=text_to_image, candidate_labels=images)
    return recall_metrics(text_ranks=text_ranks, image_ranks=image_ranks, ks=ks)


def recall_metrics(
    *, text_ranks: Int[Tensor, " image"], image_ranks: Int[Tensor, " text"], ks: Sequence[int]
) -> dict[str, float]:
    """Return `tr@K` from the rank of each image's best caption, `ir@K` from the rank of each text's image."""
    metrics = {f"tr@{k}": recall_at_k(text_ranks, k=k) for k in ks}
    return metrics | {f"ir@{k}": recall_at_k(image_ranks, k=k) for k in ks}


def chance_recall(num_candidates: int, *, k: int, num_positives: int = 1) -> float:
    """Return the exact recall at k of a random order: one minus the chance that k draws miss all right candidates.

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
    queries: Float[Tensor, "query dim"], candidates: Float[Tensor, "candidate dim"], *, k: int, chunk: int = 4096
) -> tuple[Float[Tensor, "query top"], Int[Tensor, "query top"]]:
    """Return scores and indices of the k best candidates of each query by dot product, best first.

    Equal to a full matrix product, in the memory of one `chunk` x `chunk` block. `top` is k, or the number of
    candidates where that is smaller. Candidates with the same score come in the order of their index; which of them is
    kept where the list ends among them is not defined.

    Raises:
        ValueError: If k or chunk is below 1 or a similarity is not a number.
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, given {k}.")
    all_scores, all_indices = [], []
    for rows in _chunks(len(queries), chunk=chunk):
        scores = queries.new_empty(rows.stop - rows.start, 0)
        indices = torch.empty(scores.shape, dtype=torch.int64, device=queries.device)
        for columns in _chunks(len(candidates), chunk=chunk):
            block = _scores(queries[rows], candidates[columns])
            best = block.topk(min(k, block.shape[1]), dim=1)
            scores = torch.cat([scores, best.values], dim=1)
            indices = torch.cat([indices, best.indices + columns.start], dim=1)
            scores, indices = _sort_by_score(scores, indices, k=k)
        all_scores.append(scores)
        all_indices.append(indices)
    return torch.cat(all_scores), torch.cat(all_indices)


def chunked_ranks(
    queries: Float[Tensor, "query dim"],
    candidates: Float[Tensor, "candidate dim"],
    *,
    query_labels: Int[Tensor, " query"],
    candidate_labels: Int[Tensor, " candidate"],
    chunk: int = 4096,
) -> Int[Tensor, " query"]:
    """Return `positive_ranks` of the dot products, in the memory of one `chunk` x `chunk` block."""
    _check_labels(query_labels, candidate_labels)
    ranks = []
    for rows in _chunks(len(queries), chunk=chunk):
        blocks = list(_chunks(len(candidates), chunk=chunk))
        best = queries.new_full((rows.stop - rows.start,), -torch.inf)
        for columns in blocks:
            positive = _equal(query_labels[rows], candidate_labels[columns])
            best = torch.maximum(best, _best_positive(_scores(queries[rows], candidates[columns]), positive))
        in_front = torch.zeros_like(best, dtype=torch.int64)
        # The same products again, not stored ones and not row-wise dot products: the comparison below needs the same
        # rounding on both sides, or ties would be decided by the last bit.
        for columns in blocks:
            positive = _equal(query_labels[rows], candidate_labels[columns])
            in_front += _num_in_front(_scores(queries[rows], candidates[columns]), positive, best=best)
        ranks.append(1 + in_front)
    return torch.cat(ranks)


def _check_labels(query_labels: Int[Tensor, " query"], candidate_labels: Int[Tensor, " candidate"]) -> None:
    lost = (~torch.isin(query_labels, candidate_labels)).nonzero().flatten().tolist()
    if lost:
        raise ValueError(
            f"{len(lost)} queries have no right candidate (first: {lost[:5]}); "
            "every image needs a caption and every caption an image of the set."
        )


def _check_numbers(similarity: Float[Tensor, "query candidate"]) -> None:
    # A comparison with NaN is always false: unchecked, a model that diverged would have nobody in front, recall 1.
    if similarity.isnan().any():
        raise ValueError("The similarities contain NaN; check the embeddings of the model.")


def _equal(
    query_labels: Int[Tensor, " query"], candidate_labels: Int[Tensor, " candidate"]
) -> Bool[Tensor, "query candidate"]:
    return query_labels[:, None] == candidate_labels[None, :]


def _best_positive(
    scores: Float[Tensor, "query candidate"], positive: Bool[Tensor, "query candidate"]
) -> Float[Tensor, " query"]:
    return scores.masked_fill(~positive, -torch.inf).amax(dim=1)


def _num_in_front(
    scores: Float[Tensor, "query candidate"],
    positive: Bool[Tensor, "query candidate"],
    *,
    best: Float[Tensor, " query"],
) -> Int[Tensor, " query"]:
    return ((scores >= best[:, None]) & ~positive).sum(dim=1)


def _scores(
    queries: Float[Tensor, "query dim"], candidates: Float[Tensor, "candidate dim"]
) -> Float[Tensor, "query candidate"]:
    scores = queries @ candidates.T
    _check_numbers(scores)
    return scores


def _sort_by_score(
    scores: Float[Tensor, "query found"], indices: Int[Tensor, "query found"], *, k: int
) -> tuple[Float[Tensor, "query top"], Int[Tensor, "query top"]]:
    # By index first, then stably by score: equal scores stay in the order of their index.
    indices, order = indices.sort(dim=1)
    scores, order = scores.gather(1, order).sort(dim=1, descending=True, stable=True)
    return scores[:, :k], indices.gather(1, order)[:, :k]


def _chunks(total: int, *, chunk: int) -> Iterator[slice]:
    if chunk < 1:
        raise ValueError(f"chunk must be at least 1, given {chunk}.")
    for start in range(0, total, chunk):
        yield slice(start, min(start + chunk, total))
