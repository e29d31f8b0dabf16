"""HEIC files: of an image, and of tables that claim what is not there."""

import io
import struct
from collections.abc import Mapping, Sequence

from PIL import Image

Reference = tuple[bytes, int, Sequence[int]]
"""Kind of a reference ("dimg": is made of, "cdsc": describes), the item that it comes from, and those that it names."""


def heic(image: Image.Image, **options) -> bytes:
    """An image as a file; `options` are those of pillow-heif's `save`."""
    import pillow_heif

    pillow_heif.register_heif_opener()
    buffer = io.BytesIO()
    image.save(buffer, "HEIF", **options)
    return buffer.getvalue()


def box(kind: bytes, *content: bytes) -> bytes:
    body = b"".join(content)
    return struct.pack(">I4s", 8 + len(body), kind) + body


def tables(
    sizes: Mapping[int, tuple[int, int]],
    *,
    references: Sequence[Reference] = (),
    profile: bytes = b"",
    entry: bytes = b"hvc1\0",
    data: bytes = b"",
) -> bytes:
    """The tables of images of these sizes by item, all of which have one profile and all of `data`, and no pixels."""
    number = struct.pack(">H", len(sizes))
    kinds = [box(b"infe", b"\2\0\0\0", struct.pack(">HH", item, 0), entry) for item in sizes]
    shapes = [box(b"ispe", bytes(4), struct.pack(">II", *size)) for size in sizes.values()]
    owned = [struct.pack(">HBHH", item, 2, 1, index) for index, item in enumerate(sizes, start=2)]
    places = [struct.pack(">HHHII", item, 0, 1, 0, len(data)) for item in sizes]
    named = [box(kind, struct.pack(f">HH{len(to)}H", item, len(to), *to)) for kind, item, to in references]
    properties = box(b"ipco", box(b"colr", b"prof", profile), *shapes), box(b"ipma", b"\0\0\0\1\0\0", number, *owned)
    meta = (
        *(box(b"iinf", bytes(4), number, *kinds), box(b"iprp", *properties)),
        *(box(b"iloc", bytes(4), b"\x44\0", number, *places), box(b"iref", bytes(4), *named)),
    )
    brands = box(b"ftyp", b"heic", bytes(4), b"mif1heic")
    return brands + box(b"meta", bytes(4), box(b"pitm", bytes(4), struct.pack(">H", next(iter(sizes)))), *meta) + data
