"""Models and index that a service is made of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from vlmo.processing.transforms import by_shape
from vlmo.retrieval import Encoder, Index, Searcher
from vlmo.retrieval.graphs_engine import EngineName, Precision
from vlmo.tasks import CaptioningTask, Task, VQATask, task_of


class ImageModel:
    """A model folder of a task that reads one image at a time; ValueError if it holds no whole model for it."""

    def __init__(self, task: type[Task], folder: str | Path, *, device: str | None = None) -> None:
        self.folder = Path(folder)
        loaded: Any = task.load(folder, device=device)
        self.model, self.processor = loaded

    def pixels(self, image: Image.Image) -> Float[Tensor, "3 height width"]:
        """An image as the model has it; from any thread."""
        return self.processor(images=image, return_tensors="pt")["pixel_values"][0]


@torch.inference_mode()
def answer_scores(
    answerer: ImageModel, questions: Sequence[tuple[Float[Tensor, "3 height width"], str]]
) -> Float[Tensor, "question answer"]:
    """Score of each answer of a model (sigmoid of its logit) to questions about images from `pixels`."""

    def of_one_shape(part: list[tuple[Tensor, str]]) -> Tensor:
        pixels, texts = zip(*part, strict=True)
        inputs = answerer.processor(text=list(texts), return_tensors="pt")
        inputs["pixel_values"] = torch.stack(pixels)
        return (
            answerer.model(**inputs.to(answerer.model.device, answerer.model.dtype))
            .logits.float()
            .sigmoid()
            .cpu()
        )

    return torch.stack(by_shape(questions, of_one_shape, shape=lambda question: question[0].shape))


@dataclass(frozen=True)
class Parts:
    """Models and index of a service; requests that need a missing one fail with a reason.

    Attributes:
        is_behind: Asked whether the last update of the index has failed, so that new images may be missing.
    """

    encoder: Encoder | None = None
    index: Index | None = None
    answerer: ImageModel | None = None
    captioner: ImageModel | None = None
    is_behind: Callable[[], bool] = lambda: False


def load_parts(
    folder: str | Path,
    *,
    index: str | Path | None = None,
    vqa: str | Path | None = None,
    captioning: str | Path | None = None,
    engine: EngineName | None = None,
    precision: Precision = "float32",
    device: str | None = None,
) -> Parts:
    """Load models and index; `folder` may hold a model for retrieval, or one for `vqa` or `captioning`, in PyTorch.

    Raises:
        ValueError: A folder is of another kind, or model and index do not belong together.
    """
    opened = encoder = None
    if (task := task_of(folder)) in {VQATask, CaptioningTask}:
        if not (index is None and vqa is None and captioning is None and engine in {None, "torch"}):
            raise ValueError(
                f"{folder} is for {task.name} and searches nothing; give it alone, or as --{task.name}"
            )
        vqa, captioning = (folder, None) if task is VQATask else (None, folder)
    else:
        opened = None if index is None else Index(index, in_memory=True)
        encoder = Encoder(folder, engine=engine, precision=precision, device=device)
        if opened is not None:
            Searcher(encoder, opened)  # checks that they belong together
    answerer = None if vqa is None else ImageModel(VQATask, vqa, device=device)
    captioner = (
        None if captioning is None else ImageModel(CaptioningTask, captioning, device=device)
    )
    return Parts(encoder, opened, answerer, captioner)
