"""Image files, opened with a bound of our own on their pixels."""

from __future__ import annotations

import contextlib
import functools
import re
import struct
from collections.abc import Iterator, Sequence
from os import PathLike
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image, ImageOps

from vlmo.lazy import need_package

MAX_PIXELS = 64_000_000
"""Largest width x height that is decoded: above a camera's usual images, below a 100-megapixel bomb."""

# Rows of an image that are converted or sent at once: copies of the whole take several times its memory.
_ROWS_AT_ONCE = 256
# Bytes, which hold the brands of a file.
_START = 256
_HEIC = re.compile(
    rb".{4}ftyp(?:he[iv][cxms]|m[is]f1(?!.*avi[fs]))", re.DOTALL
)  # not an AVIF file of a general brand


def identify(file: IO[bytes], formats: Sequence[str] | None = None) -> Image.Image:
    """Open an image of these formats, or any, as `Image.open` does, but without its bounds: it warns above one of them.

    HEIC is read by pillow-heif. UnidentifiedImageError if it is no image, ModuleNotFoundError
    without that package.
    """
    Image.init()
    start = file.read(_START)
    if (formats is None or "HEIF" in formats) and _HEIC.match(start):
        register_heic()
    for name in Image.ID if formats is None else formats:
        factory, accepts = Image.OPEN.get(name, (None, None))
        # Of a format that this build lacks, `accepts` gives a text.
        if factory is None or (accepts is not None and accepts(start[:16]) is not True):
            continue
        file.seek(0)
        with contextlib.suppress(SyntaxError, IndexError, TypeError, struct.error):
            return factory(file, "")
    raise Image.UnidentifiedImageError(
        f"{getattr(file, 'name', 'bytes')}: not an image in a known format"
    )


@functools.cache
def register_heic() -> None:
    """Let Pillow read HEIC by pillow-heif; ModuleNotFoundError without that package."""
    need_package("pillow_heif", extra="photos", user="HEIC")
    import pillow_heif

    pillow_heif.register_heif_opener(
        decode_threads=1
    )  # whoever reads many files has threads of its own


def check_pixels(image: Image.Image, *, max_pixels: int = MAX_PIXELS) -> None:
    """Check width x height; ValueError if it is too large."""
    width, height = image.size
    if width * height > max_pixels:
        raise ValueError(
            f"{width} x {height} is {width * height:,} pixels; at most {max_pixels:,} are read, reduce it"
        )


def open_upright(path: str | PathLike[str]) -> Image.Image:
    """Open a file and turn it upright; ValueError above `MAX_PIXELS`, OSError without an image that can be read."""
    with Path(path).open("rb") as file, identify(file) as opened:
        try:
            check_pixels(opened)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        return ImageOps.exif_transpose(opened)


def to_rgb(image: Image.Image) -> Image.Image:
    """Return an image in mode RGB, transparency on white, gray of 16 bits or floats scaled; ValueError for others."""
    if image.mode.startswith("I") or image.mode == "F":
        image = _to_8_bit(image)
    if not image.has_transparency_data:
        return image if image.mode == "RGB" else image.convert("RGB")
    if image.mode == "1":
        image = image.convert("L")
    canvas = Image.new("RGB", image.size)
    for top, part in strips(image):
        white = Image.new("RGBA", part.size, "white")
        white.alpha_composite(part.convert("RGBA"))
        canvas.paste(white.convert("RGB"), (0, top))
    return canvas


def strips(image: Image.Image) -> Iterator[tuple[int, Image.Image]]:
    """Yield pieces of a few rows from top to bottom, each with the number of its first row."""
    for top in range(0, image.height, _ROWS_AT_ONCE):
        yield top, image.crop((0, top, image.width, min(top + _ROWS_AT_ONCE, image.height)))


def _to_8_bit(image: Image.Image) -> Image.Image:
    """Grayscale of 16 bits (0 to 65535) or floats (0 to 1) in mode L."""
    values = np.asarray(image)
    full = 1.0 if image.mode == "F" else 65535.0
    # Wider data have no agreed range: a guess would be wrong in silence.
    if not (values.min() >= 0 and values.max() <= full):
        raise ValueError(
            f"mode {image.mode} with values {values.min():g} to {values.max():g}; expected 0 to {full:g}"
        )
    shades = np.empty(values.shape, np.uint8)
    for start in range(0, len(values), _ROWS_AT_ONCE):
        part = slice(start, start + _ROWS_AT_ONCE)
        shades[part] = np.rint(values[part].astype(np.float64) * (255 / full))
    return Image.fromarray(shades)
