"""Answers to questions about pictures, many at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from vlmo.checkpoints.loading import load_model, load_processor
from vlmo.folder import architectures
from vlmo.model import VLMoForVisualQuestionAnswering


@dataclass(frozen=True)
class Question:
    """About a picture, which `Answerer.pixels` has made ready."""

    pixels: Float[Tensor, "3 height width"]
    text: str
    top: int


class Answerer:
    """A model folder that answers, made ready.

    Args:
        folder: Of a `VLMoForVisualQuestionAnswering`.
        device: cpu, cuda or cuda:N; by default a GPU if there is one.

    Raises:
        ValueError: It holds no such model, or a damaged one.
    """

    def __init__(self, folder: str | Path, *, device: str | None = None) -> None:
        hint = "It answers no questions; VQA training leaves a model that does."
        self._model: Any = load_model(folder, VLMoForVisualQuestionAnswering, device=device, hint=hint)
        self._processor: Any = load_processor(folder)

    def pixels(self, picture: Image.Image) -> Float[Tensor, "3 height width"]:
        """A picture as a question holds it; from any thread."""
        return self._processor(images=picture, return_tensors="pt")["pixel_values"][0]

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


def answers_questions(folder: str | Path) -> bool:
    """Whether the folder's model is one for questions about pictures.

    Raises:
        ValueError: It is no model folder.
    """
    return VLMoForVisualQuestionAnswering.__name__ in architectures(folder)
