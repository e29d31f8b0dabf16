"""Models that have a name: the one in the package, and weights that others have published."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

_BEIT = "https://github.com/addf400/files/releases/download/"
VOCABULARIES = {
    "vlmo": "https://huggingface.co/google-bert/bert-base-uncased/resolve/main/vocab.txt",
    "beit3": f"{_BEIT}beit3/beit3.spm",
}
"""Address of the vocabulary that the files of a layout need."""

_SOURCES = {
    "vlmo": "VLMo's paper, arXiv 2111.02358",
    "beit": "BEiT's README, unilm beit/README.md",
    "beitv2": "BEiT-2's guide, unilm beit2/get_started_for_image_classification.md",
    "beit3": "BEiT-3's README, unilm beit3/README.md",
}
_DATA = {"coco": "coco", "f30k": "flickr30k", "nlvr2": "nlvr2", "vqa": "vqav2", "nocaps": "nocaps"}
_DATA |= dict.fromkeys(("in1k", "ft1k", "ft22kto1k", "ft21kto1k"), "imagenet")


@dataclass(frozen=True)
class NamedModel:
    """A model that can be asked for by its name.

    Attributes:
        task: Its training: "pre-training" (stage 3), "text" (stage 2), "images" (stage 1), "backbone" (no head, or
            that of masked words), "visual-tokenizer", or the task that it was fine-tuned for.
        size: "base", "base_plus", "large" or "small".
        address: Of the published file; empty for a model that comes with the package.
        layout: Of that file: "vlmo", "beit", "vqkd" or "beit3".
        data: Set of `vlmo data prepare`, or "nocaps", that it was fine-tuned for; empty for another.
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
    reported: tuple[tuple[str, str, float], ...] = ()
    source: str = ""

    @property
    def options(self) -> dict[str, float]:
        """Options of `vlmo.tasks.evaluate` for images as its publication evaluates it: unilm, `build_transform`."""
        if self.task != "classification":
            return {}
        return {
            "center_crop": 224 / 256 if self.layout == "beit" and self.image_size < 384 else 1.0
        }

    def published(self, metric: str) -> str:
        """Return the published values of a metric in percent, each with its split on a line; empty without any."""
        return "\n".join(
            f"{split} {percent:g}" for split, name, percent in self.reported if name == metric
        )


def _read_table() -> dict[str, NamedModel]:
    folder = Path(__file__).with_name("vlmo-small")
    pixels = json.loads((folder / "config.json").read_text(encoding="utf-8"))["image_size"]
    models = {
        folder.name: NamedModel(folder.name, "retrieval", "small", pixels, licence="CC-BY-SA-4.0")
    }
    layout = address = ""
    for line in Path(__file__).with_suffix(".txt").read_text(encoding="utf-8").splitlines():
        if line.startswith("["):
            layout, address = line.strip("[]").split()
        elif line and not line.startswith("#"):
            name, task, file, *words = re.split(r" +", line, maxsplit=3)
            numbers = [number.split() for number in "".join(words).split(", ") if number]
            models[name] = NamedModel(
                name,
                task,
                size="base_plus" if "base_plus" in file else "large" if "large" in file else "base",
                image_size=int(file.partition("_patch16_")[2][:3] or 224),
                address=address + file,
                layout=layout,
                data=next((_DATA[part] for part in name.split("-") if part in _DATA), ""),
                reported=tuple(
                    (each[0], each[1] if each[2:] else "accuracy", float(each[-1]))
                    for each in numbers
                ),
                source=_SOURCES[name.partition("-")[0]] if numbers else "",
            )
    return models


MODELS = _read_table()
"""All models that have a name, by it."""
