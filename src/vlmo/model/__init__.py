"""The Multiway Transformer: one backbone for images, texts and pairs."""

from typing import TYPE_CHECKING

from vlmo.lazy import lazy_names

if TYPE_CHECKING:
    from vlmo.model.backbone import VLMoModel, VLMoPreTrainedModel
    from vlmo.model.config import VLMoConfig, VQVisualTokenizerConfig
    from vlmo.model.downstream import (
        VLMoForImageClassification,
        VLMoForSemanticSegmentation,
        VLMoForVisualQuestionAnswering,
        VLMoForVisualReasoning,
    )
    from vlmo.model.pretraining import (
        VLMoForImageCaptioning,
        VLMoForImageTextRetrieval,
        VLMoForMaskedDataModeling,
        VLMoForMaskedImageModeling,
        VLMoForMaskedLM,
        VLMoForPreTraining,
    )
    from vlmo.model.stages import language_stage_parameters
    from vlmo.model.visual_tokenizer import VQKDVisualTokenizer, VQVisualTokenizer

__all__ = [
    "VLMoConfig",
    "VLMoForImageCaptioning",
    "VLMoForImageClassification",
    "VLMoForImageTextRetrieval",
    "VLMoForMaskedDataModeling",
    "VLMoForMaskedImageModeling",
    "VLMoForMaskedLM",
    "VLMoForPreTraining",
    "VLMoForSemanticSegmentation",
    "VLMoForVisualQuestionAnswering",
    "VLMoForVisualReasoning",
    "VLMoModel",
    "VLMoPreTrainedModel",
    "VQKDVisualTokenizer",
    "VQVisualTokenizer",
    "VQVisualTokenizerConfig",
    "language_stage_parameters",
]

__getattr__ = lazy_names(
    __name__,
    {
        ".backbone": "VLMoModel VLMoPreTrainedModel",
        ".config": "VLMoConfig VQVisualTokenizerConfig",
        ".downstream": "VLMoForImageClassification VLMoForSemanticSegmentation VLMoForVisualQuestionAnswering "
        "VLMoForVisualReasoning",
        ".stages": "language_stage_parameters",
        ".pretraining": "VLMoForImageCaptioning VLMoForImageTextRetrieval VLMoForMaskedDataModeling "
        "VLMoForMaskedImageModeling VLMoForMaskedLM VLMoForPreTraining",
        ".visual_tokenizer": "VQKDVisualTokenizer VQVisualTokenizer",
    },
)
