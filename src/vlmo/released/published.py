"""Models that have a name: the one in the package, and weights that others have published."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_BEIT = "https://github.com/addf400/files/releases/download/"
VOCABULARIES = {
    "vlmo": "https://huggingface.co/google-bert/bert-base-uncased/resolve/main/vocab.txt",
    "beit3": f"{_BEIT}beit3/beit3.spm",
}
"""Address of the vocabulary that the files of a layout need."""


@dataclass(frozen=True)
class NamedModel:
    """A model that can be asked for by its name.

    Attributes:
        task: Its training: "pre-training" (stage 3), "text" (stage 2), "images" (stage 1),
            "backbone" (no head, or that of masked words), "visual-tokenizer", or the task that it
            was fine-tuned for.
        size: "base", "base_plus", "large" or "small".
        address: Of the published file; empty for a model that comes with the package.
        layout: Of that file: "vlmo", "beit", "vqkd" or "beit3".
        data: Set of `vlmo data prepare`, or "nocaps", that it was fine-tuned for; empty for
            another.
        reported: Split, metric and percent of each published result on it.
        source: Where these are written.
    """

    name: str
    task: str
    size: str
    image_size: int
    licence: str = "MIT"
    address: str = ""
    layout: str = ""
    data: str = ""
    reported: Sequence[tuple[str, str, float]] = ()
    source: str = ""

    @property
    def options(self) -> dict[str, float]:
        """Options of `vlmo.tasks.evaluate` for images as its publication evaluates it: unilm, `build_transform`."""
        if self.task != "classification":
            return {}
        # The middle 224 of 256 pixels; from 384 pixels on, and for BEiT-3, whole images.
        if self.layout == "beit" and self.image_size < 384:
            return {"center_crop": 224 / 256}
        return {"center_crop": 1.0}

    def published(self, metric: str) -> str:
        """Return the published values of a metric in percent, each with its split on a line; empty without any."""
        return "\n".join(
            f"{split} {percent:g}" for split, name, percent in self.reported if name == metric
        )


def _read_models() -> dict[str, NamedModel]:
    models = {}
    for entry in json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8")):
        reported = tuple(map(tuple, entry.pop("reported", ())))
        models[entry["name"]] = NamedModel(**entry, reported=reported)
    return models


MODELS = _read_models()
"""All models that have a name, by it."""
