"""Attention of the words of a drawing's name, by the small model that comes with the package."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float32
from PIL import Image

from figures.svg import Canvas
from vlmo.data.sources import decode_image, open_source
from vlmo.retrieval.encoder import Encoder
from vlmo.visualization import data_uri, heat_map

MODEL, SOURCE = "vlmo-small", "emoji-pairs"
NAMES = ("red apple", "potted plant", "dog face")
"""Drawings of the part that the model has not seen in training, by their names of two words."""


@dataclass(frozen=True)
class Looked:
    """A drawing, the words of its name, and the weight of each patch for each word."""

    image: Image.Image
    words: list[str]
    maps: Float32[np.ndarray, "word grid_h grid_w"]


@functools.cache
def looked() -> tuple[Looked, ...]:
    """Attention of the fusion encoder for each drawing with its name."""
    encoder = Encoder(MODEL, device="cpu")
    named = {row["captions"][0]: row for row in open_source(SOURCE, split="test")}
    images = {name: decode_image(named[name]["image"]) for name in NAMES}
    return tuple(Looked(image, *encoder.attention(image, name)) for name, image in images.items())


# ---------------------------------------------------------------------------------------------------------- the tiles

_TILE, _GAP, _HEAD = 116, 14, 24


def maps() -> str:
    """A row for each drawing: as it is, then with the heat of each word of its name."""
    found = looked()
    columns = 1 + max(len(each.words) for each in found)
    width, height = columns * (_TILE + _GAP) - _GAP, len(found) * (_HEAD + _TILE + _GAP) - _GAP
    canvas = Canvas(width, height, name="attention", title="Attention of the words of three names")
    said = []
    for row, (name, each) in enumerate(zip(NAMES, found, strict=True)):
        y = row * (_HEAD + _TILE + _GAP)
        heats = [
            heat_map(each.image, torch.from_numpy(weights), size=2 * _TILE) for weights in each.maps
        ]
        heads, tiles = [name, *(f"“{word}”" for word in each.words)], [each.image, *heats]
        for column, (head, tile) in enumerate(zip(heads, tiles, strict=True)):
            x = column * (_TILE + _GAP)
            canvas.text(head, x=x + _TILE / 2, y=y + 15, kind="" if column else "strong")
            canvas.image(data_uri(tile, size=2 * _TILE), x=x, y=y + _HEAD, side=_TILE)
        for word, weights in zip(each.words, each.maps, strict=True):
            down, right = np.unravel_index(weights.argmax(), weights.shape)
            said.append(
                f"{name}: “{word}” has its largest weight at row {down + 1}, column {right + 1}"
            )
    down, right = found[0].maps.shape[1:]
    return canvas.finished(about=f"Of {down} x {right} patches: {'; '.join(said)}.")
