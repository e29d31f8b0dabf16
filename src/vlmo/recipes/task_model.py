"""The model of a folder for one task, or one line that says why it is none."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from vlmo.checkpoints.loading import load_model, load_processor
from vlmo.model.backbone import VLMoPreTrainedModel

__all__ = ["load_processor", "load_task_model"]

Model = TypeVar("Model", bound=VLMoPreTrainedModel)


def load_task_model(
    folder: str | Path, model_class: type[Model], *, task: str, recipe: str, device: str | None = None
) -> Model:
    """`load_model`, with an error that names the task and a recipe that trains for it."""
    hint = f"The task {task} needs it; train one: vlmo train {recipe} --init {folder}"
    return load_model(folder, model_class, device=device, hint=hint)
