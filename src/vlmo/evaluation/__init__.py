"""Metrics of retrieval; models are passed in."""

from vlmo.evaluation.recall import chance_metrics
from vlmo.evaluation.retrieval import RetrievalResult, evaluate_retrieval
from vlmo.evaluation.scoring import RetrievalSet

__all__ = ["RetrievalResult", "RetrievalSet", "chance_metrics", "evaluate_retrieval"]
