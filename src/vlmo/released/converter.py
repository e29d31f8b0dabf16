"""The function that makes a model folder of a published file: that of `vlmo.checkpoints`, which stands on this package.

`import vlmo` registers it, so that models can be loaded by name from every layer.
"""

from __future__ import annotations

from collections.abc import Callable

Converter = Callable[..., object]
"""Called as `vlmo.checkpoints.importing.import_checkpoint`."""

_registered: list[Converter] = []


def register_converter(converter: Converter) -> None:
    """Let this function convert the published files that are downloaded by name."""
    _registered[:] = [converter]


def registered_converter() -> Converter:
    """Return the function that was registered last."""
    return _registered[0]
