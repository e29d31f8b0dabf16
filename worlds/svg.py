"""Rows of drawings in SVG: bad ones are quarantined, and those that look like a tested one are left out."""

from __future__ import annotations

import contextlib
import hashlib
import io
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy import ndarray
from PIL import Image, ImageChops, ImageOps

from vlmo.data.prepare.preparer import BadRow, Record, Row

_LOOK_PIXELS = 16
_SAME_LOOK = 28.0
"""Root mean square difference of two looks (0 to 255) below which two images count as one.

Found by looking at close pairs of icons: below lie the same ones in another line width, above a circle with another
sign in it.
"""
_LEAST_INK = 16
_IS_INK = [255 * (value > _LEAST_INK) for value in range(256)] * 3


@dataclass(frozen=True)
class Looks:
    """Images on white and without their margin, in few pixels; one row an image."""

    pixels: Float[ndarray, "image look"]
    squares: Float[ndarray, "image"]

    @classmethod
    def of(cls, drawings: Iterable[Callable[[], Image.Image]]) -> Looks:
        """Return the looks of drawings, without those that are empty or cannot be drawn."""
        found = []
        for draw_it in drawings:
            with contextlib.suppress(ValueError):
                found += [look] if (look := look_of(draw_it())) is not None else []
        pixels = np.stack(found) if found else np.zeros((0, 3 * _LOOK_PIXELS**2), np.float32)
        return cls(pixels, (pixels**2).sum(axis=1))

    @property
    def digest(self) -> str:
        """Text that changes with the images."""
        return hashlib.sha256(self.pixels.tobytes()).hexdigest()

    def __contains__(self, look: Float[ndarray, "look"]) -> bool:
        # By one thread: those of a BLAS in several processes wait for each other.
        distances = self.squares - 2 * np.einsum("ij,j->i", self.pixels, look) + (look**2).sum()
        return bool((distances < _SAME_LOOK**2 * look.size).any())


def open_png(png: bytes) -> Image.Image:
    """Return an image with its transparency."""
    return Image.open(io.BytesIO(png)).convert("RGBA")


def record_of(
    draw_it: Callable[[], Image.Image],
    row_of: Callable[[Image.Image], Row],
    *,
    split: str,
    image_id: str,
    path: str,
    tested: Looks,
) -> Record | None:
    """Return the row that `row_of` makes of a drawing, or a bad one; None of training that looks like one `tested`.

    Args:
        draw_it: Raises ValueError where that fails.
        path: File of the drawing.
    """
    try:
        image = draw_it()
    except ValueError as error:
        return BadRow(split, image_id, f"cannot be drawn: {error}", path)
    look = look_of(image)
    if look is None:
        return BadRow(split, image_id, "nothing is drawn", path)
    if split == "train" and look in tested:
        return None
    return row_of(image)


def look_of(image: Image.Image) -> Float[ndarray, "look"] | None:
    """Return what is drawn, on white, without its margin, in few pixels; None where nothing is."""
    canvas = Image.new("RGBA", image.size, "white")
    canvas.alpha_composite(image)
    ink = ImageChops.invert(canvas.convert("RGB"))
    box = ink.point(_IS_INK).getbbox()
    if box is None:
        return None
    shown = ImageOps.pad(ink.crop(box), (_LOOK_PIXELS, _LOOK_PIXELS), Image.Resampling.BOX)
    return np.asarray(shown, dtype=np.float32).ravel()
