"""Image-text retrieval: dual encoder, then the fusion encoder on a shortlist; recall at K.

Both directions are one problem here. Queries and candidates carry labels, and a candidate is right
for a query when their labels are equal. Text to image: queries are labeled with `text_to_image`,
candidates with their own number. Image to text: the other way round, with as many right candidates
as the image has captions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from math import comb
from statistics import fmean
from typing import TYPE_CHECKING, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from vlmo.evaluation.inference import BATCH, Report
from vlmo.evaluation.scoring import RetrievalSet, embed, match_pairs
from vlmo.model.reranking import rerank_score

if TYPE_CHECKING:
    from vlmo.model import VLMoForImageTextRetrieval

# The K of recall at K.
KS = (1, 5, 10)


@dataclass(frozen=True, eq=False)
class Ranking:
    """Candidates of the queries in order, on the CPU.

    Attributes:
        indices: The best candidates, best first.
        scores: Their scores: cosine similarity, or the mixed score in nats; -inf beyond the
            shortlist.
        ranks: Rank, from 1, of the best placed right candidate among all candidates; ties count
            against the model.
        is_right: True for those of the best candidates that are right.
    """

    indices: Int[Tensor, "query top"]
    scores: Float[Tensor, "query top"]
    ranks: Int[Tensor, " query"]
    is_right: Bool[Tensor, "query top"]


class Rankings(NamedTuple):
    """Both directions of retrieval."""

    image_to_text: Ranking
    text_to_image: Ranking

    def metrics(self, ks: Sequence[int], *, prefix: str = "") -> dict[str, float]:
        """Return `tr@K` and `ir@K`, fractions."""
        recalls = recall_metrics(
            text_ranks=self.image_to_text.ranks, image_ranks=self.text_to_image.ranks, ks=ks
        )
        return {prefix + name: value for name, value in recalls.items()}


class Weights(NamedTuple):
    """Weights of the fusion encoder in both directions, 0 to 1.

    0.5 weighs both encoders alike, which is what the training makes them mean: ITC learns q(c) ~
    exp(similarity / temperature), ITM to tell the true pair from negatives drawn from q, so
    log-odds of log p(c) / q(c). With negatives from the softmax of s times the logits
    (`negative_sharpness`) a weight of 1 / (1 + s) does that.
    """

    image_to_text: float
    text_to_image: float


@dataclass(frozen=True, eq=False)
class RetrievalResult:
    """Metrics and rankings of one evaluation.

    Attributes:
        metrics: `tr@K` and `ir@K` of the dual encoder, fractions; with a shortlist also
            `rerank_tr@K`, `rerank_ir@K`.
        chance: `tr@K` and `ir@K` of a random order.
        reranked: The same after the fusion encoder; None without a shortlist.
        rerank: Returns the rankings with other weights of the fusion encoder; None without a
            shortlist.
    """

    metrics: dict[str, float]
    chance: dict[str, float]
    dual: Rankings
    reranked: Rankings | None = None
    rerank: Callable[[Weights], Rankings] | None = None


def evaluate_retrieval(
    model: VLMoForImageTextRetrieval,
    pairs: RetrievalSet,
    *,
    ks: Sequence[int] = KS,
    rerank: int = 0,
    rerank_weight: float | Weights = 0.5,
    batch: int = BATCH,
    progress: Report | None = None,
) -> RetrievalResult:
    """Return the recall of the dual encoder and, with `rerank` > 0, after the fusion encoder.

    The fusion encoder scores the `rerank` best candidates of a query, and only these change places
    (`rerank_score`). Candidates with equal scores keep the order of the dual encoder. Several
    processes share the work. ValueError for an option out of range, a set that disagrees, or NaN.

    Args:
        model: Put in evaluation mode and back again; see `vlmo.evaluation.scoring`.
        pairs: Read once, and once more for the shortlist: images are decoded again, not kept.
        progress: Called with "images", "texts" and "pairs".
    """
    weights = rerank_weight
    if not isinstance(weights, Weights):
        weights = Weights(weights, weights)
    in_range = rerank >= 0 and batch >= 1 and min(weights) >= 0 and max(weights) <= 1
    if not in_range or min(ks, default=0) < 1:
        raise ValueError(
            "Expected ks >= 1, rerank >= 0, 0 <= rerank_weight <= 1 and batch >= 1, given ks = "
            f"{tuple(ks)}, rerank = {rerank}, rerank_weight = {rerank_weight}, batch = {batch}."
        )
    dual = _rank_both(
        *embed(model, pairs, batch=batch, progress=progress), pairs, k=max(*ks, rerank)
    )
    result = RetrievalResult(dual.metrics(ks), chance_metrics(pairs.text_to_image, ks=ks), dual)
    if not rerank:
        return result
    rerank_both = _reranker(model, pairs, dual, rerank=rerank, batch=batch, progress=progress)
    reranked = rerank_both(weights)
    metrics = result.metrics | reranked.metrics(ks, prefix="rerank_")
    return replace(result, metrics=metrics, reranked=reranked, rerank=rerank_both)


def _rank_both(
    images: Float[Tensor, "image dim"],
    texts: Float[Tensor, "text dim"],
    pairs: RetrievalSet,
    *,
    k: int,
) -> Rankings:
    text_labels = pairs.text_to_image
    image_labels = torch.arange(pairs.num_images)
    return Rankings(
        image_to_text=rank_candidates(images, texts, image_labels, text_labels, k=k),
        text_to_image=rank_candidates(texts, images, text_labels, image_labels, k=k),
    )


def _reranker(
    model: VLMoForImageTextRetrieval,
    pairs: RetrievalSet,
    dual: Rankings,
    *,
    rerank: int,
    batch: int,
    progress: Report | None,
) -> Callable[[Weights], Rankings]:
    """Return a function from weights to rankings; the fusion encoder scores the pairs once."""
    texts = dual.image_to_text.indices[:, :rerank]  # (image, shortlist)
    images = dual.text_to_image.indices[:, :rerank]  # (text, shortlist)
    image_queries = torch.arange(pairs.num_images)[:, None].expand_as(texts)
    text_queries = torch.arange(pairs.num_texts)[:, None].expand_as(images)
    # Both directions in one call, as they share many pairs.
    odds = match_pairs(
        model,
        pairs,
        images=torch.cat([image_queries.flatten(), images.flatten()]),
        texts=torch.cat([texts.flatten(), text_queries.flatten()]),
        batch=batch,
        progress=progress,
    )
    text_odds = odds[: texts.numel()].view_as(texts)
    image_odds = odds[texts.numel() :].view_as(images)
    scale = float(model.contrast_head.logit_scale.detach().exp())

    def rerank_both(weights: Weights) -> Rankings:
        to_text, to_image = weights
        return Rankings(
            image_to_text=_rerank(dual.image_to_text, text_odds, weight=to_text, scale=scale),
            text_to_image=_rerank(dual.text_to_image, image_odds, weight=to_image, scale=scale),
        )

    return rerank_both


def _rerank(
    dual: Ranking, log_odds: Float[Tensor, "query shortlist"], *, weight: float, scale: float
) -> Ranking:
    shortlist = log_odds.shape[1]
    similarity = dual.scores[:, :shortlist]
    mixed = rerank_score(similarity, log_odds, weight=weight, scale=scale)
    # The shortlist comes in the dual encoder's order, and a stable sort keeps it among equals.
    mixed, order = mixed.sort(dim=1, descending=True, stable=True)
    similarity = similarity.gather(1, order)
    is_right = dual.is_right.gather(1, order)
    beyond = slice(shortlist, None)
    indices = torch.cat([dual.indices.gather(1, order), dual.indices[:, beyond]], dim=1)
    scores = F.pad(mixed, (0, dual.scores.shape[1] - shortlist), value=-torch.inf)

    # The first right candidate; a row without one keeps its rank below.
    best = is_right.int().argmax(dim=1, keepdim=True)
    best_mixed = mixed.gather(1, best)
    tied = (mixed == best_mixed) & (similarity >= similarity.gather(1, best))
    ranks = 1 + (((mixed > best_mixed) | tied) & ~is_right).sum(dim=1)
    # A rank beyond the shortlist stays, even if a tie at its edge let the right one in by luck.
    ranks = torch.where(dual.ranks <= shortlist, ranks, dual.ranks)
    is_right = torch.cat([is_right, dual.is_right[:, beyond]], dim=1)
    return Ranking(indices, scores, ranks, is_right)


def recall_metrics(
    *, text_ranks: Int[Tensor, " image"], image_ranks: Int[Tensor, " text"], ks: Sequence[int]
) -> dict[str, float]:
    """Return `tr@K` from ranks of images' best captions, `ir@K` from ranks of texts' images."""
    recalls = {}
    for name, ranks in (("tr", text_ranks), ("ir", image_ranks)):
        for k in ks:
            recalls[f"{name}@{k}"] = float((ranks <= k).double().mean())
    return recalls


@cache
def chance_recall(num_candidates: int, *, k: int, num_positives: int = 1) -> float:
    """Return the recall at k of a random order: one minus the chance that k draws hit none."""
    # Integers until the last division, so that large sets lose no digit. `comb` is 0 where fewer
    # wrong candidates than draws are left: then a hit is certain.
    draws = min(k, num_candidates)
    return 1 - comb(num_candidates - num_positives, draws) / comb(num_candidates, draws)


def chance_metrics(
    text_to_image: Int[Tensor, " text"], *, ks: Sequence[int] = KS
) -> dict[str, float]:
    """Return `tr@K` and `ir@K` of a random order; images may have different numbers of captions."""
    num_texts = len(text_to_image)
    num_captions = torch.bincount(text_to_image).tolist()
    metrics = {}
    for k in ks:
        metrics[f"tr@{k}"] = fmean(
            chance_recall(num_texts, k=k, num_positives=count) for count in num_captions
        )
        metrics[f"ir@{k}"] = chance_recall(len(num_captions), k=k)
    return metrics


def rank_candidates(
    queries: Float[Tensor, "query dim"],
    candidates: Float[Tensor, "candidate dim"],
    query_labels: Int[Tensor, " query"],
    candidate_labels: Int[Tensor, " candidate"],
    *,
    k: int,
    chunk: int = 1024,
) -> Ranking:
    """Return the k best candidates of queries by dot product, and the ranks of the right ones.

    Equal to a full matrix product, of which `chunk` rows are in memory at a time. Equal scores come
    in the order of their index; which of them the list ends with is not defined. In ranks, a wrong
    candidate with the same score stands in front of the right one: a model that returns a constant
    is last, never first. ValueError for a query without a right candidate, or NaN.
    """
    query_labels = query_labels.to(queries.device)
    candidate_labels = candidate_labels.to(queries.device)
    lost = (~torch.isin(query_labels, candidate_labels)).nonzero().flatten().tolist()
    if lost:
        raise ValueError(
            f"{len(lost)} queries have no right candidate in the set (first: {lost[:5]})"
        )
    parts = []
    for rows, labels in zip(queries.split(chunk), query_labels.split(chunk), strict=True):
        scores = rows @ candidates.T
        # Comparisons with NaN are false: unchecked, a model that diverged would have recall 1.
        if scores.isnan().any():
            raise ValueError("The similarities contain NaN; check the embeddings of the model.")
        is_right = labels[:, None] == candidate_labels
        best_right = scores.masked_fill(~is_right, -torch.inf).amax(dim=1, keepdim=True)
        ranks = 1 + ((scores >= best_right) & ~is_right).sum(dim=1)
        best = scores.topk(min(k, len(candidates)), dim=1)
        # By index first, then stably by score: equal scores stay in the order of their index.
        indices, order = best.indices.sort(dim=1)
        scores, order = best.values.gather(1, order).sort(dim=1, descending=True, stable=True)
        indices = indices.gather(1, order)
        tensors = indices, scores, ranks, is_right.gather(1, indices)
        parts.append([tensor.cpu() for tensor in tensors])
    return Ranking(*map(torch.cat, zip(*parts, strict=True)))
