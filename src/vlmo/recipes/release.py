"""A model folder to give to others: weights of half the size, and a card with figures measured on these weights."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from rich.console import Console
from safetensors.torch import load_file, save_file
from torch import Tensor

from vlmo.checkpoints.loading import check_model_folder
from vlmo.data import builtin
from vlmo.folder import add_figures, add_section, read_data, rename_card, write_folder
from vlmo.model import VLMoForImageTextRetrieval
from vlmo.recipes.card import data_name
from vlmo.recipes.confusions import confusions, confusions_table
from vlmo.recipes.retrieval import evaluate_folder
from vlmo.recipes.task_result import TaskResult

MAX_BYTES = 20_000_000
_WEIGHTS = "model.safetensors"
_SPLIT = "test"
_FILES = ("README.md", "processor_config.json", "tokenizer.json", "tokenizer_config.json")


def write_release(
    folder: str | Path,
    out: str | Path,
    *,
    recall_on: Sequence[str] = (),
    licence: str | None = None,
    note: str = "",
    device: str | None = None,
    console: Console | None = None,
) -> list[TaskResult]:
    """Writes the model of a run as a new folder, and what was measured on each source.

    Weights are stored as bfloat16 and computed with as float32, unless `from_pretrained` is told another `dtype`.

    Args:
        folder: Model folder, one that retrieves.
        out: New folder; its name becomes the model's.
        recall_on: Sources whose split "test" is measured, on the weights as they are stored. The card tells the recalls
            and what is confused most often.
        licence: Of the weights, by the hub's identifier; None leaves what the card says.
        note: A paragraph for the top of the card.
        device: Where it is measured; None takes a GPU if there is one.
        console: Where progress goes; None shows nothing.

    Raises:
        ValueError: The folder holds no model that retrieves, `out` exists, the weights are larger than 20 MB, or a
            source cannot be read.
    """
    folder, out = check_model_folder(folder, VLMoForImageTextRetrieval)[0], Path(out)
    if out.exists():
        raise ValueError(f"{out} exists; name a new folder")
    with write_folder(out) as aside:
        _write_model(folder, aside)
        rename_card(aside, title=out.name, licence=licence, note=note)
        if packages := _packages(aside):
            add_section(aside, title="Packages", body=packages)
        results, left_out = [], {}
        for source in recall_on:
            with _kept_reasons(aside, out):
                results.append(evaluate_folder(aside, source=source, split=_SPLIT, device=device, console=console))
            left_out[data_name(source)] = sum(map(_take_away, aside.glob("*.quarantine.jsonl")))
        for result in results:
            add_figures(aside, result.measurements(measured_by="`vlmo release`"))
        if results:
            add_section(aside, title="Confusions", body="\n\n".join(map(_confused, results)))
        lines = [f"- `{name}`: {count} rows of the split cannot be used" for name, count in left_out.items() if count]
        if lines:
            add_section(aside, title="Left out", body="\n".join(lines))
    return results


def _write_model(folder: Path, out: Path) -> None:
    weights = {name: _stored(tensor) for name, tensor in _read(folder).items()}
    size = sum(tensor.nbytes for tensor in weights.values())
    if size > MAX_BYTES:
        raise ValueError(
            f"{folder} has weights of {size / 1e6:.1f} MB as bfloat16; a release has at most {MAX_BYTES / 1e6:.0f} MB: "
            "train a smaller model"
        )
    save_file(weights, out / _WEIGHTS, metadata={"format": "pt"})
    (out / _WEIGHTS).chmod(0o644)  # the library leaves it to its owner alone
    settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    text = json.dumps({**settings, "dtype": "float32"}, indent=2, sort_keys=True)
    (out / "config.json").write_text(text + "\n", encoding="utf-8")
    for name in _FILES:
        if (folder / name).is_file():
            shutil.copyfile(folder / name, out / name)


def _read(folder: Path) -> dict[str, Tensor]:
    weights: dict[str, Tensor] = {}
    for file in sorted(folder.glob("model*.safetensors")):
        weights |= load_file(file)
    return weights


def _stored(tensor: Tensor) -> Tensor:
    """A single number, such as the temperature, keeps its digits."""
    return tensor.to(torch.bfloat16) if tensor.is_floating_point() and tensor.numel() > 1 else tensor


def _packages(folder: Path) -> str:
    """Which packages the built-in data on the card came out of."""
    names = dict.fromkeys(source.name for source in read_data(folder) if source.name in builtin.NAMES)
    lines = []
    for name in names:
        versions = ", ".join(f"{package} {version}" for package, version in builtin.packages(name).items())
        lines.append(f"- `{name}`: {versions}")
    return "\n".join(lines)


@contextlib.contextmanager
def _kept_reasons(folder: Path, out: Path) -> Iterator[None]:
    """Of a source with too many bad rows: the file that the error names stays, beside `out`, when `folder` goes."""
    try:
        yield
    except ValueError as error:
        told = str(error)
        for file in folder.glob("*.quarantine.jsonl"):
            kept = out.with_name(f"{out.name}.{file.name}")
            shutil.copyfile(file, kept)
            told = told.replace(str(file), str(kept))
        raise ValueError(told) from error


def _take_away(quarantine: Path) -> int:
    """Rows that the file names; it goes."""
    lines = map(json.loads, quarantine.read_text(encoding="utf-8").splitlines())
    count = sum(line["kind"] == "row" for line in lines)
    quarantine.unlink()
    return count


def _confused(result: TaskResult) -> str:
    told = (
        f"Most frequent wrong first answers of the dual encoder on `{data_name(result.source)}`, {result.split}: pairs "
        "of names, counted from names to pictures and from pictures to names."
    )
    return f"{told}\n\n{confusions_table(confusions(result.predictions))}"
