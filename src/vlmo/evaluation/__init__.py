"""Retrieval figures and the report of a run; models are passed in."""

from vlmo.evaluation.contents import (
    AttentionMap,
    Attribution,
    Chart,
    Curve,
    Figure,
    PictureQuery,
    Report,
    Step,
    TextQuery,
    figures_of,
    picture_queries,
    text_queries,
)
from vlmo.evaluation.pictures import contact_sheet
from vlmo.evaluation.recall import (
    chance_metrics,
    chance_recall,
    chunked_ranks,
    chunked_topk,
    positive_ranks,
    recall_at_k,
    retrieval_recall,
)
from vlmo.evaluation.report import write_report
from vlmo.evaluation.retrieval import (
    Ranking,
    Rankings,
    RetrievalResult,
    evaluate_retrieval,
    recall_by_weight,
)
from vlmo.evaluation.scoring import RetrievalModel, RetrievalSet, embed_images, embed_texts

__all__ = [
    "AttentionMap",
    "Attribution",
    "Chart",
    "Curve",
    "Figure",
    "PictureQuery",
    "Ranking",
    "Rankings",
    "Report",
    "RetrievalModel",
    "RetrievalResult",
    "RetrievalSet",
    "Step",
    "TextQuery",
    "chance_metrics",
    "chance_recall",
    "chunked_ranks",
    "chunked_topk",
    "contact_sheet",
    "embed_images",
    "embed_texts",
    "evaluate_retrieval",
    "figures_of",
    "picture_queries",
    "positive_ranks",
    "recall_at_k",
    "recall_by_weight",
    "retrieval_recall",
    "text_queries",
    "write_report",
]
