"""The contract between `Encoder` and what runs a model, and the models of transformers that it takes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from jaxtyping import Float32
from PIL import Image

from vlmo.export.sessions import Pixels
from vlmo.folder import read_config

NO_MATCHING_HEAD = "this model has no matching head"
NO_FUSION_ENCODER = "this model has no fusion encoder"
# How texts were padded in training, by model type; SigLIP's text encoder reads the padding too.
TEXT_PADDING: dict[str, bool | str] = {
    "clip": True,
    "siglip": "max_length",
    "siglip2": "max_length",
}


class Engine(Protocol):
    """A model that embeds images and texts; with `can_match`, it also scores pairs.

    Attributes:
        device: Such as "cpu" or "cuda:0".
        dim: Size of a vector.
        image_size: Pixels each way that the model reads of an image.
        inverse_temperature: Factor that turns similarities into logits.
        can_match: True if `match` works.
        no_match: Reason why `match` is refused, where it is.
    """

    device: str
    dim: int
    image_size: int
    inverse_temperature: float
    can_match: bool
    no_match: str

    def pixels(self, image: Image.Image) -> Pixels:
        """An RGB image as the other methods take it: an array of one shape and type for all images of a size."""
        ...

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Numbers of tokens, special ones among them."""
        ...

    def embed_images(self, pixels: Sequence[Pixels]) -> Float32[np.ndarray, "image dim"]:
        """L2-normalised vectors."""
        ...

    def embed_texts(self, texts: Sequence[str]) -> Float32[np.ndarray, "text dim"]:
        """L2-normalised vectors."""
        ...

    def match(
        self, pixels: Sequence[Pixels], texts: Sequence[str], /
    ) -> Float32[np.ndarray, " pair"]:
        """Log-odds that each text belongs to its image; ValueError without a matching head."""
        ...

    def attention(
        self, pixels: Pixels, text: str, /
    ) -> tuple[list[str], Float32[np.ndarray, "word grid_h grid_w"]]:
        """Words of a text, and the attention of each to each patch; ValueError if the engine keeps none."""
        ...


def is_dual_encoder(folder: str | Path) -> bool:
    """Return True for a folder of transformers' CLIP, SigLIP or SigLIP 2; ValueError if it is no model folder."""
    return read_config(folder).get("model_type") in TEXT_PADDING
