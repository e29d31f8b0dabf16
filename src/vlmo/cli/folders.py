"""`vlmo models`, `import`, `merge`, `export` and `release`: names of models, and conversion of model folders."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro

from vlmo.checkpoints.options import ImportOptions
from vlmo.cli.parsing import ModelFolder
from vlmo.lazy import need_package
from vlmo.released import find_model, missing_model
from vlmo.released.published import MODELS
from vlmo.terminal import say, suggestion, table


def models(
    names: Annotated[tuple[str, ...], tyro.conf.Positional] = (), *, labels: Path | None = None
) -> None:
    """List models with a name, and published results in percent; vlmo models NAME... downloads and converts these now.

    Args:
        names: Models to download; the first command that uses one does it too.
        labels: Names of the answers or classes, which published files do not hold; as for vlmo import. Also of models
            here.
    """
    from vlmo.released.download import cached_model

    # All names are checked before the first download.
    for name in names:
        if name not in MODELS:
            raise ValueError(f"no model {name!r}{suggestion(name, MODELS)} All: vlmo models")
    for name in names:
        folder = Path(find_model(name))
        if labels is not None:
            from vlmo.checkpoints.importing import name_labels

            name_labels(folder, labels)
        say(f"{name}: {folder}")
    if names:
        return
    rows = [("name", "task", "size, pixels", "license", "here", "published, percent")]
    for model in MODELS.values():
        # A model without an address comes with the package.
        is_here = not model.address or (cached_model(model.name) / "config.json").is_file()
        size = f"{model.size.replace('_plus', '+')}, {model.image_size}"
        published = ""
        if model.reported:
            numbers = ", ".join(
                f"{split} {metric} {value:g}" for split, metric, value in model.reported
            )
            published = f"{model.data} {numbers} ({model.source})"
        here = "yes" if is_here else ""
        rows.append((model.name, model.task, size, model.licence, here, published))
    say(*table(rows))


def import_(
    path: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FILE")],
    out: tyro.conf.Positional[Path],
    *,
    options: Annotated[ImportOptions, tyro.conf.arg(name="")] = ImportOptions(),  # noqa: B008
) -> None:
    """Convert published weights to a model folder: vlmo import FILE OUT [--image-size N] [--vocabulary PATH].

    Args:
        path: Checkpoint of VLMo, BEiT or BEiT-3 (.pt, .pth, .safetensors), or a folder with config.json and weights.
        out: New model folder.
    """
    from vlmo.checkpoints.importing import import_checkpoint
    from vlmo.tasks import usage_of

    report = import_checkpoint(path, out, usage_of=usage_of, **vars(options))
    say(*report.lines(), f"model folder {out}")


def merge(adapter: Annotated[Path, tyro.conf.Positional], *, out: Path) -> None:
    """Make a model folder of a LoRA adapter and the model that it was trained from: vlmo merge ADAPTER --out FOLDER.

    Args:
        adapter: Folder that a run with --lora.rank leaves under model/.
        out: New model folder.
    """
    from vlmo.training.lora import merge_adapter

    merge_adapter(adapter, out)
    say(f"model folder {out}")


def export(folder: ModelFolder, *, out: Path, int8: bool = False) -> None:
    """Convert a model folder to ONNX: vlmo export MODEL_FOLDER --out FOLDER.

    Args:
        out: New folder.
        int8: Also write variants with int8 quantization; models that retrieve are calibrated on emoji-pairs.
    """
    folder = Path(find_model(folder))
    if not (folder / "config.json").is_file():
        raise missing_model(folder)
    need_package("onnxscript", extra="onnx", user="ONNX")
    from vlmo.retrieval.graphs_engine import export_graphs

    graphs = export_graphs(folder, out, int8=int8)["graphs"]
    # Exported graphs are compared with the model when they are written.
    difference = max(graph["float32"]["largest_difference"] for graph in graphs.values())
    say(f"written: {', '.join(graphs)} in {out}; largest difference to PyTorch {difference:.1e}")
