"""Semantic segmentation: the classes of an image's pixels in sliding windows, and the image tinted by them."""

from __future__ import annotations

import colorsys
import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn import functional as F

from vlmo.evaluation.inference import evaluating

if TYPE_CHECKING:
    from vlmo.model import VLMoForSemanticSegmentation

_STRIDE = 2 / 3
"""Share of a window between the beginnings of two neighbours, as mmsegmentation has it for ADE20K (341 of 512)."""
_GOLDEN = 0.618033988749895  # steps of this share of the color circle keep neighbours apart, however many there are
_LINE, _MARGIN = 18, 6
_STRENGTH = 0.55


def segment(
    model: VLMoForSemanticSegmentation,
    pixel_values: Float[Tensor, "3 height width"],
    *,
    size: tuple[int, int] | None = None,
    batch_size: int = 16,
) -> Float[Tensor, "classes out_height out_width"]:
    """Return the logits of each pixel, on the model's device.

    Windows of the training crop's size begin every two thirds of one; logits are averaged where they overlap. An image
    smaller than a window is padded with grey, as crops are in training.

    Args:
        size: Height and width of the result; by default the image's.
        batch_size: Windows that go through the model at a time.

    Raises:
        ValueError: The model returns NaN.
    """
    pixel_values, window = pixel_values.to(model.device), model.config.image_size
    height, width = pixel_values.shape[1:]
    padded = F.pad(pixel_values, (0, max(0, window - width), 0, max(0, window - height)))
    corners = list(itertools.product(*(window_starts(side, window=window) for side in padded.shape[1:])))
    with evaluating(model):
        total = padded.new_zeros(cast("int", model.config.num_labels), *padded.shape[1:])
        count = padded.new_zeros(padded.shape[1:])
        for start in range(0, len(corners), batch_size):
            chunk = corners[start : start + batch_size]
            windows = torch.stack([padded[:, top : top + window, left : left + window] for top, left in chunk])
            for (top, left), logits in zip(chunk, model(windows).logits.float(), strict=True):
                total[:, top : top + window, left : left + window] += logits
                count[top : top + window, left : left + window] += 1
        logits = (total / count)[:, :height, :width]
        if logits.isnan().any():
            raise ValueError("the logits contain NaN; check the weights of the model")
        if size is not None and size != logits.shape[1:]:
            logits = F.interpolate(logits[None], size=size, mode="bilinear", align_corners=False)[0]
        return logits


def window_starts(length: int, *, window: int) -> list[int]:
    """Return the starts of windows on a side, every two thirds of one and one at its end."""
    stride = max(1, int(window * _STRIDE))
    count = max(0, -(-(length - window) // stride)) + 1
    return [max(0, min(number * stride, length - window)) for number in range(count)]


def palette(num_classes: int) -> UInt8[np.ndarray, "classes 3"]:
    """Return a color for each class, always the same; class 0 is grey, as it is often the background."""
    colors = [(0.5, 0.5, 0.5)]
    colors += [
        colorsys.hsv_to_rgb((number * _GOLDEN) % 1, 0.55 + 0.45 * (number % 2), 1.0 - 0.25 * (number % 3 == 2))
        for number in range(1, num_classes)
    ]
    return np.rint(255 * np.array(colors[:num_classes])).astype(np.uint8)


def overlay(image: Image.Image, classes: UInt8[np.ndarray, "height width"], *, names: Sequence[str]) -> Image.Image:
    """Return the image tinted by class, with the names of its classes below; ValueError for other sizes, or no name."""
    if image.size != classes.shape[::-1] or int(classes.max()) >= len(names):
        raise ValueError(
            f"an image of {image.width} x {image.height} and classes of {classes.shape[1]} x {classes.shape[0]} "
            f"with numbers up to {classes.max()} for {len(names)} names; expected equal sizes and a name for each class"
        )
    colors = palette(len(names))
    pixels = np.asarray(image.convert("RGB"), dtype=np.float64)
    tinted = (1 - _STRENGTH) * pixels + _STRENGTH * colors[classes]
    there, counts = np.unique(classes, return_counts=True)
    order = there[np.argsort(-counts, kind="stable")]
    canvas = Image.new("RGB", (image.width, image.height + _MARGIN + _LINE * len(order)), "white")
    canvas.paste(Image.fromarray(np.rint(tinted).astype(np.uint8)))
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default()
    for line, number in enumerate(order):
        top = image.height + _MARGIN + _LINE * line
        draw.rectangle((_MARGIN, top, _MARGIN + 12, top + 12), fill=tuple(colors[number].tolist()))
        share = 100 * (classes == number).mean()
        draw.text((_MARGIN + 18, top), f"{names[number]} {share:.0f} %", fill="black", font=font)
    return canvas
