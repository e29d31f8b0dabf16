"""Registration of models and processor with transformers."""

from __future__ import annotations

from transformers import AutoProcessor
from transformers.models.auto import modeling_auto

from vlmo import model
from vlmo.processing import VLMoProcessor

AUTO_CLASSES = {
    "AutoModel": model.VLMoModel,
    "AutoModelForPreTraining": model.VLMoForPreTraining,
    "AutoModelForMaskedImageModeling": model.VLMoForMaskedImageModeling,
    "AutoModelForMaskedLM": model.VLMoForMaskedLM,
    "AutoModelForZeroShotImageClassification": model.VLMoForImageTextRetrieval,
    "AutoModelForVisualQuestionAnswering": model.VLMoForVisualQuestionAnswering,
    "AutoModelForImageTextToText": model.VLMoForImageCaptioning,
    "AutoModelForImageClassification": model.VLMoForImageClassification,
    "AutoModelForSemanticSegmentation": model.VLMoForSemanticSegmentation,
}


def register() -> None:
    """Let Auto classes and `pipeline` of transformers load model folders."""
    config = model.VLMoConfig
    AutoProcessor.register(config, VLMoProcessor, exist_ok=True)
    for name, model_class in AUTO_CLASSES.items():
        getattr(modeling_auto, name).register(config, model_class, exist_ok=True)
    # The segmentation pipeline reads a copy of this table, which lacks registered classes, and logs
    # an error for ours although they work.
    names = modeling_auto.MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES
    names[config.model_type] = model.VLMoForSemanticSegmentation.__name__
