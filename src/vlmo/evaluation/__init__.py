"""Metrics of retrieval; models are passed in."""

from vlmo.evaluation.recall import (
    chance_metrics,
    chance_recall,
    chunked_ranks,
    chunked_topk,
    recall_at_k,
)
from vlmo.evaluation.retrieval import (
    Ranking,
    Rankings,
    RetrievalResult,
    evaluate_retrieval,
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
    "recall_at_k",
]
