"""Model folders: atomic writes, the model card, the class that `config.json` names, and how pixels are prepared."""

import json
from pathlib import Path
from typing import Any

from vlmo.released import find_model, no_model

_HALF = 0.5, [0.5, 0.5, 0.5]
# What an image processor may say: every part of this package prepares pixels so, and would get other vectors than the
# processor otherwise. 3 is bicubic; None is left to transformers.
_PIXELS = {
    "do_normalize": (None, True),
    "image_mean": (None, *_HALF),
    "image_std": (None, *_HALF),
    "resample": (None, 3),
}


def architectures(folder: str | Path) -> list[str]:
    """Return the classes that `config.json` of a model folder, or of a released model, names.

    Raises:
        ValueError: There is no such file (transformers would go on to look for the name on the hub), or it cannot be
            read.
    """
    file = Path(find_model(folder)) / "config.json"
    if not file.is_file():
        raise ValueError(no_model(folder))
    named = _read(file).get("architectures") or []
    if not isinstance(named, list):
        raise ValueError(f"{file}: architectures is {named!r}; expected a list of names")
    return [str(name) for name in named]


def check_pixels(folder: str | Path) -> None:
    """Validate that a model folder's processor prepares pixels as this package does; ValueError if it does not."""
    for name in ("processor_config.json", "preprocessor_config.json"):
        file = Path(find_model(folder)) / name
        settings = _read(file) if file.is_file() else {}
        settings = settings.get("image_processor") or settings
        for key, allowed in _PIXELS.items():
            if settings.get(key) not in allowed:
                raise ValueError(
                    f"{file}: {key} is {settings[key]}, but vlmo normalises pixels with mean and deviation 0.5 and "
                    "resizes bicubically (resample 3); correct the file if the model was trained so, or run the model "
                    "by transformers' own calls (VLMoProcessor, from_pretrained), which obey the file"
                )


def _read(file: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"{file} cannot be read: {error}") from error
