"""Images for people: data URIs, attention as a heat map, and sheets of images with text."""

from __future__ import annotations

import base64
import io
import math
import textwrap
import unicodedata
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float
from PIL import Image, ImageDraw, ImageFont, ImageOps

from vlmo.processing.images import to_rgb

if TYPE_CHECKING:
    from torch import Tensor

_INK = "#1f2328"
_GRAY = "#6e7681"
_FRAME = "#dfe2e6"
# A red that few drawings use.
_HEAT = np.array([196, 18, 96], dtype=np.float32)
# Pixels of an image on a page.
_SHOWN = 144
_TILE = 200
_GAP = 16
_MARGIN = 28
_HEAD = 44
_LINE = 18
# Letters of a line below a tile, in Pillow's own font.
_LETTERS = 27


def data_uri(image: Image.Image, *, size: int = _SHOWN) -> str:
    """Return the image as a `data:` address, at most `size` pixels wide and high, transparency on white."""
    image = to_rgb(image).copy()
    buffer = io.BytesIO()
    image.thumbnail((size, size), Image.Resampling.LANCZOS)
    image.save(buffer, format="webp", quality=90)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def heat_map(
    image: Image.Image, weights: Float[np.ndarray | Tensor, "grid_h grid_w"], *, size: int = _SHOWN
) -> Image.Image:
    """Return the image, pale, of `size` pixels, with the weights over it; the largest one has the full color."""
    # The longer side becomes `size` pixels.
    factor = size / max(image.size)
    shape = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
    base = to_rgb(image).resize(shape, Image.Resampling.LANCZOS)
    grey = base.convert("L").convert("RGB")
    # Mixed with gray, then with white: the heat stands out from any color.
    pale = np.asarray(Image.blend(grey, base, 0.35), dtype=np.float32) * 0.65 + 255 * 0.35
    values = np.asarray(weights, dtype=np.float32)
    values = values - values.min()
    values = values / max(float(values.max()), 1e-12)
    # Smooth between the centres of patches; cubic interpolation may overshoot.
    heat = Image.fromarray(values).resize(shape, Image.Resampling.BICUBIC)
    alpha = 0.85 * np.clip(np.asarray(heat), 0, 1)[..., None]
    return Image.fromarray((pale * (1 - alpha) + _HEAT * alpha).round().astype(np.uint8))


def grid(
    heading: str, tiles: Sequence[tuple[Image.Image, str, str]], *, columns: int
) -> Image.Image:
    """Return images in a grid below a heading, each above a line in gray and two lines of a caption.

    Pillow's own font, which is the same everywhere, has few letters: accents are left out, others become "?".
    """
    height = _TILE + 3 * _LINE + _GAP
    width = 2 * _MARGIN + columns * (_TILE + _GAP) - _GAP
    rows = max(1, math.ceil(len(tiles) / columns))
    sheet = Image.new("RGB", (width, 2 * _MARGIN + _HEAD + rows * height - _GAP), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(13)
    draw.text(
        (_MARGIN, _MARGIN),
        _lines(heading, width // 10, 1)[0],
        fill=_INK,
        font=ImageFont.load_default(20),
    )
    if not tiles:
        draw.text((_MARGIN, _MARGIN + _HEAD), "nothing was found", fill=_GRAY, font=font)
    for number, (image, line, caption) in enumerate(tiles):
        row, column = divmod(number, columns)
        x = _MARGIN + column * (_TILE + _GAP)
        y = _MARGIN + _HEAD + row * height
        draw.rectangle((x, y, x + _TILE - 1, y + _TILE - 1), outline=_FRAME)
        image = ImageOps.contain(to_rgb(image), (_TILE - 18, _TILE - 18), Image.Resampling.LANCZOS)
        sheet.paste(image, (x + (_TILE - image.width) // 2, y + (_TILE - image.height) // 2))
        draw.text((x, y + _TILE + 4), _lines(line, _LETTERS, 1)[0], fill=_GRAY, font=font)
        draw.multiline_text(
            (x, y + _TILE + 4 + _LINE),
            "\n".join(_lines(caption, _LETTERS, 2)),
            fill=_INK,
            font=font,
        )
    return sheet


def _lines(text: str, letters: int, most: int) -> list[str]:
    plain = unicodedata.normalize("NFKD", text)
    # Decomposed, an accent is a letter of its own, which Pillow's font lacks.
    plain = (
        "".join(letter for letter in plain if not unicodedata.combining(letter))
        .encode("ascii", "replace")
        .decode()
    )
    return textwrap.wrap(plain, letters, max_lines=most, placeholder=" ...") or [""]
