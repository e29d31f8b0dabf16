"""VLMo: vision-language pre-training with one backbone and an expert for each modality."""

from __future__ import annotations

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForMaskedImageModeling,
    AutoModelForMaskedLM,
    AutoModelForPreTraining,
    AutoModelForSemanticSegmentation,
    AutoModelForVisualQuestionAnswering,
    AutoModelForZeroShotImageClassification,
    AutoProcessor,
)

from vlmo.interop.pipelines import register as _register_pipelines
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

__version__ = "0.1.0"

__all__ = [
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

AutoConfig.register(VLMoConfig.model_type, VLMoConfig)
AutoModel.register(VLMoConfig, VLMoModel)
AutoModelForPreTraining.register(VLMoConfig, VLMoForPreTraining)
AutoModelForMaskedImageModeling.register(VLMoConfig, VLMoForMaskedImageModeling)
AutoModelForMaskedLM.register(VLMoConfig, VLMoForMaskedLM)
AutoModelForZeroShotImageClassification.register(VLMoConfig, VLMoForImageTextRetrieval)
AutoModelForVisualQuestionAnswering.register(VLMoConfig, VLMoForVisualQuestionAnswering)
AutoModelForImageClassification.register(VLMoConfig, VLMoForImageClassification)
AutoModelForSemanticSegmentation.register(VLMoConfig, VLMoForSemanticSegmentation)
AutoProcessor.register(VLMoConfig, VLMoProcessor)
_register_pipelines()
