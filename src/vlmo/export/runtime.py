"""Exported folders in ONNX Runtime."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from vlmo.export.graphs import FUSION_ENCODER, IMAGE_ENCODER, TEXT_ENCODER

DESCRIPTION = "onnx.json"


class OnnxSession:
    """A graph in ONNX Runtime on the CPU, with tensors in and out.

    Args:
        num_threads: Of one operation; by default as many as PyTorch uses.
    """

    def __init__(self, file: str | Path, *, num_threads: int | None = None) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = num_threads or torch.get_num_threads()
        self.session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        self.inputs, self.outputs = (
            {tensor.name: {"type": tensor.type, "shape": list(tensor.shape)} for tensor in tensors}
            for tensors in (self.session.get_inputs(), self.session.get_outputs())
        )

    def __call__(self, *tensors: Tensor) -> list[Tensor]:
        """Return the outputs for inputs in the order of the graph."""
        given = {name: tensor.numpy() for name, tensor in zip(self.inputs, tensors, strict=True)}
        return [torch.from_numpy(np.asarray(output)) for output in self.session.run(None, given)]


class OnnxRetrievalModel(nn.Module):
    """Dual encoder and, if it was exported, fusion encoder of a folder.

    It has the methods of `VLMoForImageTextRetrieval` that `evaluate_retrieval` calls, which takes it as a model.

    Args:
        folder: Written by `write_onnx`.
        int8: Run the quantised files.

    Raises:
        ValueError: The folder holds no dual encoder, or no quantised files.
    """

    device = torch.device("cpu")

    def __init__(self, folder: str | Path, *, int8: bool = False, num_threads: int | None = None) -> None:
        super().__init__()
        folder = Path(folder)
        description = read_description(folder)
        graphs = description["graphs"]
        if description["logit_scale"] is None:
            raise ValueError(f"{folder} holds a {description['model_class']}, which does not search.")
        variant = "int8" if int8 else "float32"
        if any(graph[variant] is None for graph in graphs.values()):
            raise ValueError(f"{folder} holds no int8 files; export it again with int8.")
        self.sessions = {
            name: OnnxSession(folder / graph[variant]["file"], num_threads=num_threads)
            for name, graph in graphs.items()
        }
        self.contrast_head = SimpleNamespace(logit_scale=torch.tensor([description["logit_scale"]]))

    def get_image_features(self, pixel_values: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch dim"]:
        """Return L2-normalised image vectors."""
        return self.sessions[IMAGE_ENCODER](pixel_values)[0]

    def get_text_features(
        self, input_ids: Int[Tensor, "batch text"], attention_mask: Int[Tensor, "batch text"]
    ) -> Float[Tensor, "batch dim"]:
        """Return L2-normalised text vectors."""
        return self.sessions[TEXT_ENCODER](input_ids, attention_mask)[0]

    def match(
        self,
        pixel_values: Float[Tensor, "batch 3 height width"],
        input_ids: Int[Tensor, "batch text"],
        attention_mask: Int[Tensor, "batch text"],
    ) -> Float[Tensor, "batch 2"]:
        """Return matching logits, class 1 = match; ValueError if there is no fusion encoder."""
        if FUSION_ENCODER not in self.sessions:
            raise ValueError("This folder holds no fusion encoder: its model has no matching head.")
        return self.sessions[FUSION_ENCODER](pixel_values, input_ids, attention_mask)[0]


def read_description(folder: Path) -> dict[str, Any]:
    """Return the description that `write_onnx` keeps in a folder; ValueError if there is none."""
    file = folder / DESCRIPTION
    if not file.is_file():
        raise ValueError(f"{folder} is no ONNX export: it has no {DESCRIPTION}; write one with vlmo export.")
    return json.loads(file.read_text(encoding="utf-8"))
