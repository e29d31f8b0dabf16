"""Models by name: `vlmo-small`, which ships with the package, weights that others have published, and the hub's.

A model folder of the same name in the working directory takes precedence.
"""

from __future__ import annotations

import difflib
import re
from os import PathLike
from pathlib import Path
from typing import TypeVar

from vlmo.released.published import MODELS, NamedModel
from vlmo.terminal import suggestion

SMALL = "vlmo-small"
"""The small model that `vlmo quickstart --fast` starts from."""

FOLDER = Path(__file__).parent
# A path of pathlib has one slash.
_HUB = re.compile(r"hf:/{1,2}([\w.-]+/[\w.-]+)")
# Likeness from which on a name that is none is a misspelt one.
_MISSPELT = 0.85

Name = TypeVar("Name", bound=str | PathLike)


def find_model(name: Name) -> Name | Path:
    """Return the folder of a model by its name (`MODELS`) or by `hf://USER/NAME`; anything else unchanged.

    The first use of a published model downloads and converts it.

    Raises:
        ValueError: It cannot be downloaded; the name is nearly that of a model; or the folder holds
            more than files and folders: reading a named pipe would wait for a writer, reading a
            device never end.
    """
    folder = Path(name)
    if folder.is_dir():
        for path in folder.iterdir():
            if path.exists() and not path.is_file() and not path.is_dir():
                raise ValueError(f"{path} is no regular file; a model folder holds nothing else")
    if (folder / "config.json").is_file():
        return name
    hub_name = _HUB.fullmatch(str(name))
    if hub_name:
        from vlmo.released.download import fetch_hub_folder

        return fetch_hub_folder(hub_name[1])
    model = MODELS.get(str(name))
    if model is not None and model.address:
        from vlmo.released.download import fetch_model

        return fetch_model(model)
    if model is not None:
        return FOLDER / model.name
    # transformers would look for a misspelt name on the hub, and say that it is no repository.
    if not folder.exists() and difflib.get_close_matches(str(name), MODELS, n=1, cutoff=_MISSPELT):
        raise missing_model(name)
    return name


def model_path(name: str | PathLike) -> str:
    """Return the path of a model by its name, `hf://USER/NAME` or folder, for libraries that know paths only.

    Raises:
        ValueError: There is no such model, or it cannot be downloaded.
    """
    folder = Path(find_model(name))
    if not (folder / "config.json").is_file():
        raise missing_model(name)
    return str(folder)


def is_released(folder: str | PathLike) -> bool:
    """Return True for a folder of the package or of a cache, into which nothing should be written."""
    from huggingface_hub.constants import HF_HUB_CACHE

    from vlmo.released.download import cached_model

    # What is there is shared by all runs, which a changed file would change.
    kept = {FOLDER, cached_model("").absolute(), Path(HF_HUB_CACHE).absolute()}
    return not kept.isdisjoint(Path(find_model(folder)).absolute().parents)


def published_model(folder: str | PathLike) -> NamedModel | None:
    """Return the published model that a name or a folder of the cache stands for; None for any other folder."""
    from vlmo.released.download import cached_model

    path = Path(find_model(folder)).absolute()
    return MODELS.get(path.name) if path == cached_model(path.name) else None


def notes_folder(folder: str | PathLike) -> Path:
    """Return the folder for files about a model: its own, or the working directory for a released model."""
    return Path() if is_released(folder) else Path(folder)


def missing_model(folder: str | PathLike) -> ValueError:
    """Return the error for a folder without `config.json`, with the name that is most like it."""
    if (Path(folder) / "adapter_config.json").is_file():
        return ValueError(
            f"{folder} holds an adapter and no model; merge it first: vlmo merge {folder} --out FOLDER "
            "(an adapter of another kind than LoRA: merge_and_unload of PEFT)"
        )
    return ValueError(
        f"{folder} is no model folder: it has no config.json{suggestion(str(folder), MODELS)} A run leaves one under "
        f"model/. Models with a name: {SMALL} and others, which `vlmo models` lists."
    )
