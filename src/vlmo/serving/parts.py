"""Models and index that a service is made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from vlmo.retrieval import Encoder, Index, Searcher
from vlmo.retrieval.graphs_engine import EngineName, Precision
from vlmo.tasks import VQATask, task_of


class Answerer:
    """A model folder that answers questions about images; ValueError if it holds no whole model for this."""

    def __init__(self, folder: str | Path, *, device: str | None = None) -> None:
        self.folder = Path(folder)
        loaded: Any = VQATask.load(folder, device=device)
        self._model, self._processor = loaded
        self.names: dict[int, str] = self._model.config.id2label

    def pixels(self, image: Image.Image) -> Float[Tensor, "3 height width"]:
        """An image as a question has it; from any thread."""
        return self._processor(images=image, return_tensors="pt")["pixel_values"][0]

    @torch.inference_mode()
    def scores(
        self, questions: Sequence[tuple[Float[Tensor, "3 height width"], str]]
    ) -> Float[Tensor, "question answer"]:
        """Score of each answer in `names` (sigmoid of its logit) to questions about images from `pixels`."""
        pixels, texts = zip(*questions, strict=True)
        inputs = self._processor(text=list(texts), return_tensors="pt")
        inputs["pixel_values"] = torch.stack(pixels)
        return self._model(**inputs.to(self._model.device, self._model.dtype)).logits.float().sigmoid().cpu()


@dataclass(frozen=True)
class Parts:
    """Models and index of a service; requests that need a missing one fail with a reason."""

    encoder: Encoder | None = None
    index: Index | None = None
    answerer: Answerer | None = None


def load_parts(
    folder: str | Path,
    *,
    index: str | Path | None = None,
    vqa: str | Path | None = None,
    engine: EngineName | None = None,
    precision: Precision = "float32",
    device: str | None = None,
) -> Parts:
    """Load models and index; `folder` may hold a model for retrieval, or one for questions, which runs in PyTorch.

    Raises:
        ValueError: A folder is of another kind, or model and index do not belong together.
    """
    if task_of(folder) is VQATask:
        if index is not None or vqa is not None or engine not in {None, "torch"}:
            raise ValueError(f"{folder} answers questions and searches nothing; give it alone, or as --vqa")
        return Parts(answerer=Answerer(folder, device=device))
    opened = None if index is None else Index(index, in_memory=True)
    encoder = Encoder(folder, engine=engine, precision=precision, device=device)
    if opened is not None:
        Searcher(encoder, opened)  # checks that they belong together
    return Parts(encoder, opened, None if vqa is None else Answerer(vqa, device=device))
