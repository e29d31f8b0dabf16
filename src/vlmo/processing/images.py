"""Image files, opened with a bound of our own on their pixels."""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import IO

from PIL import Image, ImageOps

MAX_PIXELS = 64_000_000
"""Largest width x height that is decoded: above a camera's usual images, below a 100-megapixel bomb."""


def identify(file: IO[bytes], formats: Sequence[str] | None = None) -> Image.Image:
    """Open an image of these formats, or any, as `Image.open` does, but without its bounds: it warns above one of them.

    UnidentifiedImageError if it is none.
    """
    Image.init()
    start = file.read(16)
    for name in Image.ID if formats is None else [name for name in formats if name in Image.OPEN]:
        factory, accepts = Image.OPEN[name]
        if accepts is None or accepts(start) is True:  # of a format that this build lacks, a text says so
            file.seek(0)
            with contextlib.suppress(SyntaxError, IndexError, TypeError, struct.error):
                return factory(file, "")
    raise Image.UnidentifiedImageError(f"{getattr(file, 'name', 'bytes')}: not an image in a known format")


def check_pixels(image: Image.Image, *, max_pixels: int = MAX_PIXELS) -> None:
    """Check width x height; ValueError if it is too large."""
    width, height = image.size
    if width * height > max_pixels:
        raise ValueError(
            f"{width} x {height} is {width * height:,} pixels; at most {max_pixels:,} are allowed, make it smaller"
        )


def open_upright(path: str | PathLike[str]) -> Image.Image:
    """Open a file and turn it upright; ValueError above `MAX_PIXELS`, OSError without an image that can be read."""
    with Path(path).open("rb") as file, identify(file) as opened:
        try:
            check_pixels(opened)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        return ImageOps.exif_transpose(opened)
