"""The model of a folder for one task, or one line that says why it is none."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

from vlmo.folder import architectures
from vlmo.model.backbone import VLMoPreTrainedModel
from vlmo.model.loading import loading
from vlmo.processing import VLMoProcessor
from vlmo.released import find_model
from vlmo.training import choose_device

Model = TypeVar("Model", bound=VLMoPreTrainedModel)


def load_task_model(
    folder: str | Path, model_class: type[Model], *, task: str, recipe: str, device: str | None = None
) -> Model:
    """The model, in evaluation mode, on its device.

    Args:
        model_class: What the task needs.
        task: Name of the task, for errors.
        recipe: A recipe that trains for the task, for errors.
        device: "cpu", "cuda" or "cuda:1"; None takes a GPU if there is one.

    Raises:
        ValueError: It is no model folder, or one for another task.
    """
    folder = Path(find_model(folder))
    wanted = model_class.__name__
    kinds = architectures(folder)
    if wanted not in kinds:
        raise ValueError(
            f"{folder} holds {', '.join(kinds) or 'no named class'}; the task {task} needs {wanted}. Train one from "
            f"it: vlmo train {recipe} --init {folder}"
        )
    with loading(folder):
        loaded: Any = model_class.from_pretrained(folder, output_loading_info=True)
    model, report = loaded
    if missing := sorted(report["missing_keys"]):
        raise ValueError(
            f"{folder} lacks {len(missing)} tensors of {wanted} ({', '.join(missing[:3])}, ...): write it anew with "
            "save_pretrained"
        )
    return model.to(choose_device(device)).eval()


def load_processor(folder: str | Path) -> VLMoProcessor:
    """The processor of a model folder.

    Raises:
        ValueError: Its files are missing or damaged.
    """
    folder = find_model(folder)
    with loading(folder):
        return VLMoProcessor.from_pretrained(folder)
