"""Models that come with the package: a folder each beside this file, found by its name.

A model folder of one's own by the same name, in the working directory, goes before one that comes along.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import TypeVar

SMALL = "vlmo-small"
"""The small model that `vlmo quickstart --fast` starts from."""

FOLDER = Path(__file__).parent

Name = TypeVar("Name", bound=str | PathLike)


def released_names() -> tuple[str, ...]:
    """Names of the models that come with the package."""
    return tuple(sorted(file.parent.name for file in FOLDER.glob("*/config.json")))


def find_model(name: Name) -> Name | Path:
    """The folder of the model called `name`; any other name or path is given back as it is."""
    if (Path(name) / "config.json").is_file() or str(name) not in released_names():
        return name
    return FOLDER / name


def is_released(folder: str | PathLike) -> bool:
    """Whether the folder is part of the package, so that nothing should be written into it."""
    return FOLDER in Path(find_model(folder)).absolute().parents


def notes_folder(folder: str | PathLike) -> Path:
    """Where files about a model go: its folder, or the working directory if the model comes with the package."""
    return Path() if is_released(folder) else Path(folder)


def known_models() -> str:
    """A sentence with the names, for errors."""
    return f"Models that come with the package: {', '.join(released_names()) or 'none'}."


@contextmanager
def naming_released(name: object) -> Iterator[None]:
    """Adds the names to what transformers raises inside about a name that it does not know.

    Raises:
        OSError: There is no such model, here or on the hub.
    """
    try:
        yield
    except OSError as error:
        if not isinstance(name, str) or Path(name).exists() or known_models() in str(error):
            raise
        raise OSError(f"{error} {known_models()}") from error
