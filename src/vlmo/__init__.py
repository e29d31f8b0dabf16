"""VLMo: vision-language pre-training with one backbone and an expert for each modality.

torch and transformers take seconds to import, and `import vlmo` brings neither. The first use of a name of this
package, such as `vlmo.model_path`, registers the models with transformers; so does `import vlmo` after `transformers`.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from vlmo.lazy import lazy_names
from vlmo.released.converter import register_converter

if TYPE_CHECKING:
    from pathlib import Path

    from vlmo.model import VLMoConfig as VLMoConfig
    from vlmo.model import VLMoForImageCaptioning as VLMoForImageCaptioning
    from vlmo.model import VLMoForImageClassification as VLMoForImageClassification
    from vlmo.model import VLMoForImageTextRetrieval as VLMoForImageTextRetrieval
    from vlmo.model import VLMoForMaskedImageModeling as VLMoForMaskedImageModeling
    from vlmo.model import VLMoForMaskedLM as VLMoForMaskedLM
    from vlmo.model import VLMoForPreTraining as VLMoForPreTraining
    from vlmo.model import VLMoForSemanticSegmentation as VLMoForSemanticSegmentation
    from vlmo.model import VLMoForVisualQuestionAnswering as VLMoForVisualQuestionAnswering
    from vlmo.model import VLMoForVisualReasoning as VLMoForVisualReasoning
    from vlmo.model import VLMoModel as VLMoModel
    from vlmo.processing import VLMoProcessor as VLMoProcessor
    from vlmo.released import model_path as model_path
    from vlmo.retrieval import Searcher as Searcher

__version__ = "0.1.0"

_import_name, __all__ = lazy_names(__name__)


def _register() -> None:
    from vlmo.integrations.auto import register

    register()


def _convert(path: Path, out: Path, **options: Any) -> None:
    """Convert a published file, in the name of `vlmo.released`, which the packages that convert import themselves."""
    from vlmo.checkpoints.importing import import_checkpoint
    from vlmo.tasks import usage_of

    import_checkpoint(path, out, usage_of=usage_of, **options)


register_converter(_convert)


def __getattr__(name: str) -> Any:
    if name in __all__:
        _register()
    return _import_name(name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


if "transformers" in sys.modules:
    _register()
