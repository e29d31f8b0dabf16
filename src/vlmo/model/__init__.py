"""The Multiway Transformer: one backbone for images, texts and pairs."""

from vlmo.model.backbone import VLMoModel, VLMoModelOutput, VLMoPreTrainedModel
from vlmo.model.config import VLMoConfig
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
    "language_stage_parameters",
]
