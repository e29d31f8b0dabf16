"""Released models: folders beside this file, which ship with the package and are found by their names.

A model folder of the same name in the working directory takes precedence.
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
    """Return the names of the released models."""
    return tuple(sorted(file.parent.name for file in FOLDER.glob("*/config.json")))


def find_model(name: Name) -> Name | Path:
    """Return the folder of the released model `name`; any other name or path unchanged."""
    if (Path(name) / "config.json").is_file() or str(name) not in released_names():
        return name
    return FOLDER / name


def is_released(folder: str | PathLike) -> bool:
    """Return True for a folder of the package, into which nothing should be written."""
    return FOLDER in Path(find_model(folder)).absolute().parents


def notes_folder(folder: str | PathLike) -> Path:
    """Return the folder for files about a model: its own, or the working directory for a released model."""
    return Path() if is_released(folder) else Path(folder)


def known_models() -> str:
    """Return a sentence with the names, for errors."""
    return f"Models that come with the package: {', '.join(released_names()) or 'none'}."


@contextmanager
def naming_released(name: object) -> Iterator[None]:
    """Add the names to the error that transformers raises about an unknown name.

    Raises:
        OSError: There is no such model, here or on the hub.
    """
    try:
        yield
    except OSError as error:
        if not isinstance(name, str) or Path(name).exists() or known_models() in str(error):
            raise
        raise OSError(f"{error} {known_models()}") from error
