"""Small data sets, drawn by code or out of installed packages, built once and kept in a cache folder."""

from __future__ import annotations

import hashlib
import importlib
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from filelock import FileLock

from vlmo.folder.atomic import write_folder
from vlmo.lazy import install_command
from vlmo.released.download import cache_folder

if TYPE_CHECKING:
    from datasets import Dataset

SETS: dict[str, str] = {}
"""Modules that build the sets, by the names of the sets."""


def register(module: str, *names: str) -> None:
    """Make the sets of a module known by their names.

    Args:
        module: Dotted name of a module with `SETS`, a function without arguments by the name of a set, which
            returns its features and the rows by split; `PACKAGES`, the distributions that it reads; and `LABELS`,
            the answers or classes of sets that have them, by name.
    """
    SETS.update(dict.fromkeys(names, module))


register(f"{__name__}.emoji", "emoji-pairs")
register(f"{__name__}.icons", "lucide-icons")
register(
    f"{__name__}.shapes",
    "shapes",
    "shapes-crowded",
    "shapes-binding",
    "shapes-half-truths",
    "shapes-questions",
    "shapes-statements",
)


def load(name: str, *, split: str, cache_dir: Path | None = None) -> Dataset:
    """Load rows of `split` of the built-in set `name`; ValueError if it has no such split, else as `build`."""
    from datasets import Dataset

    folder = build(name, cache_dir=cache_dir)
    splits = sorted(entry.name for entry in folder.iterdir())
    if split not in splits:
        raise ValueError(f"{name}: no split {split!r}; it has {', '.join(splits)}")
    return Dataset.load_from_disk(str(folder / split))


def labels(name: str) -> list[str]:
    """Return the answers or classes of the built-in set `name`, in the order of their numbers; ValueError without."""
    labels = getattr(_builder(name), "LABELS", {})
    if name not in labels:
        raise ValueError(f"the built-in set {name} has no answers or classes; name data that have")
    return list(labels[name])


def built_folder(root: Path | None = None) -> Path:
    """Return the folder below `root`, or the cache folder, that built-in sets are built into."""
    return (root or cache_folder()) / "builtin"


def build(name: str, *, cache_dir: Path | None = None) -> Path:
    """Return the folder of the built-in set `name`, with a saved data set for all its splits.

    It is built (seconds) where the cache does not hold it yet, and anew where code or packages have changed.

    Raises:
        ModuleNotFoundError: A package that the set comes from is not installed.
    """
    module = _builder(name)
    root = cache_dir or cache_folder()
    data = Path(__file__).parents[1]
    builder = Path(str(module.__file__))
    # All that rows depend on: the builders' code, and that of the cells and features.
    files = {builder, data / "decoding.py", data / "schema.py", *data.glob("builtin/*.py")}
    if module.__package__:
        files.update(builder.parent.glob("*.py"))
    digest = hashlib.sha256(platform.python_version().encode())
    for file in sorted(files):
        digest.update(file.read_bytes())
    for package in module.PACKAGES:
        digest.update(f"{package}=={version(package)}".encode())
    folder = built_folder(root) / f"{name}-{digest.hexdigest()[:16]}"
    if folder.is_dir():
        return folder
    from datasets import Dataset

    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(root / f".{name}.lock"):  # others wait instead of building the same
        if not folder.is_dir():
            with write_folder(folder) as aside:
                features, splits = module.SETS[name]()
                for split, rows in splits.items():
                    Dataset.from_list(rows, features=features).save_to_disk(str(aside / split))
    return folder


def _builder(name: str) -> ModuleType:
    try:
        module = importlib.import_module(SETS[name])
        for package in module.PACKAGES:
            version(package)
    except (ModuleNotFoundError, PackageNotFoundError) as error:
        raise ModuleNotFoundError(
            f"the built-in set needs a package that is not installed: {error}. Install it with: "
            + install_command("quickstart")
        ) from error
    return module
