"""VLMo: vision-language pre-training with one backbone and an expert for each modality.

torch and transformers take seconds to import, and `import vlmo` brings neither. The first use of a name of this
package, such as `vlmo.model_path`, registers the models with transformers; so does `import vlmo` after `transformers`.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from vlmo.lazy import lazy_names

if TYPE_CHECKING:
    from vlmo.model import (
        VLMoConfig,
        VLMoForImageCaptioning,
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
    "VLMoForImageCaptioning",
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

_import_name = lazy_names(
    __name__,
    {
        ".model": " ".join(name for name in __all__ if name not in {"Searcher", "VLMoProcessor", "model_path"}),
        ".processing": "VLMoProcessor",
        ".released": "model_path",
        ".retrieval": "Searcher",
    },
)


def _register() -> None:
    from vlmo.integrations.auto import register

    register()


def __getattr__(name: str) -> Any:
    if name in __all__:
        _register()
    return _import_name(name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


if "transformers" in sys.modules:
    _register()
