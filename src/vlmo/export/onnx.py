"""From a model folder to ONNX: a graph for each encoder, compared with PyTorch before anything is kept."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoImageProcessor

from vlmo.checkpoints.loading import load_model
from vlmo.export.conversion import OPSET, convert, noise, quantise
from vlmo.export.graphs import Graph, free_text_length, graphs_of
from vlmo.export.runtime import DESCRIPTION, OnnxSession, read_description
from vlmo.folder import write_file, write_folder
from vlmo.model import (
    VLMoForImageClassification,
    VLMoForImageTextRetrieval,
    VLMoForPreTraining,
    VLMoForSemanticSegmentation,
    VLMoForVisualQuestionAnswering,
    VLMoForVisualReasoning,
    VLMoPreTrainedModel,
)
from vlmo.processing import VLMoProcessor

# Largest difference to PyTorch in float32; measured ones are around 1e-6.
TOLERANCE = 1e-4
FORMAT = 1

# Batch and text length of each comparison; the longest text is added.
_CASES = ((1, 2), (2, 8), (3, 13))
_PROCESSOR_FILES = (
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
)
_CLASSIFIERS = (
    VLMoForImageClassification,
    VLMoForSemanticSegmentation,
    VLMoForVisualQuestionAnswering,
    VLMoForVisualReasoning,
)
_RESAMPLING = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}


@dataclass(frozen=True)
class OnnxFile:
    """One variant of a graph.

    Attributes:
        file: Name in the folder; weights of large models lie in a second file with `.data` behind it.
        num_bytes: With the weights.
        largest_difference: Of any output value to PyTorch's, over all comparisons; relative to the largest value of
            its tensor where that is above 1, as that of logits may be.
    """

    file: str
    num_bytes: int
    largest_difference: float


@dataclass(frozen=True)
class OnnxGraph:
    """An encoder; names, types and shapes of inputs and outputs as ONNX Runtime gives them."""

    inputs: dict[str, dict[str, Any]]
    outputs: dict[str, dict[str, Any]]
    float32: OnnxFile
    int8: OnnxFile | None


@dataclass(frozen=True)
class OnnxReport:
    """What was written, and how far it is from PyTorch.

    Attributes:
        recalls: Of each variant whose recall was measured, fractions.
    """

    folder: Path
    model_class: str
    graphs: dict[str, OnnxGraph]
    recalls: dict[str, dict[str, float]] = field(default_factory=dict)

    def lines(self) -> list[str]:
        """One for each file."""
        return [
            f"{file.file}: {file.num_bytes / 1e6:,.1f} MB, largest difference to PyTorch {file.largest_difference:.1e}"
            for graph in self.graphs.values()
            for file in (graph.float32, graph.int8)
            if file is not None
        ]


def write_onnx(folder: str | Path, out: str | Path, *, int8: bool = False) -> OnnxReport:
    """Writes the encoders of a model folder as ONNX graphs, with the processor's files and a description.

    Batch and text length are free, up to `max_text_positions`; the picture's size is the configured one. Every graph
    is run in ONNX Runtime on several batches and lengths, with padding.

    Args:
        folder: Model folder of any VLMo class.
        out: New folder, or one of an earlier export, which is replaced.
        int8: Also writes variants whose linear layers are quantised to int8, with scales of activations taken at run
            time.

    Raises:
        ValueError: `folder` cannot be exported, `out` holds something else, or a graph differs from PyTorch by more
            than `TOLERANCE`. Nothing is kept then.
        ModuleNotFoundError: A package of the extra `onnx` is missing.
    """
    folder, out = Path(folder), Path(out)
    if importlib.util.find_spec("onnxscript") is None:
        raise ModuleNotFoundError("No module named 'onnxscript'")
    if out.exists() and not (out / DESCRIPTION).is_file():
        raise ValueError(f"{out} exists and is no ONNX export; give a new folder.")
    model = load_for_export(folder)
    graphs = graphs_of(model)
    # Before the model is changed for the exporter, so that the comparison sees that change too.
    comparisons = {graph.name: _comparisons(model, graph) for graph in graphs}
    free_text_length(model)
    with write_folder(out) as aside:
        written = {
            graph.name: _write_graph(model, graph, comparisons[graph.name], folder=aside, int8=int8) for graph in graphs
        }
        for name in _PROCESSOR_FILES:
            if (folder / name).is_file():
                shutil.copy2(folder / name, aside / name)
        report = OnnxReport(out, model_class=type(model).__name__, graphs=written)
        (aside / DESCRIPTION).write_text(_json(_describe(model, folder, report)), encoding="utf-8")
    return report


def add_recalls(report: OnnxReport, recalls: Mapping[str, Mapping[str, float]], *, source: str) -> OnnxReport:
    """The report with recalls of its variants on a source, which also go into the folder's description."""
    kept = {variant: dict(metrics) for variant, metrics in recalls.items()}
    description = read_description(report.folder) | {"recall": {"source": source} | kept}
    write_file(report.folder / DESCRIPTION, _json(description))
    return replace(report, recalls=kept)


def load_for_export(folder: str | Path) -> VLMoPreTrainedModel:
    """Load the model of a folder in float32, without gradients and with one attention operator a layer."""
    model = load_model(folder, dtype=torch.float32)
    model.set_attn_implementation("sdpa")  # `eager` would spread attention over several operators
    return model.requires_grad_(requires_grad=False)


@dataclass(frozen=True)
class _Comparison:
    inputs: tuple[Tensor, ...]
    expected: tuple[Tensor, ...]


def _comparisons(model: VLMoPreTrainedModel, graph: Graph) -> list[_Comparison]:
    longest = model.config.max_text_positions
    sizes = [(batch, min(length, longest)) for batch, length in (*_CASES, (1, longest))]
    if not graph.reads_text:
        sizes = sizes[: len(_CASES)]
    comparisons = []
    for seed, (batch, length) in enumerate(sizes):
        inputs = noise(graph, model.config, batch=batch, length=length, seed=seed)
        with torch.inference_mode():
            comparisons.append(_Comparison(inputs, graph.call(model, *inputs)))
    return comparisons


def _write_graph(
    model: VLMoPreTrainedModel, graph: Graph, comparisons: Sequence[_Comparison], *, folder: Path, int8: bool
) -> OnnxGraph:
    file = folder / f"{graph.name}.onnx"
    large = convert(model, graph, file)
    session = OnnxSession(file)
    difference = _largest_difference(session, comparisons)
    if not difference <= TOLERANCE:  # NaN is not below either
        raise ValueError(
            f"{file.name} differs from PyTorch by {difference:.1e}, more than {TOLERANCE:.0e}; nothing was kept. Check "
            "the weights, and the versions of torch, onnxscript and onnxruntime."
        )
    int8_file = None
    if int8:
        quantised = file.with_suffix(".int8.onnx")
        quantise(file, quantised, large=large)
        int8_file = _measured(quantised, _largest_difference(OnnxSession(quantised), comparisons))
    return OnnxGraph(session.inputs, session.outputs, float32=_measured(file, difference), int8=int8_file)


def _measured(file: Path, difference: float) -> OnnxFile:
    parts = (file, file.with_name(f"{file.name}.data"))
    num_bytes = sum(part.stat().st_size for part in parts if part.is_file())
    return OnnxFile(file.name, num_bytes=num_bytes, largest_difference=difference)


def _largest_difference(session: OnnxSession, comparisons: Sequence[_Comparison]) -> float:
    differences = [
        (actual - expected).abs().max() / expected.abs().max().clamp(min=1)
        for comparison in comparisons
        for actual, expected in zip(session(*comparison.inputs), comparison.expected, strict=True)
    ]
    return float(torch.stack(differences).max())


def _describe(model: VLMoPreTrainedModel, folder: Path, report: OnnxReport) -> dict[str, Any]:
    """All that who runs the graphs needs to know beside the tokenizer's file."""
    config = model.config
    image: dict[str, Any] = {"size": [config.image_size, config.image_size]}
    text: dict[str, Any] = {"max_positions": config.max_text_positions, "pad_token_id": config.pad_token_id}
    if (folder / "processor_config.json").is_file():
        processor = VLMoProcessor.from_pretrained(folder)
        image |= _preparation(processor.image_processor)
        text |= {"tokenizer": "tokenizer.json", "max_length": min(processor.max_text_length, config.max_text_positions)}
    elif (folder / "preprocessor_config.json").is_file():  # of a model that reads no text
        image |= _preparation(AutoImageProcessor.from_pretrained(folder, trust_remote_code=False))
    searches = isinstance(model, VLMoForPreTraining | VLMoForImageTextRetrieval)
    labels = {str(number): label for number, label in (config.id2label or {}).items()}
    return {
        "format": FORMAT,
        "model_class": report.model_class,
        "opset": OPSET,
        "image": image,
        "text": text,
        "logit_scale": float(model.contrast_head.logit_scale) if searches else None,
        "labels": labels if isinstance(model, _CLASSIFIERS) else None,
        "graphs": {name: asdict(graph) for name, graph in report.graphs.items()},
    }


def _preparation(processor: Any) -> dict[str, Any]:
    """How a picture becomes `pixel_values`."""
    return {
        "resample": _RESAMPLING[int(processor.resample)],
        "transparency": "on white",
        "rescale": processor.rescale_factor,
        "mean": list(processor.image_mean),
        "std": list(processor.image_std),
    }


def _json(description: dict[str, Any]) -> str:
    return json.dumps(description, indent=2) + "\n"
