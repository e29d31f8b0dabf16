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
from vlmo.retrieval.engines import EngineChoice, Precision
from vlmo.tasks import VQATask, task_of


@dataclass(frozen=True)
class Question:
    """A question about an image from `Answerer.pixels`."""

    pixels: Float[Tensor, "3 height width"]
    text: str
    top: int


class Answerer:
    """A model folder that answers questions about images; ValueError if it holds no whole model for this."""

    def __init__(self, folder: str | Path, *, device: str | None = None) -> None:
        self.folder = Path(folder)
        loaded: Any = VQATask.load(folder, device=device)
        self._model, self._processor = loaded

    def pixels(self, image: Image.Image) -> Float[Tensor, "3 height width"]:
        """An image as a question holds it; from any thread."""
        return self._processor(images=image, return_tensors="pt")["pixel_values"][0]

    def __call__(self, questions: Sequence[Question]) -> list[list[tuple[str, float]]]:
        """For each question its best answers with their scores (sigmoids of logits)."""
        inputs = self._processor(text=[question.text for question in questions], return_tensors="pt")
        inputs["pixel_values"] = torch.stack([question.pixels for question in questions])
        with torch.inference_mode():
            logits = self._model(**inputs.to(self._model.device, self._model.dtype)).logits
        names = self._model.config.id2label
        answers = []
        for question, scores in zip(questions, logits.float().sigmoid().cpu(), strict=True):
            best = scores.topk(min(question.top, len(scores)))
            pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
            answers.append([(names[number], score) for number, score in pairs])
        return answers


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
    engine: EngineChoice = "torch",
    precision: Precision = "float32",
    device: str | None = None,
) -> Parts:
    """Load models and index; `folder` may hold a model for retrieval, or one for questions, which runs in PyTorch.

    Raises:
        ValueError: A folder is of another kind, or model and index do not belong together.
    """
    if task_of(folder) is VQATask:
        if index is not None or vqa is not None:
            raise ValueError(
                f"{folder} answers questions and searches nothing; give it with --vqa, after another model"
            )
        if engine not in {"auto", "torch"}:
            raise ValueError(f"{folder} answers questions, and engine {engine} is for models that retrieve; use torch")
        return Parts(answerer=Answerer(folder, device=device))
    opened = None if index is None else Index(index, in_memory=True)
    dim = None if opened is None else opened.dim
    encoder = Encoder(folder, dim=dim, engine=engine, precision=precision, device=device)
    if opened is not None:
        Searcher(encoder, opened)  # checks that they belong together
    return Parts(encoder, opened, None if vqa is None else Answerer(vqa, device=device))
