"""VLMo: vision-language pre-training with one backbone and an expert for each modality."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vlmo.lazy import lazy_names
from vlmo.registration import register

if TYPE_CHECKING:
    from vlmo.model import (
        VLMoConfig,
        VLMoForImageClassification,
        VLMoForImageTextRetrieval,
        VLMoForMaskedImageModeling,
        VLMoForMaskedLM,
        VLMoForPreTraining,
        VLMoForSemanticSegmentation,
        VLMoForVisualQuestionAnswering,
        VLMoForVisualReasoning,
        VLMoModel,
    )
    from vlmo.processing import VLMoProcessor
    from vlmo.released import model_path
    from vlmo.retrieval import Searcher

__version__ = "0.1.0"

__all__ = [
    "Searcher",
    "VLMoConfig",
    "VLMoForImageClassification",
    "VLMoForImageTextRetrieval",
    "VLMoForMaskedImageModeling",
    "VLMoForMaskedLM",
    "VLMoForPreTraining",
    "VLMoForSemanticSegmentation",
    "VLMoForVisualQuestionAnswering",
    "VLMoForVisualReasoning",
    "VLMoModel",
    "VLMoProcessor",
    "model_path",
]

register()

__getattr__ = lazy_names(
    __name__,
    {
        ".model": " ".join(name for name in __all__ if name not in {"Searcher", "VLMoProcessor", "model_path"}),
        ".processing": "VLMoProcessor",
        ".released": "model_path",
        ".retrieval": "Searcher",
    },
)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
