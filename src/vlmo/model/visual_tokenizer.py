"""Visual tokenizers: pictures into discrete tokens, the targets of masked image modelling.

`VQVisualTokenizer` is small and trained by this project; `DalleVisualTokenizer` wraps DALL-E's published encoder.
Both read `pixel_values` in [-1, 1] (mean = std = 0.5) and answer with one token per patch of the model's grid.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol, Self, TypeVar

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import FlavaImageCodebook, FlavaImageCodebookConfig, PreTrainedConfig, PreTrainedModel

from vlmo.model.vq_tokenizer import (
    VQVisualTokenizer,
    VQVisualTokenizerConfig,
    VQVisualTokenizerOutput,
    check_pictures,
    codebook_perplexity,
    float32_math,
)
from vlmo.types import normalize_pixels

__all__ = [
    "DalleVisualTokenizer",
    "VQVisualTokenizer",
    "VQVisualTokenizerConfig",
    "VQVisualTokenizerOutput",
    "VisualTokenizer",
    "codebook_perplexity",
    "load_visual_tokenizer",
]

DALLE_STRIDE = 8
DALLE_EPSILON = 0.1  # DALL-E squeezes its pixels into [0.1, 0.9] (DALL-E, "The Logit-Laplace Distribution")


class VisualTokenizer(Protocol):
    """What masked image modelling asks of a visual tokenizer."""

    @property
    def num_tokens(self) -> int:
        """Size of the visual vocabulary; tokens lie in [0, num_tokens)."""
        ...

    def tokenize(
        self, pixel_values: Float[Tensor, "batch 3 height width"], *, grid: tuple[int, int]
    ) -> Int[Tensor, "batch patch"]:
        """Tokens of a grid of (rows, columns) patches, row by row.

        Computed in float32 and without gradient, whatever the mode and the autocast around the call.
        """
        ...


class DalleVisualTokenizer(nn.Module):
    """DALL-E's encoder (8,192 tokens, one for 8 pixels), as BEiT and VLMo use it (BEiT, "Image Representations")."""

    def __init__(self, codebook: FlavaImageCodebook) -> None:
        super().__init__()
        self.codebook = codebook

    @classmethod
    def from_pretrained(cls, name_or_folder: str | Path) -> Self:
        """The encoder in a folder or a repository of the hub (such as `facebook/flava-image-codebook`), frozen.

        Raises:
            ValueError: There is none, or it is something else.
        """
        _read_model_type(name_or_folder, expected={FlavaImageCodebookConfig.model_type})
        return _freeze(cls(_load_complete(FlavaImageCodebook, name_or_folder)))

    @property
    def num_tokens(self) -> int:
        """Size of the visual vocabulary."""
        return self.codebook.config.vocab_size

    @torch.no_grad()
    def tokenize(
        self, pixel_values: Float[Tensor, "batch 3 height width"], *, grid: tuple[int, int]
    ) -> Int[Tensor, "batch patch"]:
        """Tokens of the pictures resized to 8 pixels per patch of `grid`, row by row; see `VisualTokenizer`.

        Raises:
            ValueError: They are no pictures of three channels, or the grid is empty.
        """
        check_pictures(pixel_values)
        if min(grid) < 1:
            raise ValueError(f"grid is {tuple(grid)}; give numbers of rows and columns from 1 up.")
        with float32_math(pixel_values):
            pixels = 0.5 * normalize_pixels(pixel_values).float() + 0.5
            size = (grid[0] * DALLE_STRIDE, grid[1] * DALLE_STRIDE)
            if tuple(pixels.shape[-2:]) != size:
                pixels = F.interpolate(pixels, size=size, mode="bicubic", antialias=True)
            pixels = (1 - 2 * DALLE_EPSILON) * pixels.clamp(0, 1) + DALLE_EPSILON
            return self.codebook.get_codebook_indices(pixels).flatten(1)


def load_visual_tokenizer(name_or_folder: str | Path) -> VQVisualTokenizer | DalleVisualTokenizer:
    """The visual tokenizer in a folder or a repository of the hub, frozen, in evaluation mode and float32.

    Raises:
        ValueError: There is none, it is something else, its weights are incomplete, or it was never trained.
    """
    ours, dalle = VQVisualTokenizerConfig.model_type, FlavaImageCodebookConfig.model_type
    if _read_model_type(name_or_folder, expected={ours, dalle}) == dalle:
        return DalleVisualTokenizer.from_pretrained(name_or_folder)
    tokenizer = _load_complete(VQVisualTokenizer, name_or_folder)
    tokenizer.check_started()
    return _freeze(tokenizer)


Model = TypeVar("Model", bound=PreTrainedModel)
Module = TypeVar("Module", bound=nn.Module)


def _freeze(module: Module) -> Module:
    return module.requires_grad_(requires_grad=False).eval()


def _read_model_type(name_or_folder: str | Path, *, expected: set[str]) -> str:
    try:
        found, _ = PreTrainedConfig.get_config_dict(str(name_or_folder))
        if not found:
            raise OSError("there is no config.json.")
    except OSError as error:
        raise ValueError(
            f"no visual tokenizer at {str(name_or_folder)!r}: {error} Give a folder with config.json and "
            "model.safetensors, or the name of a repository on the hub."
        ) from error
    model_type = found.get("model_type")
    if model_type not in expected:
        raise ValueError(
            f"{str(name_or_folder)!r} holds a model of type {model_type!r}, which is no visual tokenizer for this use; "
            f"expected {' or '.join(sorted(expected))}."
        )
    return model_type


def _load_complete(model_class: type[Model], name_or_folder: str | Path) -> Model:
    try:
        loaded: Any = model_class.from_pretrained(str(name_or_folder), output_loading_info=True, dtype=torch.float32)
    except (OSError, RuntimeError, SafetensorError) as error:
        raise ValueError(
            f"the weights of the visual tokenizer at {str(name_or_folder)!r} cannot be read: {error}"
        ) from error
    model, report = loaded
    if missing := sorted(report["missing_keys"]):
        raise ValueError(
            f"the visual tokenizer at {str(name_or_folder)!r} lacks {len(missing)} weights, {missing[0]} among them; "
            "save it again."
        )
    return model
