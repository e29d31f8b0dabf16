"""Images composed on the fly: the bytes of an image cell describe the image, instead of its pixels.

The form is `scene:SIZE|BACKGROUND|OBJECT|OBJECT...`. `scene:96|eef4ff|star,50,12,24,d81e28|twemoji/1f436,8,40,40` is a
square of 96 pixels with a red star and a drawing; left and top edge and the side are counted in 96ths of the image.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageColor, ImageDraw

PREFIX = b"scene:"
UNITS = 96
"""Width and height of every scene, in the unit of edges and sides."""
SHAPES = (
    "circle",
    "square",
    "triangle",
    "star",
    "heart",
    "ring",
    "cross",
    "diamond",
    "moon",
    "drop",
)

DRAWINGS: dict[str, Callable[[str, int], Image.Image]] = {}
"""Functions that give a drawing (mode RGBA) by its name and the side of its square, by the name before a slash."""

# Bytes may come from strangers.
_MAX_BYTES = 1 << 16
_MAX_PARTS = 64
# Of an image and of an object in it.
_MAX_SIDE = 1024
# Shapes are drawn finer, and then reduced: their edges are smooth.
_FINER = 4
_STAR = [(radius, math.pi * k / 5) for k, radius in enumerate([0.53, 0.22] * 5)]
_HEART = [math.tau * k / 48 for k in range(48)]
_CORNERS: dict[str, list[tuple[float, float]]] = {
    "triangle": [(0.5, 0.04), (1.0, 0.94), (0.0, 0.94)],
    "star": [(0.5 + r * math.sin(angle), 0.53 - r * math.cos(angle)) for r, angle in _STAR],
    "heart": [
        (
            0.5 + math.sin(t) ** 3 / 2,
            0.45 - (13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t)) / 32,
        )
        for t in _HEART
    ],
    "diamond": [(0.5, 0.0), (0.88, 0.5), (0.5, 1.0), (0.12, 0.5)],
    "drop": [(0.5, 0.0), (0.79, 0.5), (0.21, 0.5)],
}
_BARS = {
    "square": [(0.06, 0.06, 0.94, 0.94)],
    "cross": [(0.34, 0.0, 0.66, 1.0), (0.0, 0.34, 1.0, 0.66)],
}
_OVALS = {
    "circle": [(0.02, 0.02, 0.98, 0.98, 255)],
    "ring": [(0.0, 0.0, 1.0, 1.0, 255), (0.27, 0.27, 0.73, 0.73, 0)],
    "moon": [(0.0, 0.0, 1.0, 1.0, 255), (0.34, -0.1, 1.24, 0.8, 0)],
    "drop": [(0.17, 0.34, 0.83, 1.0, 255)],
}
"""Left, top, right and bottom edge, and what is painted there: 255 the shape, 0 nothing."""


def compose(data: bytes) -> Image.Image:
    """Return the image that bytes describe, a pure function of them; later objects lie over earlier ones.

    Raises:
        ValueError: They are not in the form above, too large, or name a drawing that nothing in `DRAWINGS` gives.
    """
    if len(data) > _MAX_BYTES or data.count(b"|") > _MAX_PARTS:
        raise ValueError(
            f"a scene of {len(data):,} bytes; expected up to {_MAX_BYTES:,}, and {_MAX_PARTS} parts"
        )
    size, background, *objects = data.removeprefix(PREFIX).decode().split("|")
    pixels = int(size)
    if not 0 < pixels <= _MAX_SIDE:
        raise ValueError(f"a scene of {pixels} pixels a side; expected 1 to {_MAX_SIDE}")
    image = _background(background, size=pixels)
    for text in objects:
        name, left, top, side, *paint = text.split(",")
        left, top, side = (round(int(number) * pixels / UNITS) for number in (left, top, side))
        drawing = cutout(name, side)
        image.paste(f"#{paint[0]}" if paint else drawing, (left, top), drawing)
    return image


def cutout(name: str, side: int) -> Image.Image:
    """Return a shape (mode L) or a drawing (mode RGBA) in a square; outside of it, it is transparent.

    Raises:
        ValueError: There is no such shape or drawing, or the square has more than `_MAX_SIDE` pixels a side.
    """
    if not 0 < side <= _MAX_SIDE:
        raise ValueError(f"{name:.40} of {side} pixels; expected 1 to {_MAX_SIDE}")
    draw = _kept_cutout if side <= UNITS else _cutout  # large ones would fill the memory
    return draw(name, side)


def _cutout(name: str, side: int) -> Image.Image:
    style, slash, rest = name.partition("/")
    if slash and style in DRAWINGS:
        return DRAWINGS[style](rest, side)
    if name not in SHAPES:
        raise ValueError(f"no shape or drawing {name!r:.40}; shapes are {', '.join(SHAPES)}")
    # Gray is opacity here: 255 where the shape is.
    canvas = Image.new("L", (side * _FINER, side * _FINER))
    draw = ImageDraw.Draw(canvas)
    scale = side * _FINER - 1
    if name in _CORNERS:
        draw.polygon([(x * scale, y * scale) for x, y in _CORNERS[name]], fill=255)
    for edges in _BARS.get(name, ()):
        draw.rectangle([edge * scale for edge in edges], fill=255)
    for *edges, shade in _OVALS.get(name, ()):
        draw.ellipse([edge * scale for edge in edges], fill=shade)
    return canvas.reduce(_FINER)


_kept_cutout = functools.lru_cache(maxsize=16384)(_cutout)


def _background(text: str, *, size: int) -> Image.Image:
    """Return one color, or two with all between them, from left to right ("a>b") or from top to bottom ("a/b")."""
    first, sign, second = text.partition(">" if ">" in text else "/")
    if not sign:
        return Image.new("RGB", (size, size), f"#{text}")
    ends = [ImageColor.getrgb(f"#{end}") for end in (first, second)]
    # (size, 3): a color a pixel.
    line = np.linspace(*np.array(ends, dtype=np.float32), num=size).astype(np.uint8)
    rows = np.tile(line, (size, 1, 1))
    return Image.fromarray(rows if sign == ">" else rows.swapaxes(0, 1))
