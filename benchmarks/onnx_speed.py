"""Images, texts and pairs a second of a model folder in ONNX Runtime, float32 and int8, against PyTorch.

    python benchmarks/onnx_speed.py --folder vlmo-small --recall-on emoji-pairs --out onnx.json
    python benchmarks/onnx_speed.py --preset base --batches 1 8 --out onnx_base.json

All run the same tensors with the same number of threads, by turns. PyTorch runs the float32 model as it is loaded, in
inference mode. A rate is the median over turns, a ratio the median over turns of both rates of a turn. Other work on
the machine slows the engines by different factors: `load_average` says whether there was any before the start.
"""

import os
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
import tyro
from rich.console import Console
from torch import Tensor

from surroundings import surroundings, write_result
from timing import Call, rates_by_turns
from vlmo.export.graphs import Graph, graphs_of
from vlmo.export.onnx import OnnxGraph, load_for_export, noise
from vlmo.export.runtime import OnnxSession, read_description
from vlmo.model import VLMoConfig, VLMoForImageTextRetrieval, VLMoPreTrainedModel
from vlmo.released import find_model
from vlmo.tasks.onnx_export import export_onnx

TORCH, FLOAT32, INT8 = "pytorch", "onnxruntime", "onnxruntime_int8"


@dataclass(frozen=True)
class Options:
    """Times the encoders of a model folder, or of a preset with random weights."""

    folder: Path | None = None
    """Model folder, or the name of a model."""
    preset: Literal["tiny", "small", "base", "base_plus", "large"] | None = None
    """Sizes of a retrieval model with random weights, instead of a folder."""
    batches: tuple[int, ...] = (1, 32)
    """Rows of a call; each is timed."""
    text_length: int | None = None
    """Tokens of each text, none of them padding; by default the longest text of the processor, or 40."""
    turns: int = 7
    """Timed turns of each engine."""
    seconds: float = 0.5
    """Least time of a turn; it has at least one call."""
    threads: int = 2
    """CPU threads, of PyTorch and of ONNX Runtime."""
    recall_on: str | None = None
    """Source whose recall is measured with float32 and int8, such as emoji-pairs."""
    out: Path | None = None
    """JSON file for the result."""


def by_turns(calls: dict[str, Call], *, rows: int, turns: int, seconds: float) -> dict[str, Any]:
    """Rates of each engine, and its ratio to PyTorch; in each turn another one is first."""
    rates = rates_by_turns(calls, rows=rows, turns=turns, seconds=seconds)
    return {
        name: {
            "rows_per_second": statistics.median(own),
            "ratio_to_pytorch": statistics.median(a / b for a, b in zip(own, rates[TORCH], strict=True)),
            "turns": [round(each, 3) for each in own],
        }
        for name, own in rates.items()
    }


def full_inputs(graph: Graph, config: VLMoConfig, *, batch: int, length: int) -> tuple[Tensor, ...]:
    """Inputs without padding."""
    made = noise(graph, config, batch=batch, length=length, seed=0)
    return tuple(
        torch.ones_like(tensor) if name == "attention_mask" else tensor
        for name, tensor in zip(graph.inputs, made, strict=True)
    )


def time_graph(
    model: VLMoPreTrainedModel, graph: Graph, written: OnnxGraph, *, folder: Path, length: int, options: Options
) -> dict[str, Any]:
    """Figures of one graph for each batch size."""
    sessions = {
        name: OnnxSession(folder / file.file, num_threads=options.threads)
        for name, file in ((FLOAT32, written.float32), (INT8, written.int8))
        if file is not None
    }
    timed = {}
    for batch in options.batches:
        inputs = full_inputs(graph, model.config, batch=batch, length=length)
        calls: dict[str, Call] = {TORCH: lambda inputs=inputs: graph.call(model, *inputs)}
        for name, session in sessions.items():
            calls[name] = lambda session=session, inputs=inputs: session(*inputs)
        timed[f"batch {batch}"] = by_turns(calls, rows=batch, turns=options.turns, seconds=options.seconds)
    return {
        "text_length": length if graph.reads_text else None,
        "float32": asdict(written.float32),
        "int8": None if written.int8 is None else asdict(written.int8),
    } | timed


def measure(folder: Path, options: Options, *, console: Console) -> dict[str, Any]:
    """Exports a folder and times all of its graphs."""
    with tempfile.TemporaryDirectory() as name, torch.inference_mode():
        exported = Path(name) / "exported"
        report = export_onnx(folder, exported, int8=True, recall_on=options.recall_on, console=console)
        description = read_description(exported)
        length = options.text_length or description["text"].get("max_length", 40)
        model = load_for_export(folder)
        graphs = {
            graph.name: time_graph(
                model, graph, report.graphs[graph.name], folder=exported, length=length, options=options
            )
            for graph in graphs_of(model)
        }
    return {
        "model": {
            "class": report.model_class,
            "hidden_size": model.config.hidden_size,
            "num_hidden_layers": model.config.num_hidden_layers,
            "image_size": model.config.image_size,
            "opset": description["opset"],
        },
        "graphs": graphs,
        "recall": description.get("recall"),
    }


def table(result: dict[str, Any]) -> str:
    """The same in Markdown, a line for each graph and batch size."""
    lines = ["| | batch | PyTorch a second | ONNX Runtime | int8 |", "| --- | --- | --- | --- | --- |"]
    for name, graph in result["graphs"].items():
        for batch, engines in graph.items():
            if batch.startswith("batch "):
                faster = [f"{engines[engine]['ratio_to_pytorch']:.2f} x" for engine in (FLOAT32, INT8)]
                rows = f"{engines[TORCH]['rows_per_second']:,.1f}"
                lines.append(" | ".join([f"| {name}", batch.removeprefix("batch "), rows, *faster]) + " |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints figures, and writes them with `--out`."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    options = tyro.cli(Options, args=arguments)
    if (options.folder is None) == (options.preset is None):
        raise SystemExit("give --folder or --preset, one of them")
    console = Console(stderr=True)
    torch.set_num_threads(options.threads)
    transformers.logging.disable_progress_bar()
    load = os.getloadavg()[0]
    result = surroundings("onnx_speed.py", arguments, packages=("vlmo", "torch", "onnx", "onnxscript", "onnxruntime"))
    if options.folder is not None:
        result |= measure(Path(find_model(options.folder)), options, console=console)
    else:
        with tempfile.TemporaryDirectory() as name:
            torch.manual_seed(0)
            config = getattr(VLMoConfig, str(options.preset))()
            VLMoForImageTextRetrieval(config).save_pretrained(name)
            result |= measure(Path(name), replace(options, recall_on=None), console=console)
    result["load_average"] = load
    print(table(result))
    write_result(result, options.out)
    if options.out is not None:
        console.print(f"written to {options.out}", highlight=False)


if __name__ == "__main__":
    main()
