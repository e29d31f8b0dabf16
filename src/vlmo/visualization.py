"""Images for people: data URIs, attention as a heat map, and sheets of images with text."""

from __future__ import annotations

import base64
import functools
import io
import unicodedata
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float
from PIL import Image, ImageDraw, ImageFont

if TYPE_CHECKING:
    from torch import Tensor

INK, MUTED, GREEN = "#1f2328", "#6e7681", "#1f8a4c"
_LINE, _PAPER = "#dfe2e6", "#ffffff"
_HEAT = np.array([196, 18, 96], dtype=np.float32)  # a red that few drawings use
_SCALE = 2  # sheets are drawn twice as large and scaled down, which smooths every edge
_RADIUS = 10

_UNASSIGNED = "\U0010fffe"  # no font has it, so its bitmap is that of a missing glyph
_PROBE_SIZE = 16


def on_white(image: Image.Image) -> Image.Image:
    """Return a new RGB image; transparent parts become white."""
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")


def data_uri(image: Image.Image, *, size: int = 144) -> str:
    """Return the image as a `data:` address, at most `size` pixels wide and high, transparency on white."""
    image = on_white(image)
    image.thumbnail((size, size), Image.Resampling.LANCZOS)
    encoded = {}
    for kind in ("png", "jpeg"):
        buffer = io.BytesIO()
        image.save(buffer, format=kind, optimize=True, quality=85)
        encoded[kind] = buffer.getvalue()
    # Flat drawings are small and sharp as PNG; photographs are much smaller as JPEG.
    kind = "jpeg" if 4 * len(encoded["jpeg"]) < len(encoded["png"]) else "png"
    return f"data:image/{kind};base64,{base64.b64encode(encoded[kind]).decode()}"


def heat_map(
    image: Image.Image, weights: Float[np.ndarray | Tensor, "grid_h grid_w"], *, size: int = 144
) -> Image.Image:
    """Return the image, pale, with the weights over it; the largest weight of the map has the full color.

    Args:
        size: Pixels of its long side.
    """
    factor = size / max(image.size)
    shape = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
    base = on_white(image).resize(shape, Image.Resampling.LANCZOS)
    grey = base.convert("L").convert("RGB")
    pale = np.asarray(Image.blend(grey, base, 0.35), dtype=np.float32) * 0.65 + 255 * 0.35
    values = np.asarray(weights, dtype=np.float32)
    values = values - values.min()
    values = values / max(float(values.max()), 1e-12)
    # Smooth between the centres of patches; cubic interpolation may overshoot.
    heat = Image.fromarray(values).resize(shape, Image.Resampling.BICUBIC)
    alpha = 0.85 * np.clip(np.asarray(heat), 0, 1)[..., None]
    return Image.fromarray((pale * (1 - alpha) + _HEAT * alpha).round().astype(np.uint8))


class Sheet:
    """A white sheet of `width` x `height` pixels; all lengths are in these pixels."""

    def __init__(self, width: int, height: int) -> None:
        self._size = width, height
        self._image = Image.new("RGB", (width * _SCALE, height * _SCALE), _PAPER)
        self._draw = ImageDraw.Draw(self._image)

    def finished(self) -> Image.Image:
        """Return the sheet at its own size."""
        return self._image.resize(self._size, Image.Resampling.LANCZOS)

    def text(self, line: str, *, x: float, y: float, size: float = 16, color: str = INK) -> None:
        """Write one line, its upper left corner at (x, y)."""
        font = ImageFont.load_default(size * _SCALE)
        self._draw.text((x * _SCALE, y * _SCALE), _writable(line), fill=color, font=font)

    def wrapped(self, text: str, *, width: float, max_lines: int, size: float = 16) -> list[str]:
        """Return lines no longer than `width`, in letters that can be written, shortened by an ellipsis."""
        font, text = ImageFont.load_default(size * _SCALE), _writable(text)
        limit = width * _SCALE
        lines = [""]
        for word in text.split():
            longer = f"{lines[-1]} {word}".strip()
            if self._draw.textlength(longer, font=font) <= limit or not lines[-1]:
                lines[-1] = longer
            else:
                lines.append(word)
        if max_lines == 0:
            return []
        if len(lines) > max_lines:
            lines = [*lines[: max_lines - 1], f"{lines[max_lines - 1]} …"]
        # A word, or the ellipsis, may still be too long for a line.
        for number, line in enumerate(lines):
            while self._draw.textlength(line, font=font) > limit:
                line = line.rstrip("…").rstrip()[:-1] + "…"
            lines[number] = line
        return lines

    def tile(self, image: Image.Image, *, x: float, y: float, side: float) -> None:
        """Paste the image into the middle of a square with a thin frame."""
        self._draw.rounded_rectangle(_box(x, y, side, side), radius=_RADIUS * _SCALE, outline=_LINE, width=_SCALE)
        image = on_white(image)
        factor = round(side - 18) * _SCALE / max(image.size)
        size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
        left = x * _SCALE + (side * _SCALE - size[0]) // 2
        upper = y * _SCALE + (side * _SCALE - size[1]) // 2
        self._image.paste(image.resize(size, Image.Resampling.LANCZOS), (round(left), round(upper)))

    def tick(self, *, x: float, y: float, side: float) -> None:
        """Add a green frame and a tick to the tile there."""
        self._draw.rounded_rectangle(_box(x, y, side, side), radius=_RADIUS * _SCALE, outline=GREEN, width=3 * _SCALE)
        self._draw.ellipse(_box(x + side - 16, y - 8, 24, 24), fill=GREEN, outline=_PAPER, width=2 * _SCALE)
        points = [(x + side - 9.5, y + 4), (x + side - 5.5, y + 8.5), (x + side + 2, y + 0.5)]
        scaled = [(a * _SCALE, b * _SCALE) for a, b in points]
        self._draw.line(scaled, fill=_PAPER, width=round(2.4 * _SCALE), joint="curve")


def _box(x: float, y: float, width: float, height: float) -> tuple[float, float, float, float]:
    return x * _SCALE, y * _SCALE, (x + width) * _SCALE - 1, (y + height) * _SCALE - 1


def _writable(text: str) -> str:
    """Return a text in the letters of Pillow's own font, which is the same everywhere: no accents, `?` for the rest."""
    text = unicodedata.normalize("NFC", text)
    return "".join(letter if letter.isspace() or _has(letter) else _plain(letter) for letter in text)


def _plain(letter: str) -> str:
    bare = "".join(part for part in unicodedata.normalize("NFKD", letter) if not unicodedata.combining(part))
    return bare if bare and all(part.isspace() or _has(part) for part in bare) else "?"


@functools.lru_cache(maxsize=65_536)
def _has(letter: str) -> bool:
    bitmaps = []
    for each in (letter, _UNASSIGNED):
        image = Image.new("L", (4 * _PROBE_SIZE, 4 * _PROBE_SIZE))
        draw = ImageDraw.Draw(image)
        draw.text((_PROBE_SIZE, _PROBE_SIZE), each, fill=255, font=ImageFont.load_default(_PROBE_SIZE))
        bitmaps.append(image.tobytes())
    return bitmaps[0] != bitmaps[1]
