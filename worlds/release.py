"""A model folder to share, with weights of half the size and metrics measured on these weights."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console
from safetensors.torch import save_file
from torch import Tensor

from vlmo.checkpoints.loading import check_model_folder, load_model
from vlmo.folder import WEIGHTS, file_in, read_config, write_modules
from vlmo.folder.atomic import write_folder
from vlmo.folder.card import CardContent, add_section, read_data, read_results, write_card
from vlmo.model import VLMoConfig, VLMoForImageTextRetrieval
from vlmo.model.embeddings import resize_absolute_positions
from vlmo.released import SMALL
from vlmo.tasks import VisionLanguageTask, evaluate, usage_of
from vlmo.tasks.result import data_name

_POSITIONS = "vlmo.image_embeddings.positions"
_FILES = ("processor_config.json", "tokenizer.json", "tokenizer_config.json")
_ABOUT, _, SMALL_PACKAGES = (
    Path(__file__)
    .with_name("card.md")
    .read_text(encoding="utf-8")
    .rstrip()
    .partition("\n\n## Packages\n\n")
)
SMALL_CARD = CardContent(
    stage=VisionLanguageTask.title,
    recipe=SMALL,
    about=_ABOUT,
    settings="`worlds/recipes.py` of the source",
    start="mean of three seeds of `small-names`, the fifth of six steps",
    licence="cc-by-sa-4.0",
    language="en",
)
"""Card of `vlmo-small`, without what the folder itself says, and with its section of packages in `SMALL_PACKAGES`."""


def write_release(
    folders: Sequence[str | Path],
    out: str | Path,
    *,
    card: CardContent,
    packages: str = "",
    shares: Sequence[float] | None = None,
) -> None:
    """Write the dual encoder and matching head of runs as a new folder.

    Weights are the mean of all runs' ("Model soups", Wortsman et al. 2022), which start from the same weights or from
    one another. Position tables are resized to the images of the first. They are stored as bfloat16 and computed with
    as float32, unless `from_pretrained` is given another `dtype`.

    Args:
        folders: Model folders that retrieve; all but the weights is the first one's.
        out: New folder; its name becomes the model's.
        card: Card of the new folder, which gets the name and the data of the first folder.
        packages: Packages that the data are from, a section of the card.
        shares: Share of each folder in the mean, of which the sum is 1; by default all have the same.

    Raises:
        ValueError: A folder holds no model that retrieves, two differ in a shape, or `out` exists.
    """
    folder, *_ = folders = [
        check_model_folder(each, VLMoForImageTextRetrieval)[0] for each in folders
    ]
    out = Path(out)
    if out.exists():
        raise ValueError(f"{out} exists; name a new folder")
    grid = VLMoConfig.from_pretrained(folder).grid
    weights = mean([_weights(each, grid=grid) for each in folders], shares=shares)
    # Single numbers, such as the temperature, keep their precision.
    halved = [
        name
        for name, tensor in weights.items()
        if tensor.is_floating_point() and tensor.numel() > 1
    ]
    weights |= {name: weights[name].to(torch.bfloat16) for name in halved}
    settings = read_config(folder)
    settings |= {"architectures": [VLMoForImageTextRetrieval.__name__], "dtype": "float32"}
    with write_folder(out) as new:
        save_file(weights, new / WEIGHTS, metadata={"format": "pt"})
        (new / WEIGHTS).chmod(0o644)  # safetensors makes it readable by its owner alone
        (new / "config.json").write_text(
            json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8"
        )
        write_modules(new)
        for name in _FILES:
            if (folder / name).is_file():
                shutil.copyfile(file_in(folder, name), new / name)
        write_released_card(
            new, replace(card, title=out.name, data=read_data(folder)), packages=packages
        )


def measure(
    folder: Path, sources: Iterable[tuple[str, str]], *, console: Console | None = None
) -> None:
    """Evaluate the stored weights on sources and splits of which the folder has no results, and add these to its card.

    Raises:
        ValueError: A source cannot be read; results of those before it are kept.
    """
    measured = {(each.dataset_name, each.dataset_split) for each in read_results(folder)}
    for source, split in sources:
        if (data_name(source), split) in measured:
            continue
        result = evaluate(folder, source=source, split=split, console=console)
        result.write_card(folder, measured_by="`worlds.release`")
        for file in folder.glob("*.quarantine.jsonl"):  # which name files of this machine
            file.unlink()


def _weights(folder: Path, *, grid: tuple[int, int]) -> dict[str, Tensor]:
    # Of a model of stage 3, this class leaves out the heads that only training uses.
    model = load_model(folder, VLMoForImageTextRetrieval)
    weights = model.state_dict()
    if _POSITIONS in weights:
        table = weights[_POSITIONS]
        weights[_POSITIONS] = resize_absolute_positions(
            table, source=model.config.grid, target=grid
        )
    return weights


def mean(
    states: Sequence[Mapping[str, Tensor]], *, shares: Sequence[float] | None = None
) -> dict[str, Tensor]:
    """Return the mean of each weight of several models, each with its share (by default the same).

    Raises:
        ValueError: They differ in a name or shape, or `shares` is not one number a model with a sum of 1.
    """
    if (
        len({tuple((name, tensor.shape) for name, tensor in state.items()) for state in states})
        != 1
    ):
        raise ValueError("models to average differ in their weights; name runs of one recipe")
    shares = [1 / len(states)] * len(states) if shares is None else shares
    if len(shares) != len(states) or not math.isclose(sum(shares), 1):
        raise ValueError(
            f"the shares are {shares}; give one for each of {len(states)} models, with a sum of 1"
        )
    return {
        name: torch.stack(
            [state[name] * share for state, share in zip(states, shares, strict=True)]
        ).sum(dim=0)
        for name in states[0]
    }


def write_released_card(folder: Path, card: CardContent, *, packages: str = "") -> None:
    """Write the card of a folder to share; its code loads the folder by the card's title."""
    if (usage := usage_of(folder)) is not None:
        usage = replace(usage, snippet=usage.code.replace("path/to/this/folder", str(card.title)))
    write_card(folder, card, usage)
    if packages:
        add_section(folder, title="Packages", body=packages)
