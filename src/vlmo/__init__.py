"""VLMo: vision-language pre-training with one backbone and an expert for each modality."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from vlmo.registration import register, register_when_transformers_is_imported

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

_ROOMS = {"Searcher": "vlmo.retrieval", "VLMoProcessor": "vlmo.processing"}

register_when_transformers_is_imported()


def __getattr__(name: str) -> Any:
    """Public classes are imported when they are asked for: torch and transformers take seconds."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    register()
    room = _ROOMS.get(name, "vlmo.model")
    found = globals()[name] = getattr(importlib.import_module(room), name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
