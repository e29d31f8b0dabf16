"""VLMo: vision-language pre-training with one backbone and an expert for each modality."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from vlmo.registration import register, register_once_transformers_is_imported

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
]

_PACKAGES = {"Searcher": "vlmo.retrieval", "VLMoProcessor": "vlmo.processing"}

register_once_transformers_is_imported()


def __getattr__(name: str) -> Any:
    """Import a public class on first use; torch and transformers take seconds."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    register()
    found = globals()[name] = getattr(importlib.import_module(_PACKAGES.get(name, "vlmo.model")), name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
