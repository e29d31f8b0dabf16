"""Registration of models, processor and pipelines with transformers."""

from __future__ import annotations

from transformers import (
    AutoModelForImageTextToText,
    AutoModelForVisualQuestionAnswering,
    AutoModelForZeroShotImageClassification,
    AutoProcessor,
    pipelines,
)
from transformers.models.auto import modeling_auto

from vlmo import model
from vlmo.integrations.pipelines import (
    ImageTextMatchingPipeline,
    ImageToTextPipeline,
    VisualQuestionAnsweringPipeline,
)
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
PIPELINES = {
    "visual-question-answering": (
        VisualQuestionAnsweringPipeline,
        AutoModelForVisualQuestionAnswering,
    ),
    "image-text-matching": (ImageTextMatchingPipeline, AutoModelForZeroShotImageClassification),
    "image-text-to-text": (ImageToTextPipeline, AutoModelForImageTextToText),
}


def register() -> None:
    """Let Auto classes and `pipeline` of transformers load model folders; add pipelines."""
    config = model.VLMoConfig
    AutoProcessor.register(config, VLMoProcessor, exist_ok=True)
    for name, model_class in AUTO_CLASSES.items():
        getattr(modeling_auto, name).register(config, model_class, exist_ok=True)
    # The segmentation pipeline reads a copy of this table, which lacks registered classes, and logs
    # an error for ours although they work.
    names = modeling_auto.MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES
    names[config.model_type] = model.VLMoForSemanticSegmentation.__name__
    # transformers 5 has dropped a pipeline of this name, and refuses the name before it looks for a
    # registered one.
    vars(pipelines).get("REMOVED_TASKS", {}).pop("visual-question-answering", None)
    # Not by `register_pipeline`: it makes `Pipeline.save_pretrained` copy this package's file into
    # the folder, which then asks for `trust_remote_code`.
    for task, (pipeline, auto_class) in PIPELINES.items():
        # A default model that the library has for the task stays.
        entry = pipelines.PIPELINE_REGISTRY.supported_tasks.setdefault(task, {})
        entry |= {"impl": pipeline, "pt": (auto_class,), "type": "multimodal"}
