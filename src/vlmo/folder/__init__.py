"""Model folders: atomic writes, the model card, and the class that `config.json` names."""

import json
from pathlib import Path

from vlmo.released import find_model, no_model


def architectures(folder: str | Path) -> list[str]:
    """Return the classes that `config.json` of a model folder, or of a released model, names.

    Raises:
        ValueError: There is no such file (transformers would go on to look for the name on the hub), or it cannot be
            read.
    """
    file = Path(find_model(folder)) / "config.json"
    if not file.is_file():
        raise ValueError(no_model(folder))
    try:
        named = json.loads(file.read_text(encoding="utf-8")).get("architectures") or []
    except (ValueError, AttributeError, RecursionError) as error:
        raise ValueError(f"{file} cannot be read: {error}") from error
    if not isinstance(named, list):
        raise ValueError(f"{file}: architectures is {named!r}; expected a list of names")
    return [str(name) for name in named]
