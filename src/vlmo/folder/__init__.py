"""Model folders: atomic writes, the model card, and what is read of folders that strangers may have made."""

import json
from os import PathLike
from pathlib import Path
from typing import Any

from vlmo.released import find_model, missing_model

_HALF = 0.5, [0.5, 0.5, 0.5]
# What an image processor may say: every part of this package prepares pixels so, and would get other vectors than the
# processor otherwise. 3 is bicubic; None is left to transformers.
_PIXELS = {
    "do_resize": (None, True),
    "do_center_crop": (None, False),
    "do_rescale": (None, True),
    "rescale_factor": (None, 1 / 255),
    "do_normalize": (None, True),
    "image_mean": (None, *_HALF),
    "image_std": (None, *_HALF),
    "resample": (None, 3),
}

WEIGHTS = "model.safetensors"
_INDEX_SUFFIX = ".index.json"


def file_in(folder: str | Path, name: object) -> Path:
    """Return a file of a folder by a name that another file of it may have given.

    ValueError if the name is a path, is none of a regular file (a named pipe would be waited for), or is a link to
    elsewhere. Links of the hub's cache, from folders in `snapshots` to `blobs` beside, are followed.
    """
    root = Path(folder).resolve()
    path = Path(folder) / str(name)
    caches = (each.with_name("blobs") for each in root.parents if each.name == "snapshots")
    blobs = next(filter(Path.is_dir, caches), root)
    if path.name != str(name) or not path.is_file() or path.resolve().parent not in {root, blobs}:
        raise ValueError(
            f"{folder} has no file {str(name)!r} (a name, no path and no link to elsewhere); is it whole?"
        )
    return path


def weight_files(folder: str | Path, *names: str) -> list[Path]:
    """Return the file with the weights of a folder, or its shards, by the first of `names` that is there; maybe none.

    Args:
        names: By default that of our model folders, whose shards too must be safetensors.

    Raises:
        ValueError: An index of shards cannot be read, or names what is no file of the folder.
    """
    for name in names or (WEIGHTS,):
        if (file := Path(folder) / name).is_file():
            return [file]
        if (file := Path(folder) / f"{name}{_INDEX_SUFFIX}").is_file():
            index = read_json(file)
            shards = index.get("weight_map") if isinstance(index, dict) else None
            if not isinstance(shards, dict) or not shards:
                raise ValueError(f"{file} has no weight_map; expected the index of a sharded model")
            if others := [
                shard
                for shard in map(str, shards.values())
                if Path(shard).suffix != Path(name).suffix
            ]:
                raise ValueError(
                    f"{file} names {others[0]!r}; expected files that end in {Path(name).suffix}"
                )
            return [file_in(folder, shard) for shard in sorted(set(shards.values()))]
    return []


def check_folder(folder: str | Path, *names: str) -> None:
    """Refuse, before transformers reads it, a folder from which it would take files or models that lie elsewhere.

    Args:
        names: As for `weight_files`; others than safetensors are read as `check_pickles` says.

    Raises:
        ValueError: It holds an adapter, whose model transformers would load, its index is none of files in it, or its
            weights cannot be read within bounds.
    """
    if (Path(folder) / "adapter_config.json").is_file():
        raise missing_model(folder)
    for path in weight_files(folder, *names):
        if path.suffix != Path(WEIGHTS).suffix:
            from vlmo.folder.pickles import check_pickles  # which imports torch

            with path.open("rb") as file:
                check_pickles(file, path)


def read_config(folder: str | Path) -> dict[str, Any]:
    """Return `config.json` of a model folder, or of a released model; ValueError if it is missing or damaged."""
    file = Path(find_model(folder)) / "config.json"
    if not file.is_file():
        raise missing_model(folder)  # transformers would go on to look for the name on the hub
    config = read_json(file)
    if not isinstance(config, dict):
        raise ValueError(f"{file} holds no JSON object; expected the configuration of a model")
    return config


def read_json(path: Path) -> Any:
    """Return the content of a JSON file; ValueError if it is none."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as problem:
        raise ValueError(f"{path} is no JSON ({problem})") from None


def architectures(folder: str | Path) -> list[str]:
    """Return the classes that `config.json` of a model folder, or of a released model, names; ValueError as there."""
    named = read_config(folder).get("architectures") or []
    if not isinstance(named, list):
        raise ValueError(
            f"{folder}/config.json: architectures is {named!r}; expected a list of names"
        )
    return [str(name) for name in named]


def write_modules(folder: str | PathLike) -> None:
    """Write the file by which sentence-transformers finds the class that embeds by a model folder."""
    module = {
        "idx": 0,
        "name": "0",
        "path": "",
        "type": "vlmo.integrations.sentence_transformers.VLMoEmbedder",
    }
    (Path(folder) / "modules.json").write_text(json.dumps([module]) + "\n", encoding="utf-8")


def check_processor(folder: str | Path, *, image_size: int | None = None) -> None:
    """Validate that a model folder's processor prepares pixels as this package does; ValueError if it does not.

    With `image_size`, it must give squares of this size.
    """
    for name in ("processor_config.json", "preprocessor_config.json"):
        file = Path(find_model(folder)) / name
        settings = read_json(file) if file.is_file() else {}
        if isinstance(settings, dict):
            settings = settings.get("image_processor") or settings
        if not isinstance(settings, dict):
            raise ValueError(
                f"{file} holds {settings!r}; expected an object, the settings of a processor"
            )
        for key, allowed in _PIXELS.items():
            if settings.get(key) not in allowed:
                raise ValueError(
                    f"{file}: {key} is {settings[key]}, but vlmo resizes the whole image bicubically (resample 3) and "
                    "normalises pixels with mean and deviation 0.5: correct the file, or run the model by transformers'"
                    " own calls"
                )
        patch = (
            found
            if type(found := read_config(folder).get("patch_size")) is int and found > 0
            else 1
        )
        size = settings.get("size", {"height": patch, "width": patch})
        aspect = settings.get("aspect_patch_size")
        sides = (
            [size.get(side) for side in ("height", "width")]
            if isinstance(size, dict)
            else [size, size]
        )
        if any(type(side) is not int or side < 1 or side % patch for side in sides):
            raise ValueError(
                f"{file}: size is {size!r}; expected height and width, multiples of {patch} pixels"
            )
        if aspect is not None and (aspect != patch or len({*sides}) > 1):
            raise ValueError(
                f"{file}: aspect_patch_size is {aspect!r}, size {size!r}; expected {patch}, and a square"
            )
        if image_size is not None and settings.get("size") and (aspect or {*sides} != {image_size}):
            raise ValueError(
                f"{file}: images are no squares of {image_size} px, and an export needs these"
            )
