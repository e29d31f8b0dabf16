"""Decode image files to RGB, with a ValueError that names the file and the reason where that fails."""

import contextlib
import errno
import importlib
import io
import re
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, TypedDict, cast

import numpy as np
from jaxtyping import UInt8
from PIL import Image
from PIL.Image import Transpose as T  # noqa: N817
from PIL.WebPImagePlugin import WebPImageFile

from vlmo.data import GENERATORS
from vlmo.data.headers import check_directory, check_parts, check_size
from vlmo.data.listing import regular_file
from vlmo.processing.images import MAX_PIXELS, identify, to_rgb

MAX_FILE_BYTES = 1 << 29
"""Largest file, or piece of one, that is read: above `MAX_PIXELS` of 8 bytes."""

# Others are left out: they start other programs (EPS), have no size of their own (WMF), or fit almost any bytes (TGA).
COMMON_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "HEIF")
"""Formats that are read, of strangers too."""

_ORIENTATION_TAG = 0x0112
_TRANSPOSE = (
    T.FLIP_LEFT_RIGHT,
    T.ROTATE_180,
    T.FLIP_TOP_BOTTOM,
    T.TRANSPOSE,
    T.ROTATE_270,
    T.TRANSVERSE,
    T.ROTATE_90,
)
"""Inverses of the orientations 2 to 8; images of those from 5 on lie on their side."""

_RANGE = re.compile(r"(?P<file>.+)#bytes=(?P<start>\d+)\+(?P<length>\d+)", re.DOTALL)


class ImageCell(TypedDict):
    """One value of an `image` column: the file's bytes, or else its path (a file, or a `range_path`).

    Instead of a file's, the bytes may be those that one of `GENERATORS` makes an image of.
    """

    bytes: bytes | None
    path: str | None


def image_at(file: Path) -> ImageCell:
    """Return the cell of an image file."""
    return {"bytes": None, "path": str(file.absolute())}


def range_path(file: Path | str, *, start: int, length: int) -> str:
    """Path of an image that is a piece of a bigger file, for `ImageCell`: "FILE#bytes=START+LENGTH"."""
    return f"{file}#bytes={start}+{length}"


def is_range(path: str) -> bool:
    """Return True for a path that `range_path` gives."""
    return _RANGE.fullmatch(path) is not None


def encode_image(image: Image.Image, path: str, *, kind: str = "PNG", **options: Any) -> ImageCell:
    """Return the cell that holds an image as a file of this kind; `options` are those of Pillow's `save`."""
    return {"bytes": image_bytes(image, kind, **options), "path": path}


def image_bytes(image: Image.Image, kind: str, **options: Any) -> bytes:
    """Return an image as a file of this kind; `options` are those of Pillow's `save`."""
    file = io.BytesIO()
    image.save(file, format=kind, **options)
    return file.getvalue()


def read_path(path: str) -> bytes:
    """Read a file, or the piece of one that a `range_path` names; OSError as `open_piece`."""
    file, start, length = open_piece(path)
    with file:
        file.seek(start)
        return file.read(length)


def open_piece(path: str) -> tuple[BinaryIO, int, int]:
    """Open a file, or one that holds the piece of a `range_path`; return it, and the image's start and length.

    OSError if it cannot be read, has more than `MAX_FILE_BYTES`, or is a device or a pipe, which may never end.
    """
    piece = _RANGE.fullmatch(path)
    file = Path(path if piece is None else piece["file"])
    length = regular_file(file).st_size
    start = 0
    if piece is not None:
        start = min(int(piece["start"]), length)
        length = int(piece["length"])
    if length > MAX_FILE_BYTES:
        raise OSError(
            errno.EFBIG, f"{length:,} bytes; at most {MAX_FILE_BYTES:,} are read", str(file)
        )
    return file.open("rb"), start, length


class EncodedImage:
    """An image of which only the header has been read; `decode` gives the pixels, once.

    At most `max_pixels` (width x height), and `formats` by Pillow's names, are accepted, else also images of
    `GENERATORS`; ValueError as `decode_image`.
    """

    size: tuple[int, int]
    """Width and height, EXIF orientation applied."""

    def __init__(
        self,
        image: ImageCell,
        *,
        max_pixels: int = MAX_PIXELS,
        formats: Sequence[str] | None = None,
    ) -> None:
        self._where = image["path"] or "bytes in memory"
        self._data = _read_bytes(image, where=self._where)
        with _naming_errors(self._where, self._data):
            self._image = _open(self._data, max_pixels=max_pixels, formats=formats)
            width, height = self._image.size
            # Orientations 5 to 8 lie on their side.
            self.size = (height, width) if _orientation(self._image) > 4 else (width, height)

    def decode_to(self, least: int) -> Image.Image:
        """Return the image as `decode`, at the smallest scale that leaves at least so many pixels each way."""
        # The scales of libjpeg's decoder, the smallest image first.
        scales = [scale for scale in (8, 4, 2) if min(self.size) >= scale * least]
        return self.decode(scales[0] if scales else 1)

    def decode(self, reduction: int = 1) -> Image.Image:
        """Return the image as `decode_image` does; a JPEG at 1 / `reduction` of its size (1, 2, 4 or 8), rounded up.

        The JPEG decoder itself gives the smaller scale, which costs less than decoding all and resizing. A pixel is
        then about the mean of reduction x reduction pixels. ValueError for a file that is cut off or damaged.
        """
        with _naming_errors(self._where, self._data):
            # Others have no smaller scales.
            if reduction > 1 and self._image.format == "JPEG":
                width, height = self._image.size
                self._image.draft(None, (max(1, width // reduction), max(1, height // reduction)))
            with self._image as opened:
                opened.load()
                orientation = _orientation(opened)
                image = to_rgb(opened)
                return image.transpose(_TRANSPOSE[orientation - 2]) if orientation > 1 else image


def decode_image(
    image: ImageCell, *, max_pixels: int = MAX_PIXELS, formats: Sequence[str] | None = None
) -> Image.Image:
    """Decode to mode RGB: first frame, EXIF orientation applied, transparency on white, 16-bit gray scaled to 8 bits.

    Color profiles are not applied. ValueError with file and reason: nothing to read, not an image, cut off, damaged,
    more than `max_pixels` pixels, or made so that it takes much more time or memory than its pixels.
    """
    return EncodedImage(image, max_pixels=max_pixels, formats=formats).decode()


def read_info(data: bytes) -> dict[Any, Any]:
    """Return EXIF data, XMP and more, by Pillow's names, without decoding; nothing of what cannot be opened."""
    with contextlib.suppress(ValueError), _naming_errors("", data):
        return _open(data, max_pixels=MAX_PIXELS, formats=COMMON_FORMATS).info
    return {}


def decode_mask(
    image: ImageCell, *, max_pixels: int = MAX_PIXELS
) -> UInt8[np.ndarray, "height width"]:
    """Return the stored numbers of an image with one channel: grayscale of 8 bits, or indices of a palette.

    ValueError as `decode_image`, and for an image with more channels or bits.
    """
    encoded = EncodedImage(image, max_pixels=max_pixels)
    opened = encoded._image
    with _naming_errors(encoded._where, encoded._data), opened:
        opened.load()
        # Decoded without RGB: the numbers are classes, not colors.
        if opened.mode not in ("L", "P"):
            raise ValueError(
                f"mode {opened.mode}; a mask needs one channel of 8 bits (mode L or P)"
            )
        return np.array(opened)


@contextlib.contextmanager
def _naming_errors(where: str, data: bytes) -> Iterator[None]:
    try:
        yield
    except Image.UnidentifiedImageError as error:
        raise ValueError(f"{where}: not an image in a known format ({len(data)} bytes)") from error
    # Pillow's decoders raise many kinds of errors on damaged bytes (SyntaxError, struct.error, zlib.error, ...).
    except Exception as error:
        raise ValueError(
            f"{where}: cannot be decoded: {str(error) or type(error).__name__}"
        ) from error


def _open(data: bytes, *, max_pixels: int, formats: Sequence[str] | None = None) -> Image.Image:
    for start, module in GENERATORS.items() if formats is None else ():
        if data.startswith(start):
            return importlib.import_module(module).compose(data)
    check_parts(data)
    opened = identify(io.BytesIO(data), formats or COMMON_FORMATS)
    check_size(opened, max_pixels=max_pixels)
    if isinstance(opened, WebPImageFile):
        opened._decoder = _FirstFrame(opened._decoder)
    return opened


class _FirstFrame:
    """Pillow's decoder of WebP, freed with its two canvases as soon as it has given a frame."""

    def __init__(self, decoder: Any) -> None:
        self._decoder = decoder

    def get_next(self) -> tuple[bytes, int] | None:
        return self.__dict__.pop("_decoder").get_next()

    def reset(self) -> None:
        """Nothing is read after the first frame."""


def _read_bytes(image: ImageCell, *, where: str) -> bytes:
    data = image["bytes"]
    if data is None and not image["path"]:
        raise ValueError("an image needs bytes or a path; both are missing")
    if data is None:
        try:
            data = read_path(cast(str, image["path"]))
        except (OSError, ValueError) as error:  # the latter for a zero byte in the path
            raise ValueError(
                f"{where}: cannot be read: {getattr(error, 'strerror', None) or error}"
            ) from error
    if not data:
        raise ValueError(f"{where}: empty file (0 bytes)")
    return data


def _orientation(image: Image.Image) -> int:
    try:
        if exif := image.info.get("exif"):
            check_directory(exif.removeprefix(b"Exif\0\0"))
        orientation: Any = image.getexif().get(_ORIENTATION_TAG)
        return int(orientation) if orientation in range(1, 9) else 1
    # A damaged EXIF block takes nothing from the pixels, which are what is asked for.
    except (
        SyntaxError,
        ValueError,
        TypeError,
        KeyError,
        IndexError,
        OSError,
        struct.error,
        UserWarning,
    ):
        return 1
