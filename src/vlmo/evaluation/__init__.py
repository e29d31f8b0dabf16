"""Metrics of retrieval; models are passed in."""

from vlmo.evaluation.recall import (
    chance_metrics,
    chance_recall,
    chunked_ranks,
    chunked_topk,
    positive_ranks,
    recall_at_k,
    retrieval_recall,
)
from vlmo.evaluation.retrieval import (
    Ranking,
    Rankings,
    RetrievalResult,
    evaluate_retrieval,
    recall_by_weight,
)
from vlmo.evaluation.scoring import RetrievalModel, RetrievalSet, embed_images, embed_texts

__all__ = [
    "Ranking",
    "Rankings",
    "RetrievalModel",
    "RetrievalResult",
    "RetrievalSet",
    "chance_metrics",
    "chance_recall",
    "chunked_ranks",
    "chunked_topk",
    "embed_images",
    "embed_texts",
    "evaluate_retrieval",
    "positive_ranks",
    "recall_at_k",
    "recall_by_weight",
    "retrieval_recall",
]
