"""Small real data sets out of installed packages, built once and kept in a cache folder."""

import hashlib
import importlib
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType
from typing import Any

from datasets import Dataset
from filelock import FileLock

from vlmo.folder.atomic import write_folder
from vlmo.lazy import install_command
from vlmo.released.download import cache_folder

_MODULES = {
    name: module
    for module, names in {
        "emoji": "emoji-pairs drawings-pairs drawings-concepts",
        "icons": "lucide-icons icon-fonts",
        "english": "english-text",
        "easy_vqa": "easy-vqa easy-vqa-balanced",
        "scenes": "scenes scenes-binding",
        "scene_questions": "scenes-questions",
        "scene_statements": "scenes-statements",
        "scene_pixels": "scenes-masks scenes-kinds",
    }.items()
    for name in names.split()
}
"""Name of each set and the module here that builds it: `PACKAGES` it reads and `build() -> dict[name, Built]`.

A module whose sets hold rows of another set names it as `SOURCE_SET`; its `build` takes that set's rows by split.
"""

_MODULES |= {
    name.replace("scenes", "shapes"): module
    for name, module in _MODULES.items()
    if name.startswith("scenes") and module != "scene_pixels"
}
"""Scenes of shapes alone are built by the same modules."""

NAMES = tuple(_MODULES)
_WITH_LABELS = (
    "easy-vqa",
    "easy-vqa-balanced",
    "scenes-questions",
    "scenes-masks",
    "shapes-questions",
)


def is_built_in(name: str) -> bool:
    """Return True for the name of a set, and for that of a set of scenes with a folder after it (`scenes:FOLDER`)."""
    base, colon, _ = name.partition(":")
    return base in NAMES and (not colon or base.startswith("scenes"))


def load(name: str, *, split: str, cache_dir: Path | None = None) -> Dataset:
    """Load rows of `split` of the built-in set `name`, which is built where the cache does not hold it yet (seconds).

    After the name of a set of scenes, ":FOLDER" may name a prepared set of icons, which its scenes then show too.

    Raises:
        ValueError: The set has no such split, or the folder is no prepared set.
        ModuleNotFoundError: A package that the set comes from is not installed.
    """
    root = cache_dir or cache_folder()
    name, _, icons = name.partition(":")
    options: dict[str, Any] = {"icons": Path(icons).expanduser().absolute()} if icons else {}
    if name.startswith("shapes"):
        options["only_shapes"] = True
    folder = _built(_MODULES[name], root=root, options=options) / name.replace("shapes", "scenes")
    splits = sorted(entry.name for entry in folder.iterdir())
    if split not in splits:
        raise ValueError(f"{name}: no split {split!r}; it has {', '.join(splits)}")
    return Dataset.load_from_disk(str(folder / split))


def labels(name: str) -> list[str]:
    """Return the answers, or classes of pixels, of the built-in set `name`, in the order of their numbers.

    Raises:
        ValueError: The set has none.
    """
    name = name.partition(":")[0]
    if name not in _WITH_LABELS:
        raise ValueError(f"{name} has neither answers nor classes of pixels; {', '.join(_WITH_LABELS)} have")
    return list(importlib.import_module(f"{__name__}.{_MODULES[name]}").LABELS)


def packages(name: str) -> dict[str, str]:
    """Return the packages that the built-in set `name` comes from, with their versions.

    Raises:
        ModuleNotFoundError: One of them is not installed.
    """
    return {package: version(package) for package in _builder(_MODULES[name.partition(":")[0]]).PACKAGES}


def built_folder(root: Path | None = None) -> Path:
    """Return the folder below `root`, or the cache folder, that built-in sets are built into."""
    return (root or cache_folder()) / "builtin"


def _built(module_name: str, *, root: Path, options: dict[str, Any]) -> Path:
    """Return the folder with every set of one module, which is written atomically."""
    module = _builder(module_name)
    # Any builder's code, the code that builders share, the versions of the packages read and of Python.
    here = Path(__file__).parent
    digest = hashlib.sha256(platform.python_version().encode())
    for file in (
        *sorted(here.glob("*.py")),
        *(
            here.parent / f"{name}.py"
            for name in ("schema", "decoding", "compose", "prepare/icon_names", "prepare/svg")
        ),
    ):
        digest.update(file.read_bytes())
    for package in module.PACKAGES:
        digest.update(f"{package}=={version(package)}".encode())
    digest.update(repr(options).encode() if options else b"")
    if icons := options.get("icons"):
        if not (icons / "train" / "state.json").is_file():
            raise ValueError(f"{icons} is no prepared set; vlmo data prepare icons writes one")
        digest.update((icons / "train" / "state.json").read_bytes())
    folder = built_folder(root) / f"{module_name}-{digest.hexdigest()[:16]}"
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(root / f".{module_name}.lock"):  # others wait instead of building the same
        if not folder.is_dir():
            _build(module, folder, root=root, options=options)
    return folder


def _build(module: ModuleType, folder: Path, *, root: Path, options: dict[str, Any]) -> None:
    given: tuple[dict[str, list[dict[str, Any]]], ...] = ()
    if source := getattr(module, "SOURCE_SET", None):
        splits = () if options.get("only_shapes") else ("train", "test")
        given = ({split: load(source, split=split, cache_dir=root).to_list() for split in splits},)
    with write_folder(folder) as aside:
        for name, (features, splits) in module.build(*given, **options).items():
            for split, rows in splits.items():
                Dataset.from_list(rows, features=features).save_to_disk(str(aside / name / split))


def _builder(module_name: str) -> ModuleType:
    try:
        module = importlib.import_module(f"{__name__}.{module_name}")
        for package in module.PACKAGES:
            version(package)
    except (ModuleNotFoundError, PackageNotFoundError) as error:
        raise ModuleNotFoundError(
            f"the built-in set needs a package that is not installed: {error}. Install it with: "
            + install_command("quickstart")
        ) from error
    return module
