"""Images, texts and pairs a second of a model folder in ONNX Runtime and OpenVINO, float32 and int8, against PyTorch.

    python benchmarks/onnx_speed.py --folder vlmo-small --out onnx.json
    python benchmarks/onnx_speed.py --preset base --batches 1 8 --open-clip --out onnx_base.json

All run the same tensors with the same number of threads, by turns. PyTorch runs the float32 model in inference mode.
With `--open-clip`, ViT-B-16 of open_clip embeds as many images and texts in each precision, and `ratio_to_open_clip` is
the median over turns of the rate by that of the turn's fastest precision. int8 is calibrated: on noise for a preset.
`cosine` is the smallest of vectors of a graph and of PyTorch, for a batch of noise. A rate is the median over turns, a
ratio the median over turns of both rates of a turn. Other work on the machine slows the engines by different factors:
`load_average` says whether there was any before the start.
"""

import functools
import os
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
import tyro
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg
from rich.console import Console
from torch import Tensor, nn

from surroundings import surroundings, write_result
from vlmo.export.graphs import Graph, GraphModule, graphs_of
from vlmo.export.onnx import load_for_export, noise, write_onnx
from vlmo.export.sessions import (
    FUSION_ENCODER,
    IMAGE_ENCODER,
    OnnxSession,
    OpenVinoSession,
    read_description,
)
from vlmo.model import VLMoConfig, VLMoForImageTextRetrieval, VLMoPreTrainedModel
from vlmo.released import find_model
from vlmo.retrieval.graphs_engine import export_graphs

TORCH = "pytorch"
GRAPHS = {
    "onnxruntime": (OnnxSession, "float32"),
    "onnxruntime_int8": (OnnxSession, "int8"),
    "openvino": (OpenVinoSession, "float32"),
    "openvino_int8": (functools.partial(OpenVinoSession, exact=False), "int8"),
}
PEERS = ("float32", "bfloat16", "int8")
CONTEXT = 77
LAST_WORD = 49407  # CLIP's end of text, the largest id, at which it pools
PAUSE = 0.1  # threads of the program whose turn is over spin for a while
Call = Callable[[], Any]
NUM_SAMPLES = 32
PACKAGES = ("vlmo", "torch", "onnx", "onnxscript", "onnxruntime", "openvino", "open_clip_torch")


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
    """CPU threads of each engine."""
    open_clip: bool = False
    """Time the towers of open_clip's ViT-B-16 too; for a preset of that size."""
    out: Path | None = None
    """JSON file for the result."""


def rate(call: Call, *, rows: int, seconds: float) -> float:
    """Rows a second of a call, over at least `seconds` after one call to warm up."""
    call()
    start, done, elapsed = time.perf_counter(), 0, 0.0
    while elapsed < seconds or not done:
        call()
        done += rows
        elapsed = time.perf_counter() - start
    return done / elapsed


def rates_by_turns(
    calls: Mapping[str, Call], *, rows: int, turns: int, seconds: float
) -> dict[str, list[float]]:
    """Rows a second of each program in each turn; in each turn another one is first."""
    rates: dict[str, list[float]] = {name: [] for name in calls}
    names = list(calls)
    for turn in range(turns):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            time.sleep(PAUSE)
            rates[name].append(rate(calls[name], rows=rows, seconds=seconds))
    return rates


def by_turns(calls: dict[str, Call], *, rows: int, turns: int, seconds: float) -> dict[str, Any]:
    """Rates of each engine, its ratios to PyTorch and to the best of open_clip; in each turn another one is first."""
    rates = rates_by_turns(calls, rows=rows, turns=turns, seconds=seconds)

    def ratio(own: list[float], other: list[float]) -> float:
        return statistics.median(a / b for a, b in zip(own, other, strict=True))

    peers = [own for name, own in rates.items() if name.startswith("open_clip")]
    best = [max(turn) for turn in zip(*peers, strict=True)]
    return {
        name: {
            "rows_per_second": statistics.median(own),
            "ratio_to_pytorch": ratio(own, rates[TORCH]),
            **({"ratio_to_open_clip": ratio(own, best)} if best else {}),
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


def open_clip_model(precision: str) -> CLIP:
    """open_clip's ViT-B-16 with random weights; its text tower does not run in int8."""
    model = CLIP(
        embed_dim=512,
        vision_cfg=CLIPVisionCfg(layers=12, width=768, patch_size=16, image_size=224),
        text_cfg=CLIPTextCfg(context_length=CONTEXT, width=512, heads=8, layers=12),
    ).eval()
    if precision == "bfloat16":
        model.to(torch.bfloat16)
    elif precision == "int8":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # announced for removal, but what its users have today
            model.visual = torch.ao.quantization.quantize_dynamic(
                model.visual, {nn.Linear}, dtype=torch.qint8
            )
    return model


def peer_calls(graph: Graph, peers: dict[str, CLIP], *, batch: int, length: int) -> dict[str, Call]:
    """Calls of open_clip for as many images, or texts of as many tokens, padded to 77; none for pairs."""
    calls: dict[str, Call] = {}
    for precision, peer in peers.items() if graph.name != FUSION_ENCODER else ():
        if graph.name == IMAGE_ENCODER:
            pixels = torch.randn(
                batch,
                3,
                224,
                224,
                dtype=torch.bfloat16 if precision == "bfloat16" else torch.float32,
            )
            calls[f"open_clip {precision}"] = functools.partial(
                peer.encode_image, pixels, normalize=True
            )
        else:
            ids = torch.randint(
                1, LAST_WORD, (batch, CONTEXT), generator=torch.Generator().manual_seed(0)
            )
            ids[:, length - 1] = LAST_WORD
            ids[:, length:] = 0
            calls[f"open_clip {precision}"] = functools.partial(
                peer.encode_text, ids, normalize=True
            )
    return calls


def time_graph(
    model: VLMoPreTrainedModel,
    graph: Graph,
    written: dict[str, Any],
    *,
    folder: Path,
    length: int,
    peers: dict[str, CLIP],
    options: Options,
    console: Console,
) -> dict[str, Any]:
    """Rates of one graph for each batch size."""
    module = GraphModule(model, graph)
    os.environ["OMP_NUM_THREADS"] = str(options.threads)  # which the engines read
    sessions = {
        name: session(folder / file["file"])
        for name, (session, precision) in GRAPHS.items()
        if (file := written[precision]) is not None
    }
    timed: dict[str, Any] = {}
    for batch in options.batches:
        inputs = full_inputs(graph, model.config, batch=batch, length=length)
        calls: dict[str, Call] = {TORCH: lambda inputs=inputs: module(*inputs)}
        for name, session in sessions.items():
            calls[name] = lambda session=session, inputs=inputs: session(*inputs)
        calls |= peer_calls(graph, peers, batch=batch, length=length)
        console.print(
            f"{graph.name}, batch {batch}: {len(calls)} engines, {options.turns} turns each",
            highlight=False,
        )
        timed[f"batch {batch}"] = by_turns(
            calls, rows=batch, turns=options.turns, seconds=options.seconds
        )
    inputs = full_inputs(graph, model.config, batch=NUM_SAMPLES, length=length)
    expected = module(*inputs)[0].flatten(1)
    cosines = {
        name: float(
            torch.cosine_similarity(
                torch.from_numpy(session(*inputs)[0]).flatten(1), expected
            ).min()
        )
        for name, session in sessions.items()
        if graph.name != FUSION_ENCODER
    }
    return {
        "text_length": length if graph.reads_text else None,
        "float32": written["float32"],
        "int8": written["int8"],
        "cosine": cosines,
    } | timed


def export(folder: Path, out: Path, options: Options) -> dict[str, Any]:
    """Exports a folder with int8 variants; a preset, which has no processor, is calibrated on noise."""
    if options.preset is None:
        return export_graphs(folder, out, int8=True)
    model = load_for_export(folder)
    pair = next(graph for graph in graphs_of(model) if graph.name == FUSION_ENCODER)
    length = options.text_length or 40
    samples = dict(
        zip(
            pair.inputs,
            noise(pair, model.config, batch=NUM_SAMPLES, length=length, seed=1),
            strict=True,
        )
    )
    return write_onnx(folder, out, samples={name: each.numpy() for name, each in samples.items()})


def measure(folder: Path, options: Options, *, console: Console) -> dict[str, Any]:
    """Exports a folder and times all of its graphs."""
    peers = {}
    if options.open_clip:
        torch.backends.quantized.engine = (
            "onednn"  # the fastest of torch's engines for the peer's int8
        )
        peers = {each: open_clip_model(each) for each in PEERS}
    console.print("exporting", highlight=False)
    with tempfile.TemporaryDirectory() as name, torch.inference_mode():
        exported = Path(name) / "exported"
        report = export(folder, exported, options)
        description = read_description(exported)
        length = options.text_length or description["text"].get("max_length", 40)
        model = load_for_export(folder)
        given: dict[str, Any] = {
            "folder": exported,
            "length": length,
            "peers": peers,
            "options": options,
            "console": console,
        }
        graphs = {
            graph.name: time_graph(model, graph, report["graphs"][graph.name], **given)
            for graph in graphs_of(model)
        }
    return {
        "model": {
            "class": report["model_class"],
            "hidden_size": model.config.hidden_size,
            "num_hidden_layers": model.config.num_hidden_layers,
            "image_size": model.config.image_size,
            "opset": description["opset"],
        },
        "graphs": graphs,
    }


def table(result: dict[str, Any]) -> str:
    """Ratios in Markdown, a line for each graph, batch size and engine."""
    lines = [
        "| | batch | engine | rows a second | to PyTorch | to open_clip | cosine |",
        "|" + " --- |" * 7,
    ]
    for name, graph in result["graphs"].items():
        for batch, engines in graph.items():
            for engine, found in engines.items() if batch.startswith("batch ") else ():
                to_peer = (
                    f"{found['ratio_to_open_clip']:.2f} x" if "ratio_to_open_clip" in found else ""
                )
                cosine = f"{graph['cosine'][engine]:.5f}" if engine in graph["cosine"] else ""
                rates = f"{found['rows_per_second']:,.1f} | {found['ratio_to_pytorch']:.2f} x"
                lines.append(
                    f"| {name} | {batch.removeprefix('batch ')} | {engine} | {rates} | {to_peer} | {cosine} |"
                )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints rates, and writes them with `--out`."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    options = tyro.cli(Options, args=arguments)
    if (options.folder is None) == (options.preset is None):
        raise SystemExit("give --folder or --preset, one of them")
    console = Console(stderr=True)
    torch.set_num_threads(options.threads)
    transformers.logging.disable_progress_bar()
    load = os.getloadavg()[0]
    result = surroundings("onnx_speed.py", arguments, packages=PACKAGES)
    if options.folder is not None:
        result |= measure(Path(find_model(options.folder)), options, console=console)
    else:
        with tempfile.TemporaryDirectory() as name:
            torch.manual_seed(0)
            config = getattr(VLMoConfig, str(options.preset))()
            VLMoForImageTextRetrieval(config).save_pretrained(name)
            result |= measure(Path(name), options, console=console)
    result["load_average"] = load
    print(table(result))
    write_result(result, options.out)
    if options.out is not None:
        console.print(f"written to {options.out}", highlight=False)


if __name__ == "__main__":
    main()
