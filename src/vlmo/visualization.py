"""Images for people: data URIs, attention as a heat map, and sheets of images with text."""

from __future__ import annotations

import base64
import io
import textwrap
import unicodedata
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float
from PIL import Image, ImageDraw, ImageFont

if TYPE_CHECKING:
    from torch import Tensor

INK, MUTED = "#1f2328", "#6e7681"
_LINE, _PAPER = "#dfe2e6", "#ffffff"
_HEAT = np.array([196, 18, 96], dtype=np.float32)  # a red that few drawings use
_SCALE = 2  # sheets are drawn twice as large and scaled down, which smooths every edge
_RADIUS = 10
_LETTER = 0.56
"""Mean width of a letter of Pillow's own font, in its size."""


def on_white(image: Image.Image) -> Image.Image:
    """Return a new RGB image; transparent parts become white."""
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")


def data_uri(image: Image.Image, *, size: int = 144) -> str:
    """Return the image as a `data:` address, at most `size` pixels wide and high, transparency on white."""
    image, buffer = on_white(image), io.BytesIO()
    image.thumbnail((size, size), Image.Resampling.LANCZOS)
    image.save(buffer, format="webp", quality=90)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"


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
        self._draw.text((x * _SCALE, y * _SCALE), line, fill=color, font=font)

    def tile(self, image: Image.Image, *, x: float, y: float, side: float) -> None:
        """Paste the image into the middle of a square with a thin frame."""
        box = (x * _SCALE, y * _SCALE, (x + side) * _SCALE - 1, (y + side) * _SCALE - 1)
        self._draw.rounded_rectangle(box, radius=_RADIUS * _SCALE, outline=_LINE, width=_SCALE)
        image = on_white(image)
        factor = round(side - 18) * _SCALE / max(image.size)
        size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
        left = x * _SCALE + (side * _SCALE - size[0]) // 2
        upper = y * _SCALE + (side * _SCALE - size[1]) // 2
        self._image.paste(image.resize(size, Image.Resampling.LANCZOS), (round(left), round(upper)))


def wrapped(text: str, *, width: float, max_lines: int, size: float = 16) -> list[str]:
    """Return lines of about `width` for `Sheet.text`, shortened by an ellipsis; one empty line for an empty text.

    Pillow's own font, which is the same everywhere, has few letters: accents are left out, others become "?".
    """
    plain = unicodedata.normalize("NFKD", text)
    plain = "".join(letter for letter in plain if not unicodedata.combining(letter)).encode("ascii", "replace").decode()
    letters = int(width / (_LETTER * size))
    return textwrap.wrap(plain, letters, max_lines=max_lines, placeholder=" ...") or [""]
