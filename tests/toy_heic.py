"""HEIC files: of an image, and of items of any kind, many of which claim what is not there."""

import io
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from PIL import Image

Reference = tuple[bytes, int, Sequence[int]]
"""Kind of a reference ("dimg": is made of, "cdsc": describes), the item that it comes from, and those that it names."""
IMAGE = b"hvc1"


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


def full_box(kind: bytes, *content: bytes, version: int = 0, flags: int = 0) -> bytes:
    return box(kind, struct.pack(">I", version << 24 | flags), *content)


@dataclass(frozen=True)
class Item:
    """An image or metadata; `properties` are boxes, and equal data of several items stand once in the file."""

    kind: bytes = IMAGE
    size: tuple[int, int] | None = None
    data: bytes = b""
    properties: Sequence[bytes] = ()
    extents: int = 1

    def boxes(self) -> list[bytes]:
        size = [] if self.size is None else [full_box(b"ispe", struct.pack(">II", *self.size))]
        return [*size, *self.properties]


def items_file(
    items: Mapping[int, Item],
    references: Sequence[Reference] = (),
    *,
    groups: bytes = b"",
    more: bytes = b"",
) -> bytes:
    """A file of these items by number, of which the first is shown; `more` are boxes before the data."""
    brands = box(b"ftyp", b"heic", bytes(4), b"mif1heic")
    start = len(brands) + len(_meta(items, references, {})) + len(groups) + len(more) + 8
    pieces, places = dict.fromkeys(item.data for item in items.values()), dict[bytes, int]()
    for piece in pieces:
        places[piece] = start
        start += len(piece)
    return brands + _meta(items, references, places, groups) + more + box(b"mdat", *pieces)


def _meta(
    items: Mapping[int, Item],
    references: Sequence[Reference],
    places: Mapping[bytes, int],
    groups: bytes = b"",
) -> bytes:
    number = struct.pack(">H", len(items))
    properties = list(dict.fromkeys(content for item in items.values() for content in item.boxes()))
    kinds, owned, pieces = [], [], []
    for name, item in items.items():
        kinds.append(full_box(b"infe", struct.pack(">HH", name, 0), item.kind, b"\0", version=2))
        indices = [properties.index(content) + 1 for content in item.boxes()]
        owned.append(struct.pack(f">HB{len(indices)}H", name, len(indices), *indices))
        extent = struct.pack(">II", places.get(item.data, 0), len(item.data))
        pieces.append(struct.pack(">HHH", name, 0, item.extents) + item.extents * extent)
    named = [
        box(kind, struct.pack(f">HH{len(to)}H", name, len(to), *to))
        for kind, name, to in references
    ]
    return full_box(
        b"meta",
        full_box(b"hdlr", bytes(4), b"pict", bytes(13)),
        full_box(b"pitm", struct.pack(">H", next(iter(items)))),
        full_box(b"iinf", number, *kinds),
        box(
            b"iprp", box(b"ipco", *properties), full_box(b"ipma", b"\0\0", number, *owned, flags=1)
        ),
        full_box(b"iloc", b"\x44\0", number, *pieces),
        full_box(b"iref", *named) if named else b"",
        groups,
    )


def tables(
    sizes: Mapping[int, tuple[int, int]],
    *,
    references: Sequence[Reference] = (),
    profile: bytes = b"",
    data: bytes = b"",
) -> bytes:
    """A file of images of these sizes, all of which have one profile and one `data`, and no pixels."""
    color = box(b"colr", b"prof", profile)
    return items_file(
        {name: Item(size=size, data=data, properties=[color]) for name, size in sizes.items()},
        references,
    )


def encoded_item(image: Image.Image, *properties: bytes) -> Item:
    """An image as an item that a decoder reads."""
    whole = heic(image, quality=50, enc_params={"preset": "ultrafast"})
    start = whole.index(b"hvcC") - 4
    settings = whole[start : start + int.from_bytes(whole[start : start + 4])]
    data = whole[whole.index(b"mdat") + 4 :]
    return Item(size=image.size, data=data, properties=[settings, *properties])


def auxiliary(name: bytes) -> bytes:
    """The property of an image that says what it adds to another: b"auxid:1" is transparency, b"auxid:2" depth."""
    return full_box(b"auxC", name if b":apple:" in name else b"urn:mpeg:hevc:2015:" + name, b"\0")


def grid_of(rows: int, columns: int, width: int, height: int) -> Item:
    data = struct.pack(">BBBBII", 0, 1, rows - 1, columns - 1, width, height)
    return Item(b"grid", (width, height), data)


def overlay_of(
    canvas: tuple[int, int], *, size: tuple[int, int] = (64, 64), parts: int = 1
) -> Item:
    """An overlay whose canvas is another than the size that the tables have."""
    return Item(
        b"iovl", size, struct.pack(">BB4H2I", 0, 1, 0, 0, 0, 65535, *canvas) + bytes(8 * parts)
    )


def movie(frames: int) -> bytes:
    """The table of an image sequence of so many frames, each of which has no more than a line in it."""
    unit = struct.pack(">9I", 65536, 0, 0, 0, 65536, 0, 0, 0, 1 << 30)
    pixels = (
        struct.pack(">HHIIIH", 64, 64, 72 << 16, 72 << 16, 0, 1)
        + bytes(32)
        + struct.pack(">Hh", 24, -1)
    )
    settings = encoded_item(Image.new("RGB", (64, 64))).properties[0]
    tables = (
        full_box(
            b"stsd",
            struct.pack(">I", 1),
            box(b"hvc1", bytes(6), b"\0\1", bytes(16), pixels, settings),
        ),
        full_box(b"stts", struct.pack(">III", 1, frames, 1)),
        full_box(b"stsc", struct.pack(">IIII", 1, 1, frames, 1)),
        full_box(b"stsz", struct.pack(">II", 100, frames)),
        full_box(b"stco", struct.pack(">II", 1, 64)),
    )
    sources = box(b"dinf", full_box(b"dref", struct.pack(">I", 1), full_box(b"url ", flags=1)))
    media = (
        full_box(b"mdhd", struct.pack(">IIIII", 0, 0, 1000, 1000, 0)),
        full_box(b"hdlr", bytes(4), b"pict", bytes(13)),
        box(b"minf", full_box(b"vmhd", bytes(8), flags=1), sources, box(b"stbl", *tables)),
    )
    place = (
        struct.pack(">IIIII", 0, 0, 1, 0, 1000)
        + bytes(16)
        + unit
        + struct.pack(">II", 64 << 16, 64 << 16)
    )
    head = (
        struct.pack(">IIIIIH", 0, 0, 1000, 1000, 65536, 256)
        + bytes(10)
        + unit
        + bytes(24)
        + struct.pack(">I", 2)
    )
    track = box(b"trak", full_box(b"tkhd", place, flags=7), box(b"mdia", *media))
    return box(b"moov", full_box(b"mvhd", head), track)
