"""Model folders: atomic writes, the model card, and what is read of folders that strangers may have made."""

import json
from os import PathLike
from pathlib import Path
from typing import Any

from vlmo.released import find_model, missing_model

# The settings that an image processor may have, or None: every part of this package prepares pixels so, and would get
# other vectors than the processor otherwise. 3 is bicubic.
_PIXELS = {
    "do_resize": [True],
    "do_center_crop": [False],
    "do_rescale": [True],
    "rescale_factor": [1 / 255],
    "do_normalize": [True],
    "image_mean": [0.5, [0.5, 0.5, 0.5]],
    "image_std": [0.5, [0.5, 0.5, 0.5]],
    "resample": [3],
}

WEIGHTS = "model.safetensors"
JsonObject = dict[str, Any]
"""An object as JSON has it, such as a configuration."""
_INDEX_SUFFIX = ".index.json"


def file_in(folder: str | Path, name: object) -> Path:
    """Return a file of a folder by a name that another file of it may have given.

    ValueError if the name is a path, is none of a regular file (a named pipe would be waited for),
    or is a link to elsewhere. Links of the hub's cache, from folders in `snapshots` to `blobs`
    beside, are followed.
    """
    path = Path(folder) / str(name)
    root = Path(folder).resolve()
    # Files of the hub's cache are links from `snapshots` to the `blobs` beside.
    targets = {root}
    for parent in root.parents:
        if parent.name == "snapshots":
            targets.add(parent.with_name("blobs"))
    is_name = path.name == str(name)
    if not is_name or not path.is_file() or path.resolve().parent not in targets:
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
        file = Path(folder) / name
        if file.is_file():
            return [file]
        index_file = Path(f"{file}{_INDEX_SUFFIX}")
        if index_file.is_file():
            return [file_in(folder, shard) for shard in _shards(index_file, suffix=file.suffix)]
    return []


def _shards(index_file: Path, *, suffix: str) -> list[str]:
    index = read_json(index_file)
    shards = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(shards, dict) or not shards:
        raise ValueError(f"{index_file} has no weight_map; expected the index of a sharded model")
    names = sorted(set(map(str, shards.values())))
    for name in names:
        if Path(name).suffix != suffix:
            raise ValueError(f"{index_file} names {name!r}; expected files that end in {suffix}")
    return names


def check_folder(folder: str | Path, *names: str) -> None:
    """Refuse, before transformers reads it, a folder from which it would take files or models that lie elsewhere.

    Args:
        names: As for `weight_files`; others than safetensors are read as `check_pickles` says.

    Raises:
        ValueError: It holds an adapter, whose model transformers would load, its index is none of
            files in it, or its weights cannot be read within bounds.
    """
    if (Path(folder) / "adapter_config.json").is_file():
        raise missing_model(folder)
    for path in weight_files(folder, *names):
        if path.suffix != Path(WEIGHTS).suffix:
            # This module imports torch.
            from vlmo.folder.pickles import check_pickles

            with path.open("rb") as file:
                check_pickles(file, path)


def read_config(folder: str | Path) -> JsonObject:
    """Return `config.json` of a model folder, or of a released model; ValueError if it is missing or damaged."""
    file = Path(find_model(folder)) / "config.json"
    if not file.is_file():
        # Transformers would go on to look for the name on the hub.
        raise missing_model(folder)
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
    names = read_config(folder).get("architectures") or []
    if not isinstance(names, list):
        raise ValueError(
            f"{folder}/config.json: architectures is {names!r}; expected a list of names"
        )
    return [str(name) for name in names]


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
    folder = Path(find_model(folder))
    for name in ("processor_config.json", "preprocessor_config.json"):
        if (folder / name).is_file():
            _check_pixels(folder / name, image_size=image_size)


def _check_pixels(file: Path, *, image_size: int | None) -> None:
    """Raise ValueError if a processor's file asks for pixels that vlmo prepares in another way."""
    settings = read_json(file)
    if isinstance(settings, dict):
        # `processor_config.json` holds the image processor's settings in its own.
        settings = settings.get("image_processor") or settings
    if not isinstance(settings, dict):
        raise ValueError(
            f"{file} holds {settings!r}; expected an object, the settings of a processor"
        )
    for key, allowed in _PIXELS.items():
        value = settings.get(key)
        if value is not None and value not in allowed:
            raise ValueError(
                f"{file}: {key} is {value}, but vlmo resizes the whole image bicubically (resample 3) and "
                "normalizes pixels with mean and deviation 0.5: correct the file, or run the model by transformers'"
                " own calls"
            )
    _check_size(file, settings, image_size=image_size)


def _check_size(file: Path, settings: JsonObject, *, image_size: int | None) -> None:
    """Raise ValueError unless images come out as whole patches, and as squares of `image_size` where it is given."""
    patch_size = read_config(file.parent).get("patch_size")
    # A wrong configuration is reported where it is loaded.
    if type(patch_size) is not int or patch_size < 1:
        patch_size = 1
    size = settings.get("size", {"height": patch_size, "width": patch_size})
    sides = [size, size]
    if isinstance(size, dict):
        sides = [size.get("height"), size.get("width")]
    if any(type(side) is not int or side < 1 or side % patch_size for side in sides):
        raise ValueError(
            f"{file}: size is {size!r}; expected height and width, multiples of {patch_size} pixels"
        )
    is_square = sides[0] == sides[1]
    aspect = settings.get("aspect_patch_size")
    if aspect is not None and not (aspect == patch_size and is_square):
        raise ValueError(
            f"{file}: aspect_patch_size is {aspect!r}, size {size!r}; expected {patch_size}, and a square"
        )
    if (
        image_size is not None
        and "size" in settings
        and (aspect or sides != [image_size, image_size])
    ):
        raise ValueError(
            f"{file}: images are no squares of {image_size} px, and an export needs these"
        )
