"""The Multiway Transformer: one backbone for images, texts and pairs."""

from vlmo.model.backbone import VLMoModel, VLMoModelOutput, VLMoPreTrainedModel, language_stage_parameters
from vlmo.model.config import VLMoConfig
from vlmo.model.tasks import (
    VLMoContrastOutput,
    VLMoForImageTextRetrieval,
    VLMoForMaskedImageModeling,
    VLMoForMaskedLM,
    VLMoForPreTraining,
)

__all__ = [
    "VLMoConfig",
    "VLMoContrastOutput",
    "VLMoForImageTextRetrieval",
    "VLMoForMaskedImageModeling",
    "VLMoForMaskedLM",
    "VLMoForPreTraining",
    "VLMoModel",
    "VLMoModelOutput",
    "VLMoPreTrainedModel",
    "language_stage_parameters",
]
