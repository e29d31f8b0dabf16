"""Exported folders as models that `evaluate_retrieval` takes."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from vlmo.export.sessions import FUSION_ENCODER, IMAGE_ENCODER, TEXT_ENCODER, RetrievalGraphs
from vlmo.model import VLMoConfig


class OnnxRetrievalModel(nn.Module):
    """Dual and fusion encoder of a folder, with the methods of `VLMoForImageTextRetrieval` that evaluation calls.

    Args:
        folder: Written by `write_onnx`, or its graphs.
        config: Of the model, for what reads its settings.
        options: Those of `RetrievalGraphs`; by default it takes as many threads as PyTorch.

    Raises:
        ValueError: The folder holds no dual encoder, or no quantised files.
    """

    device = torch.device("cpu")

    def __init__(
        self, folder: str | Path | RetrievalGraphs, *, config: VLMoConfig | None = None, **options: Any
    ) -> None:
        super().__init__()
        if not isinstance(folder, RetrievalGraphs):
            folder = RetrievalGraphs(folder, **dict[str, Any](num_threads=torch.get_num_threads()) | options)
        self.graphs, self.config = folder, config
        self.match_head = True if folder.can_match else None
        logit_scale = torch.tensor([self.graphs.description["logit_scale"]])
        self.contrast_head = SimpleNamespace(logit_scale=logit_scale)

    def get_image_features(self, pixel_values: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch dim"]:
        """Return L2-normalised image vectors."""
        return torch.from_numpy(self.graphs.run(IMAGE_ENCODER, pixel_values))

    def get_text_features(
        self, input_ids: Int[Tensor, "batch text"], attention_mask: Int[Tensor, "batch text"]
    ) -> Float[Tensor, "batch dim"]:
        """Return L2-normalised text vectors."""
        return torch.from_numpy(self.graphs.run(TEXT_ENCODER, input_ids, attention_mask))

    def match(
        self,
        pixel_values: Float[Tensor, "batch 3 height width"],
        input_ids: Int[Tensor, "batch text"],
        attention_mask: Int[Tensor, "batch text"],
    ) -> Float[Tensor, "batch 2"]:
        """Return matching logits, class 1 = match; ValueError if there is no fusion encoder."""
        return torch.from_numpy(self.graphs.run(FUSION_ENCODER, pixel_values, input_ids, attention_mask))
