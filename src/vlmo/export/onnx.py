"""Export of a model folder to ONNX: a graph for each encoder, compared with PyTorch before anything is kept."""

from __future__ import annotations

import json
import logging
import shutil
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vlmo import model as models
from vlmo.checkpoints.loading import load_model, load_processor
from vlmo.export.graphs import IDS, MASK, PIXELS, Graph, GraphModule, free_text_length, graphs_of
from vlmo.export.sessions import DESCRIPTION, INT8_OPERATORS, Description, OnnxSession
from vlmo.folder import check_processor, file_in
from vlmo.folder.atomic import write_folder
from vlmo.lazy import need_package

# Largest difference to PyTorch in float32; measured ones are around 1e-6.
TOLERANCE = 1e-4
FORMAT = 1
# The newest that torch 2.13 writes natively, with attention as one operator; ONNX Runtime reads it from 1.23 on.
OPSET = 23
# The one that opset 23 came with; torch writes the one before it.
IR_VERSION = 11

_WORD_EMBEDDINGS = "text_embeddings.words.weight"
_MIN_TEXT = 2  # `[CLS]` and `[SEP]`
# Batch and text length of each comparison; the longest text is added.
_CASES = ((1, 2), (2, 8), (3, 13))
Samples = Mapping[str, np.ndarray]
"""Inputs by their names, a row for each sample."""
# Inputs, and PyTorch's outputs.
_Case = tuple[tuple[Tensor, ...], tuple[Tensor, ...]]
# protobuf holds less than 2 GiB; larger weights go to a file beside the graph.
_MAX_SINGLE_FILE = 1_500_000_000
_PROCESSOR_FILES = (
    *(
        "preprocessor_config.json",
        "processor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ),
    *("special_tokens_map.json", "added_tokens.json", "vocab.txt"),
)
_CLASSIFIERS = (
    models.VLMoForImageClassification,
    models.VLMoForSemanticSegmentation,
    models.VLMoForVisualQuestionAnswering,
    models.VLMoForVisualReasoning,
)
# Preparation of pixels; `load_model` refuses folders with another one.
_PIXELS = {
    "resample": "bicubic",
    "transparency": "on white",
    "rescale": 1 / 255,
    "mean": [0.5] * 3,
    "std": [0.5] * 3,
}


def write_onnx(
    folder: str | Path,
    out: str | Path,
    *,
    samples: Samples | None = None,
    report: Callable[[str, int, int], None] = lambda *_: None,
) -> Description:
    """Write the encoders of a model folder as ONNX graphs, with the processor's files and a description.

    Batch and text length are free, up to `max_text_positions`; the image size is the configured
    one. Every graph is run in ONNX Runtime on several batches and lengths, with padding.

    Args:
        folder: Model folder of a class that `graphs_of` knows.
        out: New folder, or one of an earlier export, which is replaced.
        samples: Inputs of the model by name, a row for each sample. With them, variants are written
            too whose linear layers are quantized to int8; the scales of activations are taken from
            the samples.
        report: Called before each graph, with a title, the number of graphs that are done, and that
            of all.

    Returns:
        The description, as `onnx.json` holds it. Its "graphs" have, by name, "inputs" and "outputs"
        (types and shapes as ONNX Runtime gives them), and "float32" and "int8" (None without
        samples): "file", "num_bytes" with weights, which of large models lie in a second file with
        `.data` behind its name, and "largest_difference" of any output value to PyTorch's, relative
        to the largest value of its tensor where that is above 1, as that of logits may be.

    Raises:
        ValueError: `folder` cannot be exported, `out` holds something else, or a graph differs from
            PyTorch by more than `TOLERANCE`. Nothing is kept then.
        ModuleNotFoundError: A package of the extra `onnx` is missing.
    """
    folder = Path(folder)
    out = Path(out)
    need_package("onnxscript", extra="onnx", user="ONNX")
    if out.exists() and not (out / DESCRIPTION).is_file():
        raise ValueError(f"{out} exists and is no ONNX export; give a new folder.")
    model = load_for_export(folder)
    graphs = graphs_of(model)
    # Before the model is changed for the exporter, so that the comparison sees that change too.
    cases = {graph.name: _cases(model, graph) for graph in graphs}
    free_text_length(model)
    with write_folder(out) as partial:
        written = {}
        for done, graph in enumerate(graphs):
            report(f"exporting {graph.name}", done, len(graphs))
            written[graph.name] = _write_graph(
                model, graph, cases[graph.name], folder=partial, samples=samples
            )
        for name in _PROCESSOR_FILES:
            if (folder / name).is_file():
                shutil.copy2(file_in(folder, name), partial / name)
        description = _describe(model, folder) | {"graphs": written}
        (partial / DESCRIPTION).write_text(
            json.dumps(description, indent=2) + "\n", encoding="utf-8"
        )
    return description


def load_for_export(folder: str | Path) -> models.VLMoPreTrainedModel:
    """Load the model of a folder in float32, without gradients and with one attention operator a layer.

    ValueError if its processor gives other images than squares of the model's size.
    """
    model = load_model(folder, dtype=torch.float32)
    check_processor(folder, image_size=model.config.image_size)
    # `eager` would spread attention over several operators.
    model.set_attn_implementation("sdpa")
    return model.requires_grad_(requires_grad=False)


@torch.inference_mode()
def _cases(model: models.VLMoPreTrainedModel, graph: Graph) -> list[_Case]:
    longest = model.config.max_text_positions
    sizes = [*_CASES, (1, longest)] if graph.reads_text else _CASES
    module = GraphModule(model, graph)
    cases = []
    for seed, (batch, length) in enumerate(sizes):
        inputs = noise(graph, model.config, batch=batch, length=min(length, longest), seed=seed)
        cases.append((inputs, module(*inputs)))
    return cases


def noise(
    graph: Graph, config: models.VLMoConfig, *, batch: int, length: int, seed: int
) -> tuple[Tensor, ...]:
    """Sample noise as `pixel_values` and random words; the last text is full, the others may be padded."""
    generator = torch.Generator().manual_seed(seed)
    images = (batch,) if graph.num_images == 1 else (batch, graph.num_images)
    shape = (*images, config.num_channels, config.image_size, config.image_size)
    lengths = torch.randint(_MIN_TEXT, length + 1, (batch, 1), generator=generator)
    # The longest text sets the width: padding alone would be no case.
    lengths[-1] = length
    mask = torch.arange(length) < lengths
    ids = torch.randint(config.vocab_size, (batch, length), generator=generator)
    inputs = {
        PIXELS: 2 * torch.rand(shape, generator=generator) - 1,
        IDS: torch.where(mask, ids, config.pad_token_id or 0),
        MASK: mask.long(),
    }
    return tuple(inputs[name] for name in graph.inputs)


def _write_graph(
    model: models.VLMoPreTrainedModel,
    graph: Graph,
    cases: Sequence[_Case],
    *,
    folder: Path,
    samples: Samples | None,
) -> Description:
    file = folder / f"{graph.name}.onnx"
    large = _convert(model, graph, file)
    session = OnnxSession(file)
    float32 = _compared(file, cases)
    difference = float32["largest_difference"]
    # NaN is not below either.
    if not difference <= TOLERANCE:
        raise ValueError(
            f"{file.name} differs from PyTorch by {difference:.1e}, more than {TOLERANCE:.0e}; check weights and "
            "versions of torch, onnxscript and onnxruntime."
        )
    int8 = None
    if samples is not None:
        int8_file = file.with_suffix(".int8.onnx")
        _quantize(file, int8_file, large=large, rows=_rows(graph, samples))
        int8 = _compared(int8_file, cases)
    return {"inputs": session.inputs, "outputs": session.outputs, "float32": float32, "int8": int8}


def _compared(file: Path, cases: Sequence[_Case]) -> Description:
    session = OnnxSession(file)
    differences = []
    for inputs, outputs in cases:
        for actual, expected in zip(session(*inputs), outputs, strict=True):
            # Logits may be large: there the difference is relative.
            scale = expected.abs().max().clamp(min=1)
            differences.append((torch.from_numpy(actual) - expected).abs().max() / scale)
    num_bytes = sum(part.stat().st_size for part in file.parent.glob(f"{file.name}*"))
    largest = float(torch.stack(differences).max())
    return {"file": file.name, "num_bytes": num_bytes, "largest_difference": largest}


def _convert(model: models.VLMoPreTrainedModel, graph: Graph, file: Path) -> bool:
    """Write one graph of a model prepared by `free_text_length`; return True if its weights lie in a second file."""
    # This imports `onnxscript`, which takes a second.
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass

    longest = model.config.max_text_positions
    batch = torch.export.Dim("batch", min=1)
    text = torch.export.Dim("text", min=_MIN_TEXT, max=longest)
    # Axes whose size is free, by input.
    shapes = [{0: batch} if name == PIXELS else {0: batch, 1: text} for name in graph.inputs]
    # Sizes that stand for no other axis of the model by chance.
    example = noise(graph, model.config, batch=3, length=min(7, longest), seed=0)
    with warnings.catch_warnings():
        # Between two parts of torch 2.13: its exporter copies what it has deprecated itself.
        warnings.filterwarnings(
            "ignore", message=".*LeafSpec.* is deprecated", category=FutureWarning
        )
        # The batch of each input is one axis, named once.
        warnings.filterwarnings("ignore", message="# The axis name: (batch|text) will not be used")
        # The model must ask for `tensor.shape[0]`, as `len(tensor)` would fix the batch.
        exported = torch.onnx.export(
            GraphModule(model, graph).eval(),
            example,
            dynamo=True,
            dynamic_shapes=(tuple(shapes),),
            opset_version=OPSET,
            input_names=list(graph.inputs),
            output_names=list(graph.outputs),
            verbose=False,
        )
    # The exporter gives none only where the older one writes a file itself.
    if exported is None:
        raise TypeError("torch.onnx.export gave no program")
    opset = exported.model.opset_imports[""]
    if opset != OPSET:
        raise ValueError(
            f"torch {torch.__version__} writes ONNX opset {opset}, not {OPSET}; install a newer torch."
        )
    exported.model.ir_version = IR_VERSION
    # The exporter's notes hold paths of this machine.
    ClearMetadataAndDocStringPass()(exported.model)
    for weight in exported.model.graph.initializers.values():
        # Redundant, and wrong once ONNX Runtime (1.26, for one) has transposed a matrix to quantize it.
        weight.shape = weight.type = None
    weights = [value.const_value for value in exported.model.graph.initializers.values()]
    large = sum(weight.nbytes for weight in weights if weight is not None) > _MAX_SINGLE_FILE
    exported.save(file, external_data=large)
    return large


def _rows(graph: Graph, samples: Samples) -> list[dict[str, np.ndarray]]:
    rows = []
    for number in range(len(next(iter(samples.values())))):
        row = {name: samples[name][number : number + 1] for name in graph.inputs}
        # Samples are padded to the longest; the calibration reads their words alone.
        if graph.reads_text:
            length = max(int(row[MASK].sum()), _MIN_TEXT)
            row[IDS] = row[IDS][:, :length]
            row[MASK] = row[MASK][:, :length]
        rows.append(row)
    return rows


def _quantize(
    source: Path, target: Path, *, large: bool, rows: list[dict[str, np.ndarray]]
) -> None:
    # This imports `onnx`, which takes a second.
    import onnx_ir
    from onnxruntime import quantization

    # Embeddings of words are most of a small text encoder; ONNX Runtime does not load other lookups in int8.
    other_lookups = []
    for node in onnx_ir.load(source).graph:
        if node.op_type == "Gather":
            table = node.inputs[0]
            if table is None or not str(table.name).endswith(_WORD_EMBEDDINGS):
                other_lookups.append(node.name)
    remaining = iter(rows)
    reader = type(
        "Rows", (quantization.CalibrationDataReader,), {"get_next": lambda _: next(remaining, None)}
    )
    # The library logs a line for each tensor, and the advice to optimize first, which its sessions do.
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        quantization.quantize_static(
            source,
            target,
            reader(),
            op_types_to_quantize=list(INT8_OPERATORS),
            nodes_to_exclude=other_lookups,
            per_channel=True,
            weight_type=quantization.QuantType.QInt8,
            # Seven bits of weight: with eight, sums saturate on x86 processors without VNNI.
            reduce_range=not torch.cpu._is_vnni_supported(),
            use_external_data_format=large,
            # Sums stay float32 instead of being rounded to int8 once more.
            extra_options={"OpTypesToExcludeOutputQuantization": list(INT8_OPERATORS)},
        )
    finally:
        logging.disable(before)


def _describe(model: models.VLMoPreTrainedModel, folder: Path) -> Description:
    config = model.config
    text: Description = {
        "max_positions": config.max_text_positions,
        "pad_token_id": config.pad_token_id,
    }
    if (folder / "processor_config.json").is_file():
        length = load_processor(folder).max_text_length
        text |= {
            "tokenizer": "tokenizer.json",
            "max_length": min(length, config.max_text_positions),
        }
    head: Any = getattr(model, "contrast_head", None)
    labels = {str(number): label for number, label in (config.id2label or {}).items()}
    return {
        "format": FORMAT,
        "model_class": type(model).__name__,
        "opset": OPSET,
        "image": {"size": [config.image_size, config.image_size], **_PIXELS},
        "text": text,
        "logit_scale": None if head is None else float(head.logit_scale),
        "labels": labels if isinstance(model, _CLASSIFIERS) else None,
    }
