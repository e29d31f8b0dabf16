"""`vlmo models`, `import`, `merge`, `export` and `release`: names of models, and conversion of model folders."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.console import Console
from rich.table import Table

from vlmo.cli.output import say
from vlmo.cli.parsing import ModelFolder, hide_loading_bars, nearest
from vlmo.released import find_model, no_adapter, no_checkpoint, no_model
from vlmo.released.published import MODELS
from vlmo.terminal import escaped


@dataclass(frozen=True)
class ModelsOptions:
    """List the models that have a name; vlmo models NAME... downloads and converts these now."""

    names: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """Models to download; the first command that uses one does it too."""
    labels: Path | None = None
    """Names of the answers or classes, which published files do not hold; as for vlmo import. Also of models here."""
    keep_file: tyro.conf.FlagCreatePairsOff[bool] = False
    """Keep the published file too."""


@dataclass(frozen=True)
class ImportOptions:
    """Convert published weights to a model folder: vlmo import FILE OUT [--image-size N] [--vocabulary PATH]."""

    path: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FILE")]
    """Checkpoint of VLMo, BEiT or BEiT-3 (.pt, .pth, .safetensors), or a folder with config.json and weights."""
    out: tyro.conf.Positional[Path]
    """New model folder."""
    kind: Literal["auto", "vlmo", "beit", "hf-beit", "beit3", "timm-beit3"] = "auto"
    """Layout of the file; by default the one that its keys tell."""
    image_size: int | None = None
    """Pixels of an image's side; position tables are resized to it."""
    text_length: int | None = None
    """Longest text in tokens, a multiple of 8; by default that of the file."""
    num_attention_heads: int | None = None
    """Kind of the checkpoint, for tensors that do not tell it."""
    vocabulary: Path | None = None
    """BERT's vocab.txt or a folder with it, by default from the model hub; for BEiT-3 its SentencePiece file."""
    labels: Path | None = None
    """Names of the answers or classes: JSON, JSON lines, one a line, or a prepared set."""
    imagenet_pixels: bool = False
    """The file takes pixels normalised by ImageNet's mean and deviation; known of published files and of folders."""
    allow_partial: bool = False
    """Leave out keys that nobody knows, and start anew what is missing, instead of stopping."""


@dataclass(frozen=True)
class MergeOptions:
    """Make a model folder of a LoRA adapter and the model that it was trained from: vlmo merge ADAPTER --out FOLDER."""

    adapter: Annotated[Path, tyro.conf.Positional]
    """Folder that a run with --lora.rank leaves under model/, or one that PEFT has saved."""
    out: Path
    """New model folder."""


@dataclass(frozen=True)
class ExportOptions:
    """Convert a model folder to another format: vlmo export MODEL_FOLDER --to official|onnx --out PATH."""

    folder: ModelFolder
    out: Path
    """New file (official: .pt or .safetensors) or new folder (onnx)."""
    to: Literal["official", "onnx"] = "official"
    """The published VLMo layout, or ONNX."""
    int8: bool = False
    """onnx: also write variants with int8 quantisation; models that retrieve are calibrated on emoji-pairs."""


@dataclass(frozen=True)
class ReleaseOptions:
    """Write a model folder to publish: half as large, its card with metrics: vlmo release MODEL_FOLDER --out DIR."""

    folder: ModelFolder
    out: Path
    """New folder; its name becomes the model's."""
    recall_on: Annotated[tuple[str, ...], tyro.conf.arg(name="data")] = ("emoji-pairs",)
    """Sources, built-in names or paths, whose split "test" is measured."""
    licence: str | None = None
    """Licence of the weights, by the hub's identifier, such as cc-by-sa-4.0; by default what the card says."""
    note: str = ""
    """A paragraph for the top of the card."""
    device: str | None = None
    """Device that measures it: cpu, cuda, cuda:N or mps; by default a GPU if there is one."""


def models_command(options: ModelsOptions) -> None:
    """Run `vlmo models`."""
    from vlmo.released.download import cached_model, fetch_model

    if options.names:
        hide_loading_bars()
        for name in options.names:
            if name not in MODELS:
                raise ValueError(f"no model {name!r}; did you mean {nearest(name, MODELS)!r}? All: vlmo models")
        for model in map(MODELS.__getitem__, options.names):
            is_ours = not model.address
            folder = Path(find_model(model.name)) if is_ours else fetch_model(model, keep_file=options.keep_file)
            if options.labels is not None:
                from vlmo.checkpoints.importing import name_labels

                name_labels(folder, options.labels)
            say(f"{model.name}: {folder}")
        return
    table = Table("name", "task", "size, pixels", "licence", "here", box=None, pad_edge=False)
    for model in MODELS.values():
        here = not model.address or (cached_model(model.name) / "config.json").is_file()
        size = f"{model.size.replace('_plus', '+')}, {model.image_size}"
        table.add_row(model.name, model.task, size, model.licence, "yes" if here else "")
    Console(soft_wrap=True).print(table)


def import_command(options: ImportOptions) -> None:
    """Run `vlmo import`."""
    if not options.path.exists():  # before the slow imports
        raise ValueError(no_checkpoint(options.path))
    hide_loading_bars()
    from vlmo.checkpoints.importing import import_checkpoint
    from vlmo.tasks import usage_of

    report = import_checkpoint(**vars(options), usage_of=usage_of)
    table = Table(show_header=False)
    for word, value in report.rows():
        table.add_row(word, escaped(value))
    Console(soft_wrap=True).print(table)
    say(*report.lines(), f"model folder {options.out}")


def merge_command(options: MergeOptions) -> None:
    """Run `vlmo merge`."""
    if not options.adapter.is_dir():
        raise ValueError(no_adapter(options.adapter))
    hide_loading_bars()
    from vlmo.training.lora import merge_adapter

    merge_adapter(options.adapter, options.out)
    say(f"model folder {options.out}")


def export_command(options: ExportOptions) -> None:
    """Run `vlmo export`."""
    if options.to != "onnx" and options.int8:
        raise ValueError("--int8 belongs to --to onnx")
    folder = Path(find_model(options.folder))
    if not (folder / "config.json").is_file():
        raise ValueError(no_model(folder))
    hide_loading_bars()
    if options.to == "onnx":
        from vlmo.retrieval.engines import export_graphs

        lines = export_graphs(folder, options.out, int8=options.int8).lines()
    else:
        from vlmo.checkpoints.official import export_official

        lines = [*(f"note: {note}" for note in export_official(folder, options.out)), f"written: {options.out}"]
    say(*lines)


def release_command(options: ReleaseOptions) -> None:
    """Run `vlmo release`."""
    folder = Path(find_model(options.folder))
    hide_loading_bars()
    from vlmo.release import write_release

    console = Console(soft_wrap=True)
    results = write_release(**vars(options) | {"folder": folder}, console=Console(stderr=True))
    for result in results:
        console.print(result.table())
    size = (options.out / "model.safetensors").stat().st_size
    say(f"model folder {options.out}, weights of {size / 1e6:.1f} MB")
