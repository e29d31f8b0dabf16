"""Work that a small image file can cause, read from its headers before a decoder does it: parts, scans, tags, tiles."""

import re
import struct
from collections import Counter, defaultdict

from PIL import Image

from vlmo.processing.images import MAX_PIXELS, check_pixels

MAX_SIDE = 65_535
"""Longest side that is decoded, JPEG's own limit: rows of one pixel take many times the memory of the pixels."""
_MAX_PARTS = 5000  # segments, chunks and blocks, which Pillow reads one by one; cameras write some tens
_MAX_BULK = 100_000  # chunks of pixels, 8 KB each in usual files
_MAX_SCANS = 32  # of a JPEG, each over the whole image; encoders write about ten
_MAX_RUNS = 1 << 22  # bytes, and pixels, of a BMP of runs, which Pillow decodes in Python
_PROFILE_PARTS = 1000  # chunks that a color profile in a PNG counts for: a megabyte may be compressed in it
_MAX_STRIPS = 30_000  # Pillow reads them one by one too; programs write no more than there are rows
_SPARE_BYTES = 1 << 24  # that tags may name beside the file's own, as those of some cameras do by mistake
_MAX_TILE = 4096**2  # pixels, which a decoder holds even if the image has fewer

_MARKER, _MARKER_IN_SCANS = re.compile(rb"\xff[\x01-\xfe]"), re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")
_ALONE = {*range(0x01, 0xC0), *range(0xD0, 0xDA)}  # those below 0xC0 mean nothing, and decoders skip two bytes
_SCAN, _END, _NEAR = 0xDA, 0xD9, _MAX_PARTS + 2
_BULK = {b"IDAT", b"fdAT"}
_TIFF = {b"II*\0", b"II\0*", b"MM\0*", b"MM*\0", b"II+\0", b"MM\0+"}  # all that Pillow takes for one
_WIDTH, _LENGTH, _STRIPS = 322, 323, {273, 324}
_COMPRESSION, _JPEG = 259, {6, 7}  # old and new; each strip may be a JPEG of as many scans as it likes
_NUMBERS = {3: "H", 4: "I"}
_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}


def check_parts(data: bytes) -> None:
    """Check the parts that decoders read one by one; ValueError for too many, or more bytes than the file holds."""
    if data.startswith(b"\xff\xd8"):
        _check_jpeg(data)
    elif data.startswith(b"\x89PNG"):
        _check_png(data)
    elif data.startswith((b"GIF87a", b"GIF89a")):
        _check_gif(data)
    elif data.startswith(b"BM") and len(data) >= 34 and int.from_bytes(data[30:34], "little") in {1, 2}:
        width, height = (abs(side) for side in struct.unpack_from("<ii", data, 18))
        if max(width * height, len(data)) > _MAX_RUNS:
            raise ValueError(f"runs of {width} x {height} pixels in {len(data):,} bytes; at most {_MAX_RUNS:,} of both")
    elif data[:4] in _TIFF:
        check_directory(data, is_file=True)
    elif data[4:8] == b"ftyp":
        _Items(data).check()


def check_size(opened: Image.Image, *, max_pixels: int) -> None:
    """Check the sizes that the header of an image names; ValueError if one is too large."""
    width, height = opened.size
    check_pixels(opened, max_pixels=max_pixels)
    if max(width, height) > MAX_SIDE:
        raise ValueError(f"{width} x {height}: a side has at most {MAX_SIDE:,} pixels, make it smaller")
    tags = getattr(opened, "tag_v2", {})
    stored = tags.get(256, width), tags.get(257, height)  # before a rotation
    across, down = tags.get(_WIDTH) or stored[0], tags.get(_LENGTH) or stored[1]
    tiles = -(-stored[0] // across) * -(-stored[1] // down)
    if across * down > max(_MAX_TILE, width * height) or tiles * across * down > _MAX_TILE + 4 * width * height:
        raise ValueError(f"{tiles:,} tiles of {across * down:,} pixels for an image of {width} x {height}")


def _check_jpeg(data: bytes) -> None:
    offset, parts, scans = 2, 0, 0
    while found := _MARKER_IN_SCANS.search(data, offset) if scans else _MARKER.search(data, offset, offset + _NEAR):
        parts += 1 if scans else 1 + found.start() - offset  # padding is read byte by byte
        offset, code = found.end(), data[found.end() - 1]
        scans += code == _SCAN
        if code == _END:  # what follows, such as the video of a moving photo, is not read
            return
        if parts > _MAX_PARTS or scans > _MAX_SCANS:
            raise ValueError(f"more than {_MAX_PARTS} segments, or {_MAX_SCANS} scans")
        if code not in _ALONE:
            offset += int.from_bytes(data[offset : offset + 2])
    if not scans and offset + _MAX_PARTS < len(data):
        raise ValueError(f"more than {_MAX_PARTS} segments")


def _check_png(data: bytes) -> None:
    offset, parts, bulk = 8, 0, 0
    while offset < len(data):
        length, kind = int.from_bytes(data[offset : offset + 4]), data[offset + 4 : offset + 8]
        offset, bulk = offset + 12 + length, bulk + (kind in _BULK)
        parts += _PROFILE_PARTS if kind == b"iCCP" else kind not in _BULK
        if parts > _MAX_PARTS or bulk > _MAX_BULK:
            raise ValueError(f"more than {_MAX_PARTS} chunks, or {_MAX_BULK:,} of pixels")


def _check_gif(data: bytes) -> None:
    flags = data[10] if len(data) > 10 else 0
    offset, parts = 13 + (6 << (flags & 7) if flags & 0x80 else 0), 0
    while offset < len(data) and data[offset] not in b",;":
        if data[offset] == ord("!"):
            offset += 2
            while offset < len(data) and data[offset] and parts <= _MAX_PARTS:
                offset, parts = offset + 1 + data[offset], parts + 1
        offset, parts = offset + 1, parts + 1
        if parts > _MAX_PARTS:
            raise ValueError(f"more than {_MAX_PARTS} blocks")


def check_directory(data: bytes, *, is_file: bool = False) -> None:
    """Check the first directory of a TIFF file (`is_file`), or of EXIF data.

    ValueError for too many tags, strips or bytes, or a file whose pixels are JPEG; struct.error if it is missing.
    """
    order, is_big = "<" if data[:2] == b"II" else ">", 43 in data[2:4]
    (start,) = struct.unpack_from(order + ("Q" if is_big else "I"), data, 8 if is_big else 4)
    (number,) = struct.unpack_from(order + ("Q" if is_big else "H"), data, start)
    layout = struct.Struct(order + ("HHQ8x" if is_big else "HHI4x"))
    first, total = start + (8 if is_big else 2), 0
    end = min(first + number * layout.size, len(data) - layout.size + 1)
    for offset in range(first, end, layout.size)[:_MAX_PARTS]:
        tag, kind, count = layout.unpack_from(data, offset)
        total += min(count * _BYTES.get(kind, 1), len(data))
        if tag in _STRIPS and count > _MAX_STRIPS:
            raise ValueError(f"{count:,} strips or tiles; at most {_MAX_STRIPS:,} are read")
        if is_file and tag == _COMPRESSION:  # every one: of several, Pillow and its decoder may go by different ones
            at = offset + layout.size - (8 if is_big else 4)
            (value,) = struct.unpack_from(order + _NUMBERS.get(kind, "H"), data, at)
            if kind not in _NUMBERS or count != 1 or value in _JPEG:
                raise ValueError(f"a TIFF whose pixels are JPEG (compression {value}); save it as JPEG or PNG")
    if number > _MAX_PARTS or total > 2 * len(data) + _SPARE_BYTES:
        raise ValueError(f"{number:,} tags that name {total:,} bytes, in {len(data):,}")


def _boxes(data: bytes, part: range) -> list[tuple[bytes, range]]:
    """Return kind and content of each box in a part of a HEIC or AVIF file."""
    found: list[tuple[bytes, range]] = []
    while len(part) >= 8:
        at, head = part.start, 8
        size, kind = int.from_bytes(data[at : at + 4]), data[at + 4 : at + 8]
        if size == 1:
            size, head = int.from_bytes(data[at + 8 : at + 16]), 16
        size = size or len(part)  # 0: up to the end
        if size < head or len(found) == _MAX_PARTS:
            raise ValueError(f"more than {_MAX_PARTS} boxes, or one of {size} bytes")
        found.append((kind, part[head:size]))
        part = part[size:]
    return found


class _Items:
    """Images and metadata of a HEIC or AVIF file: they share properties and parts, so that few may stand for many."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at, self._entries, self._copied = data, 0, 0, 0
        self._pixels, self._parts = Counter[int](), defaultdict[int, list[int]](list)  # of each image

    def check(self) -> None:
        """Check the numbers of entries, bytes that are copied, and pixels that are decoded."""
        for kind, meta in _boxes(self._data, range(len(self._data))):
            for inner, content in _boxes(self._data, meta[4:]) if kind == b"meta" else ():
                if inner == b"iprp":
                    self._read_properties(_boxes(self._data, content))
                elif inner == b"iref":
                    self._read_references(content)
        if self._copied > 8 * len(self._data) + _SPARE_BYTES:
            raise ValueError(f"items that name {self._copied:,} bytes, in {len(self._data):,}")
        if (largest := max(self._pixels.values(), default=0)) > MAX_PIXELS:
            raise ValueError(f"an image of {largest:,} pixels; at most {MAX_PIXELS:,} are allowed")
        known: dict[int, int] = {}
        for item in list(self._parts):
            self._decoded(item, known, largest)

    def _decoded(self, item: int, known: dict[int, int], largest: int) -> int:
        """Return the pixels of an image and of its parts; ValueError if the parts are far more than it shows."""
        if item not in known:
            known[item] = -1
            parts = [self._decoded(part, known, largest) for part in self._parts.get(item, ())]
            own = self._pixels[item]
            if min(parts, default=0) < 0 or sum(parts) > _MAX_TILE + 4 * (own or largest):
                raise ValueError(f"an image of {own:,} pixels that is made of {sum(parts):,}, or of itself")
            known[item] = own + sum(parts)
        return known[item]

    def _read_properties(self, boxes: list[tuple[bytes, range]]) -> None:
        properties = [(b"", range(0))]  # they count from one
        properties += [each for kind, content in boxes if kind == b"ipco" for each in _boxes(self._data, content)]
        for table in (content for kind, content in boxes if kind == b"ipma"):
            self._at = table.start
            version, flags = self._take(1), self._take(3)
            for _ in self._count(4):
                item = self._take(4 if version else 2)
                for _ in self._count(1):
                    kind, content = properties[self._take(2) & 0x7FFF if flags & 1 else self._take(1) & 0x7F]
                    self._copied += len(content)
                    if kind == b"ispe":
                        width, height = struct.unpack_from(">II", self._data, content.start + 4)
                        self._pixels[item] = max(self._pixels[item], width * height)

    def _read_references(self, table: range) -> None:
        size = 4 if self._data[table.start] else 2  # by the version
        for kind, content in _boxes(self._data, table[4:]):
            self._at = content.start
            item = self._take(size)
            named = [self._take(size) for _ in self._count(2)]
            if kind == b"dimg":
                self._parts[item] += named
            elif kind == b"cdsc":  # metadata: each image gets a copy, which is part of the file
                self._copied += len(self._data) * len(named)

    def _take(self, size: int) -> int:
        self._at += size
        return int.from_bytes(self._data[self._at - size : self._at])

    def _count(self, size: int) -> range:
        """Read the number of the entries that follow; those of all tables are counted together."""
        number = self._take(size)
        self._entries += number
        if self._entries > _MAX_PARTS:
            raise ValueError(f"more than {_MAX_PARTS} properties and references")
        return range(number)
