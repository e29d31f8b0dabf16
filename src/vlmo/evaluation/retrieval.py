"""Image-text retrieval of a model: dual encoder, then the fusion encoder on a shortlist; recall at K.

Both directions are one problem here. Every query and every candidate carries a label, and a candidate is right for a
query when their labels are equal. Text to image: queries are labelled with `text_to_image`, candidates with their own
number. Image to text: the other way round, with as many right candidates as the image has captions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import comb
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from vlmo.evaluation.inference import BATCH, Report
from vlmo.evaluation.scoring import RetrievalSet, embed, match_pairs
from vlmo.model.reranking import rerank_score

KS = (1, 5, 10)
"""The K of recall at K."""


@dataclass(frozen=True, eq=False)
class Ranking:
    """Candidates that each query found, on the CPU.

    Attributes:
        indices: The best candidates, best first.
        scores: Their scores: cosine similarity, or the mixed score in nats; -inf beyond the shortlist.
        ranks: Rank, from 1, of the best placed right candidate among all candidates; ties count against the model.
    """

    indices: Int[Tensor, "query top"]
    scores: Float[Tensor, "query top"]
    ranks: Int[Tensor, " query"]


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
    """Weight of the fusion encoder in each direction, 0 to 1."""

    image_to_text: float
    text_to_image: float


@dataclass(frozen=True, eq=False)
class RetrievalResult:
    """Metrics and rankings of one evaluation.

    Attributes:
        metrics: `tr@K` and `ir@K` of the dual encoder, fractions; with a shortlist also `rerank_tr@K`, `rerank_ir@K`.
        chance: `tr@K` and `ir@K` of a random order.
        reranked: The same after the fusion encoder; None without a shortlist.
        rerank: Returns the rankings with other weights of the fusion encoder; None without a shortlist.
    """

    metrics: dict[str, float]
    chance: dict[str, float]
    dual: Rankings
    reranked: Rankings | None = None
    rerank: Callable[[Weights], Rankings] | None = None


def evaluate_retrieval(
    model: Any,
    pairs: RetrievalSet,
    *,
    ks: Sequence[int] = KS,
    rerank: int = 0,
    rerank_weight: float | Weights = 0.5,
    batch: int = BATCH,
    progress: Report | None = None,
) -> RetrievalResult:
    """Return the recall of the dual encoder and, if `rerank` > 0, of the fusion encoder on its shortlist.

    The fusion encoder scores the `rerank` best candidates of every query and only these change places:

        mixed = (1 - rerank_weight) * similarity / temperature + rerank_weight * log-odds of a match

    The default weighs both alike, which is what the training makes them mean: ITC learns q(c) ~ exp(similarity /
    temperature), ITM to tell the true pair from negatives drawn from q, so log-odds of log p(c) / q(c). With negatives
    from the softmax of s times the logits (`negative_sharpness`) a weight of 1 / (1 + s) does that. Candidates with
    equal mixed scores keep the order of the dual encoder. Several processes share the work, and all return the result
    of one.

    Args:
        model: Put in evaluation mode and back again; see `vlmo.evaluation.scoring`.
        pairs: Read once, and once more for the shortlist: pixels are decoded again rather than kept.
        rerank: Length of the shortlist of each query; 0 for the dual encoder alone.
        rerank_weight: Weight of the fusion encoder, 0 to 1; or one for each direction.
        progress: Called with "images", "texts" and "pairs".

    Raises:
        ValueError: If an option is out of range, the set's parts disagree or the model returns NaN.
    """
    weights = (
        rerank_weight
        if isinstance(rerank_weight, Weights)
        else Weights(rerank_weight, rerank_weight)
    )
    if (
        rerank < 0
        or not all(0 <= each <= 1 for each in weights)
        or batch < 1
        or min(ks, default=0) < 1
    ):
        raise ValueError(
            f"Expected ks >= 1, rerank >= 0, 0 <= rerank_weight <= 1 and batch >= 1, given ks = {tuple(ks)}, "
            f"rerank = {rerank}, rerank_weight = {rerank_weight}, batch = {batch}."
        )
    images, texts = embed(model, pairs, batch=batch, progress=progress)
    dual = _dual_rankings(images, texts, pairs.text_to_image, top=max(*ks, rerank))
    chance = chance_metrics(pairs.text_to_image, ks=ks)
    if not rerank:
        return RetrievalResult(dual.metrics(ks), chance, dual)

    # The fusion encoder scores both directions in one call, as they share many pairs.
    found_texts, found_images = (each.indices[:, :rerank] for each in dual)
    owners = pairs.text_to_image.cpu()
    query_images = torch.arange(pairs.num_images)[:, None].expand_as(found_texts)
    query_texts = torch.arange(pairs.num_texts)[:, None].expand_as(found_images)
    all_images = torch.cat([query_images.flatten(), found_images.flatten()])
    all_texts = torch.cat([found_texts.flatten(), query_texts.flatten()])
    matches = match_pairs(
        model, pairs, images=all_images, texts=all_texts, batch=batch, progress=progress
    )
    scores = matches.split([found_texts.numel(), found_images.numel()])
    right = owners[found_texts] == query_images, found_images == owners[:, None]
    scale = float(model.contrast_head.logit_scale.detach().exp())

    def reranked_by(weights: Weights) -> Rankings:
        both = zip(dual, scores, right, weights, strict=True)
        return Rankings(
            *(
                _rerank(one, flat.view_as(of), of, weight=w, scale=scale)
                for one, flat, of, w in both
            )
        )

    reranked = reranked_by(weights)
    metrics = dual.metrics(ks) | reranked.metrics(ks, prefix="rerank_")
    return RetrievalResult(metrics, chance, dual, reranked, reranked_by)


def _dual_rankings(images: Tensor, texts: Tensor, text_to_image: Tensor, *, top: int) -> Rankings:
    text_labels = text_to_image.to(images.device)
    image_labels = torch.arange(len(images), device=images.device)

    def ranking(
        queries: Tensor, candidates: Tensor, query_labels: Tensor, candidate_labels: Tensor
    ) -> Ranking:
        scores, indices = chunked_topk(queries, candidates, k=top)
        ranks = chunked_ranks(
            queries, candidates, query_labels=query_labels, candidate_labels=candidate_labels
        )
        return Ranking(indices=indices.cpu(), scores=scores.cpu(), ranks=ranks.cpu())

    return Rankings(
        image_to_text=ranking(images, texts, image_labels, text_labels),
        text_to_image=ranking(texts, images, text_labels, image_labels),
    )


def _rerank(
    dual: Ranking, scores: Tensor, positive: Tensor, *, weight: float, scale: float
) -> Ranking:
    shortlist = scores.shape[1]
    similarity = dual.scores[:, :shortlist]
    mixed = rerank_score(similarity, scores, weight=weight, scale=scale)
    # The shortlist comes in the dual encoder's order, and a stable sort keeps it among equals.
    mixed, order = mixed.sort(dim=1, descending=True, stable=True)
    similarity = similarity.gather(1, order)
    positive = positive.gather(1, order)
    indices = torch.cat(
        [dual.indices[:, :shortlist].gather(1, order), dual.indices[:, shortlist:]], dim=1
    )
    padded = F.pad(mixed, (0, dual.scores.shape[1] - shortlist), value=-torch.inf)

    best = positive.int().argmax(dim=1, keepdim=True)
    best_mixed = mixed.gather(1, best)
    best_similarity = similarity.gather(1, best)
    tied = (mixed == best_mixed) & (similarity >= best_similarity)
    ranks = 1 + (((mixed > best_mixed) | tied) & ~positive).sum(dim=1)
    # A rank beyond the shortlist stays. That holds too where a tie at its edge let the right one in by luck.
    ranks = torch.where(dual.ranks <= shortlist, ranks, dual.ranks)
    return Ranking(indices=indices, scores=padded, ranks=ranks)


def recall_metrics(
    *, text_ranks: Int[Tensor, " image"], image_ranks: Int[Tensor, " text"], ks: Sequence[int]
) -> dict[str, float]:
    """Return `tr@K` from the rank of each image's best caption, `ir@K` from the rank of each text's image."""
    both = {"tr": text_ranks, "ir": image_ranks}
    return {
        f"{name}@{k}": float((ranks <= k).double().mean())
        for name, ranks in both.items()
        for k in ks
    }


def chance_recall(num_candidates: int, *, k: int, num_positives: int = 1) -> float:
    """Return the recall at k of a random order, exactly: one minus the chance that k draws hit none."""
    # Integers until the last division, so that large sets lose no digit. `comb` is 0 where fewer wrong candidates than
    # draws are left: then a hit is certain.
    draws = min(k, num_candidates)
    return 1 - comb(num_candidates - num_positives, draws) / comb(num_candidates, draws)


def chance_metrics(
    text_to_image: Int[Tensor, " text"], *, ks: Sequence[int] = (1, 5, 10)
) -> dict[str, float]:
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
    queries: Float[Tensor, "query dim"],
    candidates: Float[Tensor, "candidate dim"],
    *,
    k: int,
    chunk: int = 1024,
) -> tuple[Float[Tensor, "query top"], Int[Tensor, "query top"]]:
    """Return scores and indices of the k best candidates of each query by dot product, best first.

    Equal to a full matrix product, of which `chunk` rows are in memory at a time. `top` is k, or the number of
    candidates where that is smaller. Candidates with the same score come in the order of their index; which of them is
    kept where the list ends among them is not defined. ValueError for similarities that are no numbers.
    """
    all_scores = []
    all_indices = []
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
            f"{len(lost)} queries have no right candidate in the set (first: {lost[:5]})"
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
