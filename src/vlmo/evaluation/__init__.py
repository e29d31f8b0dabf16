"""Metrics of retrieval; models are passed in."""

from vlmo.evaluation.recall import chance_metrics
from vlmo.evaluation.retrieval import RetrievalResult, Weights, evaluate_retrieval
from vlmo.evaluation.scoring import RetrievalSet

__all__ = ["RetrievalResult", "RetrievalSet", "Weights", "chance_metrics", "evaluate_retrieval"]
