"""VLMo: vision-language pre-training with one backbone and an expert for each modality."""

from __future__ import annotations

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedImageModeling,
    AutoModelForMaskedLM,
    AutoModelForPreTraining,
    AutoModelForZeroShotImageClassification,
    AutoProcessor,
)

from vlmo.model import (
    VLMoConfig,
    VLMoForImageTextRetrieval,
    VLMoForMaskedImageModeling,
    VLMoForMaskedLM,
    VLMoForPreTraining,
    VLMoModel,
)
from vlmo.processing import VLMoProcessor

__version__ = "0.1.0"

__all__ = [
    "VLMoConfig",
    "VLMoForImageTextRetrieval",
    "VLMoForMaskedImageModeling",
    "VLMoForMaskedLM",
    "VLMoForPreTraining",
    "VLMoModel",
    "VLMoProcessor",
]

AutoConfig.register(VLMoConfig.model_type, VLMoConfig)
AutoModel.register(VLMoConfig, VLMoModel)
AutoModelForPreTraining.register(VLMoConfig, VLMoForPreTraining)
AutoModelForMaskedImageModeling.register(VLMoConfig, VLMoForMaskedImageModeling)
AutoModelForMaskedLM.register(VLMoConfig, VLMoForMaskedLM)
AutoModelForZeroShotImageClassification.register(VLMoConfig, VLMoForImageTextRetrieval)
AutoProcessor.register(VLMoConfig, VLMoProcessor)
