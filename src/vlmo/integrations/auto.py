"""Registration of the models with transformers' Auto classes."""

from transformers.models.auto import configuration_auto, modeling_auto

from vlmo import model

AUTO_CLASSES = {
    "AutoModel": model.VLMoModel,
    "AutoModelForPreTraining": model.VLMoForPreTraining,
    "AutoModelForMaskedImageModeling": model.VLMoForMaskedImageModeling,
    "AutoModelForMaskedLM": model.VLMoForMaskedLM,
    "AutoModelForZeroShotImageClassification": model.VLMoForImageTextRetrieval,
    "AutoModelForVisualQuestionAnswering": model.VLMoForVisualQuestionAnswering,
    "AutoModelForImageClassification": model.VLMoForImageClassification,
    "AutoModelForSemanticSegmentation": model.VLMoForSemanticSegmentation,
}


def register() -> None:
    """Register configuration and models, so that `AutoModel.from_pretrained` takes a model folder."""
    config = model.VLMoConfig
    configuration_auto.AutoConfig.register(config.model_type, config, exist_ok=True)
    for name, own in AUTO_CLASSES.items():
        getattr(modeling_auto, name).register(config, own, exist_ok=True)
    # The segmentation pipeline reads a copy of this table, which lacks registered classes, and logs an error for ours
    # although they work.
    names = modeling_auto.MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES
    names[config.model_type] = model.VLMoForSemanticSegmentation.__name__
