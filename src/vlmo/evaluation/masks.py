"""Classes of pixels as an image."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

_GOLDEN = 0.618033988749895  # steps of this share of the colour circle keep neighbours apart, however many there are
_LINE, _MARGIN = 18, 6
_STRENGTH = 0.55


def palette(num_classes: int) -> UInt8[np.ndarray, "classes 3"]:
    """Return a colour for each class, always the same; class 0 is grey, as it is often the background."""
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
