"""Which classes the model of a folder is of."""

from __future__ import annotations

import json
from pathlib import Path

from vlmo.released import find_model, known_models


def architectures(folder: str | Path) -> list[str]:
    """Classes that `config.json` of a model folder names, or of a model that comes with the package.

    Raises:
        ValueError: There is no such file (transformers would go on to look for the name on the hub), or it cannot be
            read.
    """
    file = Path(find_model(folder)) / "config.json"
    if not file.is_file():
        raise ValueError(
            f"{folder} is no model folder: it has no config.json. A run leaves one under model/. {known_models()}"
        )
    try:
        named = json.loads(file.read_text(encoding="utf-8")).get("architectures") or []
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{file} cannot be read: {error}") from error
    if not isinstance(named, list):
        raise ValueError(f"{file}: architectures is {named!r}; expected a list of names")
    return named
