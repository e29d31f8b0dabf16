"""One graph of a model as an ONNX file, in float32 and quantised."""

from __future__ import annotations

import logging
import re
import warnings
from pathlib import Path
from typing import Any

import onnxruntime.quantization
import torch
from torch import Tensor

from vlmo.export.graphs import Graph, GraphModule
from vlmo.model import VLMoConfig, VLMoPreTrainedModel

# The newest that torch 2.13 writes natively, with attention as one operator; ONNX Runtime reads it from 1.23 on.
OPSET = 23
# The one that opset 23 came with; torch writes the one before it.
IR_VERSION = 11
# Shorter than `[CLS]` and `[SEP]` is no text.
MIN_TEXT = 2

# protobuf holds less than 2 GiB; larger weights go to a file beside the graph.
_MAX_SINGLE_FILE = 1_500_000_000


def noise(graph: Graph, config: VLMoConfig, *, batch: int, length: int, seed: int) -> tuple[Tensor, ...]:
    """Noise in the range of prepared pictures, and random words; the last text is full, the others may be padded."""
    generator = torch.Generator().manual_seed(seed)
    images = (batch,) if graph.num_images == 1 else (batch, graph.num_images)
    shape = (*images, config.num_channels, config.image_size, config.image_size)
    lengths = torch.randint(MIN_TEXT, length + 1, (batch, 1), generator=generator)
    lengths[-1] = length
    mask = torch.arange(length) < lengths
    ids = torch.randint(config.vocab_size, (batch, length), generator=generator)
    made = {
        "pixel_values": 2 * torch.rand(shape, generator=generator) - 1,
        "input_ids": torch.where(mask, ids, config.pad_token_id or 0),
        "attention_mask": mask.long(),
        "bool_masked_pos": torch.rand(batch, config.grid[0] * config.grid[1], generator=generator) < 0.4,
    }
    return tuple(made[name] for name in graph.inputs)


def convert(model: VLMoPreTrainedModel, graph: Graph, file: Path) -> bool:
    """Writes one graph; whether its weights lie in a file of their own.

    Args:
        model: Prepared by `free_text_length`.

    Raises:
        ValueError: The graph cannot be exported as it is.
    """
    longest = model.config.max_text_positions
    axes = {"batch": torch.export.Dim("batch", min=1), "text": torch.export.Dim("text", min=MIN_TEXT, max=longest)}
    shapes = tuple({axis: axes[name] for axis, name in free.items()} for free in graph.dynamic_axes)
    # Sizes that stand for no other axis of the model by chance.
    example = noise(graph, model.config, batch=3, length=min(7, longest), seed=0)
    # strict: `len(tensor)` in the model stays a free size only there.
    program = torch.export.export(GraphModule(model, graph).eval(), example, dynamic_shapes=(shapes,), strict=True)
    with warnings.catch_warnings():
        # Between two parts of torch 2.13: its exporter copies what it has deprecated itself.
        warnings.filterwarnings("ignore", message=".*LeafSpec.* is deprecated", category=FutureWarning)
        exported = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=OPSET,
            input_names=list(graph.inputs),
            output_names=list(graph.outputs),
            verbose=False,
        )
    if exported is None:  # only where the older exporter writes a file itself
        raise TypeError("torch.onnx.export gave no program")
    if (opset := exported.model.opset_imports[""]) != OPSET:
        raise ValueError(
            f"torch {torch.__version__} writes ONNX opset {opset}; expected {OPSET}. Install a newer torch."
        )
    exported.model.ir_version = IR_VERSION
    _tidy(exported.model, graph)
    weights = [value.const_value for value in exported.model.graph.initializers.values()]
    large = sum(weight.nbytes for weight in weights if weight is not None) > _MAX_SINGLE_FILE
    exported.save(file, external_data=large)
    return large


def _tidy(model: Any, graph: Graph) -> None:
    """Gives free axes their names, and drops notes: those of the exporter hold paths of this machine."""
    names = {
        str(value.shape[axis].value): name
        for value, free in zip(model.graph.inputs, graph.dynamic_axes, strict=True)
        for axis, name in free.items()
    }
    nodes, weights = list(model.graph), list(model.graph.initializers.values())
    values = [*model.graph.inputs, *(value for node in nodes for value in node.outputs)]
    for part in (model, model.graph, *nodes, *weights, *values):
        part.metadata_props.clear()
    for weight in weights:
        # Says nothing new, and stays behind when ONNX Runtime (1.26, for one) turns a matrix around to quantise it.
        weight.shape = weight.type = None
    for value in values:
        for axis, size in enumerate(value.shape or ()):
            if not isinstance(size, int) and size.value is not None:
                value.shape[axis] = re.sub(r"\w+", lambda word: names.get(word[0], word[0]), size.value)


def quantise(source: Path, target: Path, *, large: bool) -> None:
    """Writes a graph whose linear layers multiply in int8, with scales of activations taken at run time."""
    # The library logs there itself: a line for each tensor, and the advice to optimise first, which its sessions do.
    root = logging.getLogger()
    root.addFilter(_is_error)
    try:
        onnxruntime.quantization.quantize_dynamic(
            source,
            target,
            op_types_to_quantize=["MatMul", "Gemm"],
            per_channel=True,
            weight_type=onnxruntime.quantization.QuantType.QInt8,
            # Seven bits of weight: with eight, sums saturate on x86 processors without VNNI.
            reduce_range=True,
            use_external_data_format=large,
        )
    finally:
        root.removeFilter(_is_error)


def _is_error(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR
