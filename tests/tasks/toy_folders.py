"""A model folder for each task, untrained."""

from pathlib import Path

from tests.tasks.toy_vision import NAMES, PIXELS
from tests.toy_model import toy
from tests.toy_questions import ANSWERS, processor

from vlmo.model import (
    VLMoForImageCaptioning,
    VLMoForImageClassification,
    VLMoForImageTextRetrieval,
    VLMoForMaskedLM,
    VLMoForPreTraining,
    VLMoForSemanticSegmentation,
    VLMoForVisualQuestionAnswering,
    VLMoForVisualReasoning,
)
from vlmo.processing import image_processor_for
from vlmo.tasks.labels import label_settings

TASKS = ("retrieval", "vqa", "nlvr2", "classification", "segmentation", "captioning")


def write_folders(root: Path) -> dict[str, Path]:
    """Folders by task; beside them `dual`, which embeds only, and `words` and `pretraining`, which are for no task."""
    words = processor()
    text = {"vocab_size": words.vocab_size}
    models = {
        "retrieval": toy(VLMoForImageTextRetrieval, **text),
        "dual": toy(VLMoForImageTextRetrieval, use_match_head=False, **text),
        "vqa": toy(VLMoForVisualQuestionAnswering, **text, **label_settings(ANSWERS)),
        "nlvr2": toy(
            VLMoForVisualReasoning,
            num_modality_types=3,
            **text,
            **label_settings(["false", "true"]),
        ),
        "classification": toy(VLMoForImageClassification, **label_settings(NAMES)),
        "segmentation": toy(
            VLMoForSemanticSegmentation, segmentation_channels=16, **label_settings(PIXELS)
        ),
        "captioning": toy(VLMoForImageCaptioning, **text),
        "words": toy(VLMoForMaskedLM, **text),
        "pretraining": toy(VLMoForPreTraining, **text),
    }
    for name, model in models.items():
        model.save_pretrained(root / name)
        images_only = name in {"classification", "segmentation"}
        (image_processor_for(64) if images_only else words).save_pretrained(root / name)
    return {name: root / name for name in models}
