"""The Multiway Transformer: one backbone for images, texts and pairs."""

from typing import TYPE_CHECKING

from vlmo.lazy import lazy_names

if TYPE_CHECKING:
    from vlmo.model.backbone import VLMoModel, VLMoModelOutput, VLMoPreTrainedModel
    from vlmo.model.config import VLMoConfig, VQVisualTokenizerConfig
    from vlmo.model.downstream import (
        VLMoForImageClassification,
        VLMoForSemanticSegmentation,
        VLMoForVisualQuestionAnswering,
        VLMoForVisualReasoning,
    )
    from vlmo.model.inference import DualEncoderForInference
    from vlmo.model.stages import language_stage_parameters
    from vlmo.model.tasks import (
        VLMoContrastOutput,
        VLMoForImageTextRetrieval,
        VLMoForMaskedImageModeling,
        VLMoForMaskedLM,
        VLMoForPreTraining,
    )
    from vlmo.model.visual_tokenizer import VQVisualTokenizer

__all__ = [
    "DualEncoderForInference",
    "VLMoConfig",
    "VLMoContrastOutput",
    "VLMoForImageClassification",
    "VLMoForImageTextRetrieval",
    "VLMoForMaskedImageModeling",
    "VLMoForMaskedLM",
    "VLMoForPreTraining",
    "VLMoForSemanticSegmentation",
    "VLMoForVisualQuestionAnswering",
    "VLMoForVisualReasoning",
    "VLMoModel",
    "VLMoModelOutput",
    "VLMoPreTrainedModel",
    "VQVisualTokenizer",
    "VQVisualTokenizerConfig",
    "language_stage_parameters",
]

__getattr__ = lazy_names(
    __name__,
    {
        ".backbone": "VLMoModel VLMoModelOutput VLMoPreTrainedModel",
        ".config": "VLMoConfig VQVisualTokenizerConfig",
        ".downstream": "VLMoForImageClassification VLMoForSemanticSegmentation VLMoForVisualQuestionAnswering "
        "VLMoForVisualReasoning",
        ".inference": "DualEncoderForInference",
        ".stages": "language_stage_parameters",
        ".tasks": "VLMoContrastOutput VLMoForImageTextRetrieval VLMoForMaskedImageModeling VLMoForMaskedLM "
        "VLMoForPreTraining",
        ".visual_tokenizer": "VQVisualTokenizer",
    },
)
