"""Registration of the models with transformers' Auto classes."""

import functools
from collections.abc import Callable
from typing import Any

from transformers.models.auto import configuration_auto, modeling_auto

from vlmo import model
from vlmo.released import taking_names

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


def _complete(load: Callable[..., Any]) -> Callable[..., Any]:
    """Return `from_pretrained` that loads no incomplete model for a pipeline: a head with initial weights answers too.

    Missing tensors are a LookupError; transformers would bury a ValueError under its own attempts to load.
    """

    @functools.wraps(load)
    def loaded(cls: Any, name: Any, *args: Any, **options: Any) -> Any:
        found = load(cls, name, *args, **options)
        if "_from_pipeline" not in options or not isinstance(found, model.VLMoPreTrainedModel):
            return found
        kind = type(found).__name__
        del found
        # Loaded again: classes of other libraries need not know how to report what was missing.
        found, report = load(cls, name, *args, **options, output_loading_info=True)
        if missing := sorted(key for key in report["missing_keys"] if not key.startswith("pooler.")):
            is_stage = kind in {"VLMoForMaskedLM", "VLMoForMaskedImageModeling"}
            data = " --data english-text" if kind == "VLMoForMaskedLM" else ""
            stage = f"train RECIPE --init {name}{data} (vlmo recipes)"
            command = stage if is_stage else f"finetune {name} --data DATA"
            raise LookupError(
                f"{name} lacks {len(missing)} tensors of {kind} ({missing[0]}, ...): it holds a model "
                f"for another purpose. Train one for this task from it first: vlmo {command}"
            )
        return found

    return loaded


def register() -> None:
    """Register configuration and models, so that `AutoModel.from_pretrained` takes a model folder or a name."""
    config = model.VLMoConfig
    configuration_auto.AutoConfig.register(config.model_type, config, exist_ok=True)
    for name, own in AUTO_CLASSES.items():
        auto: Any = getattr(modeling_auto, name)
        auto.register(config, own, exist_ok=True)
        auto.from_pretrained = classmethod(taking_names(_complete(auto.from_pretrained.__func__)))
    # The segmentation pipeline reads a copy of this table, which lacks registered classes, and logs an error for ours
    # although they work.
    names = modeling_auto.MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES
    names[config.model_type] = model.VLMoForSemanticSegmentation.__name__
