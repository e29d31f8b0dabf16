"""Bytes or a file to an RGB picture, or a ValueError that says why not."""

import functools
import io
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import TypedDict, TypeVar

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageFile

MAX_PIXELS = 64_000_000
"""Largest width x height that is decoded: above a camera's usual pictures, below a 100-megapixel bomb."""

# Others are left out: they start other programs (EPS), have no size of their own (WMF), or fit almost any bytes (TGA).
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF")

_ORIENTATION_TAG = 0x0112
_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


_RANGE = re.compile(r"(?P<file>.+)#bytes=(?P<start>\d+)\+(?P<length>\d+)", re.DOTALL)

_Found = TypeVar("_Found")


class ImageCell(TypedDict):
    """What a row's `image` column holds: the file's bytes, or else where it lies (a file, or `range_path`)."""

    bytes: bytes | None
    path: str | None


def range_path(file: Path, *, start: int, length: int) -> str:
    """Path of a picture that is a piece of a bigger file, for `ImageCell`: "FILE#bytes=START+LENGTH"."""
    return f"{file}#bytes={start}+{length}"


def decode_image(image: ImageCell, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Picture in mode RGB: first frame, EXIF orientation applied, transparency put on white.

    16-bit greyscale is scaled to 8 bits. Colour profiles are not applied.

    Raises:
        ValueError: Nothing to read, not a picture, cut off, damaged, or more than `max_pixels` pixels;
            the message names the file and the reason.
    """
    return _decode(image, max_pixels=max_pixels, convert=_upright_rgb)


def decode_mask(image: ImageCell, *, max_pixels: int = MAX_PIXELS) -> UInt8[np.ndarray, "height width"]:
    """Numbers of a picture with one channel, as they are in the file: greyscale of 8 bits, or indices of a palette.

    Raises:
        ValueError: As `decode_image`, and for a picture with more channels or bits.
    """
    return _decode(image, max_pixels=max_pixels, convert=_numbers)


def _decode(image: ImageCell, *, max_pixels: int, convert: Callable[[Image.Image], _Found]) -> _Found:
    where = image["path"] or "bytes in memory"
    if ImageFile.LOAD_TRUNCATED_IMAGES:
        raise RuntimeError(
            "PIL.ImageFile.LOAD_TRUNCATED_IMAGES is on, so that cut files would look whole; set it to False."
        )
    data = _read_bytes(image, where=where)
    try:
        with Image.open(io.BytesIO(data), formats=_formats()) as opened:
            _check_size(opened.size, max_pixels=max_pixels)
            opened.load()
            return convert(opened)
    except Image.UnidentifiedImageError as error:
        raise ValueError(f"{where}: not a picture in a known format ({len(data)} bytes)") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ValueError(f"{where}: more pixels than Pillow allows: {error}") from error
    # Pillow's decoders raise many kinds of errors on damaged bytes (SyntaxError, struct.error, zlib.error, ...).
    except Exception as error:
        raise ValueError(f"{where}: cannot be decoded: {error or type(error).__name__}") from error


def _upright_rgb(opened: Image.Image) -> Image.Image:
    rotation = _TRANSPOSE.get(_orientation(opened))
    picture = _to_rgb(opened)
    return picture if rotation is None else picture.transpose(rotation)


def _numbers(opened: Image.Image) -> UInt8[np.ndarray, "height width"]:
    if opened.mode not in ("L", "P"):
        raise ValueError(f"mode {opened.mode}; a mask needs one channel of 8 bits (mode L or P)")
    return np.array(opened)


def _read_bytes(image: ImageCell, *, where: str) -> bytes:
    data = image["bytes"]
    if data is None:
        if not image["path"]:
            raise ValueError("an image needs bytes or a path; both are missing")
        try:
            data = _read_path(image["path"])
        except OSError as error:
            raise ValueError(f"{where}: cannot be read: {error.strerror or error}") from error
    if not data:
        raise ValueError(f"{where}: empty file (0 bytes)")
    return data


def _read_path(path: str) -> bytes:
    piece = _RANGE.fullmatch(path)
    if piece is None:
        return Path(path).read_bytes()
    with Path(piece["file"]).open("rb") as file:
        file.seek(int(piece["start"]))
        return file.read(int(piece["length"]))


@functools.cache
def _formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def _check_size(size: tuple[int, int], *, max_pixels: int) -> None:
    width, height = size
    if width * height > max_pixels:
        raise ValueError(
            f"{width} x {height} is {width * height:,} pixels; at most {max_pixels:,} are allowed, make it smaller"
        )


def _orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(_ORIENTATION_TAG, 1)
    # A damaged EXIF block takes nothing from the pixels, which are what is asked for.
    except (SyntaxError, ValueError, TypeError, KeyError, IndexError, OSError, struct.error, UserWarning):
        return 1


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        image = _to_8_bit(image)
    if not image.has_transparency_data:
        return image.convert("RGB")
    if image.mode == "1":
        image = image.convert("L")
    canvas = Image.new("RGBA", image.size, "white")
    canvas.alpha_composite(image.convert("RGBA"))
    return canvas.convert("RGB")


def _to_8_bit(image: Image.Image) -> Image.Image:
    """Greyscale of 16 bits (0 to 65535) or floats (0 to 1) in mode L, or LA where one value stands for transparent."""
    values = np.asarray(image).astype(np.float64)
    full = 1.0 if image.mode == "F" else 65535.0
    # Wider data have no agreed range: a guess would be wrong in silence.
    if not (values.min() >= 0 and values.max() <= full):
        raise ValueError(f"mode {image.mode} with values {values.min():g} to {values.max():g}; expected 0 to {full:g}")
    grey = Image.fromarray(np.rint(values * (255 / full)).astype(np.uint8))
    if "transparency" not in image.info:
        return grey
    alpha = np.where(values == image.info["transparency"], 0, 255).astype(np.uint8)
    return Image.merge("LA", (grey, Image.fromarray(alpha)))
