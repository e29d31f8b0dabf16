"""Metrics of retrieval; models are passed in."""

from vlmo.evaluation.retrieval import RetrievalResult, Weights, evaluate_retrieval
from vlmo.evaluation.scoring import RetrievalSet

__all__ = ["RetrievalResult", "RetrievalSet", "Weights", "evaluate_retrieval"]
