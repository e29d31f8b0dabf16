"""Work that a small image file can cause, read from its headers before a decoder does it: parts, scans, tags, tiles."""

import itertools
import re
import struct
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

from PIL import Image

from vlmo.processing.images import MAX_PIXELS, check_pixels

MAX_SIDE = 65_535
"""Longest side that is decoded, JPEG's own limit: rows of one pixel take many times the memory of the pixels."""
_MAX_PARTS = (
    5000  # segments, chunks and blocks, which Pillow reads one by one; cameras write some tens
)
_MAX_BULK = 100_000  # chunks of pixels, 8 KB each in usual files
_MAX_SCANS = 32  # of a JPEG, each over the whole image; encoders write about ten
_MAX_RUNS = 1 << 22  # bytes, and pixels, of a BMP of runs, which Pillow decodes in Python
_PROFILE_PARTS = (
    1000  # chunks that a color profile in a PNG counts for: a megabyte may be compressed in it
)
_MAX_STRIPS = 30_000  # Pillow reads them one by one too; programs write no more than there are rows
_SPARE_BYTES = (
    1 << 24
)  # that tags may name beside the file's own, as those of some cameras do by mistake
_MAX_TILE = 4096**2  # pixels, which a decoder holds even if the image has fewer

# Of HEIC and AVIF files.
_MAX_ENTRIES = 20_000  # of tables; 64 million pixels in tiles of 256 x 256 have some 7,000
_MAX_FRAMES = 1_000_000  # libheif takes 64 bytes for each
_MAX_TURNS = 3  # of an image: crop, rotation and mirror, once each (MIAF)
_TURNS = {b"clap", b"irot", b"imir"}
_CANVASES = {
    b"iovl",
    b"tili",
}  # overlays and tiled images have their size in data that nothing else repeats
_ALPHA = re.compile(rb"urn:mpeg:(mpegB:cicp:systems:auxiliary:alpha|(hevc|avc):2015:auxid:1)\0")

_MARKER = re.compile(rb"\xff[\x01-\xfe]")
_MARKER_IN_SCANS = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")
_ALONE = {
    *range(0x01, 0xC0),
    *range(0xD0, 0xDA),
}  # those below 0xC0 mean nothing, and decoders skip two bytes
_SCAN = 0xDA
_END = 0xD9
_NEAR = _MAX_PARTS + 2
_BULK = {b"IDAT", b"fdAT"}
_TIFF = {
    b"II*\0",
    b"II\0*",
    b"MM\0*",
    b"MM*\0",
    b"II+\0",
    b"MM\0+",
}  # all that Pillow takes for one
_WIDTH = 322
_LENGTH = 323
_STRIPS = {273, 324}
_COMPRESSION = 259
_JPEG = {6, 7}  # old and new; each strip may be a JPEG of as many scans as it likes
_NUMBERS = {3: "H", 4: "I"}
_BYTES = {
    1: 1,
    2: 1,
    3: 2,
    4: 4,
    5: 8,
    6: 1,
    7: 1,
    8: 2,
    9: 4,
    10: 8,
    11: 4,
    12: 8,
    13: 4,
    16: 8,
    17: 8,
    18: 8,
}


def check_parts(data: bytes) -> None:
    """Check the parts that decoders read one by one; ValueError for too many, or more bytes than the file holds."""
    if data.startswith(b"\xff\xd8"):
        _check_jpeg(data)
    elif data.startswith(b"\x89PNG"):
        _check_png(data)
    elif data.startswith((b"GIF87a", b"GIF89a")):
        _check_gif(data)
    elif (
        data.startswith(b"BM")
        and len(data) >= 34
        and int.from_bytes(data[30:34], "little") in {1, 2}
    ):
        width, height = (abs(side) for side in struct.unpack_from("<ii", data, 18))
        if max(width * height, len(data)) > _MAX_RUNS:
            raise ValueError(
                f"runs of {width} x {height} pixels in {len(data):,} bytes; at most {_MAX_RUNS:,} of both"
            )
    elif data[:4] in _TIFF:
        check_directory(data, is_file=True)
    elif data[4:8] == b"ftyp":
        _Items(data).check()


def check_size(opened: Image.Image, *, max_pixels: int) -> None:
    """Check the sizes that the header of an image names; ValueError if one is too large."""
    width, height = opened.size
    check_pixels(opened, max_pixels=max_pixels)
    if max(width, height) > MAX_SIDE:
        raise ValueError(
            f"{width} x {height}: a side has at most {MAX_SIDE:,} pixels, make it smaller"
        )
    tags = getattr(opened, "tag_v2", {})
    stored = tags.get(256, width), tags.get(257, height)  # before a rotation
    across = tags.get(_WIDTH) or stored[0]
    down = tags.get(_LENGTH) or stored[1]
    tiles = -(-stored[0] // across) * -(-stored[1] // down)
    if (
        across * down > max(_MAX_TILE, width * height)
        or tiles * across * down > _MAX_TILE + 4 * width * height
    ):
        raise ValueError(
            f"{tiles:,} tiles of {across * down:,} pixels for an image of {width} x {height}"
        )


def _check_jpeg(data: bytes) -> None:
    offset = 2
    parts = 0
    scans = 0
    while (
        found := _MARKER_IN_SCANS.search(data, offset)
        if scans
        else _MARKER.search(data, offset, offset + _NEAR)
    ):
        parts += 1 if scans else 1 + found.start() - offset  # padding is read byte by byte
        offset = found.end()
        code = data[found.end() - 1]
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
    offset = 8
    parts = 0
    bulk = 0
    while offset < len(data):
        length = int.from_bytes(data[offset : offset + 4])
        kind = data[offset + 4 : offset + 8]
        offset = offset + 12 + length
        bulk = bulk + (kind in _BULK)
        parts += _PROFILE_PARTS if kind == b"iCCP" else kind not in _BULK
        if parts > _MAX_PARTS or bulk > _MAX_BULK:
            raise ValueError(f"more than {_MAX_PARTS} chunks, or {_MAX_BULK:,} of pixels")


def _check_gif(data: bytes) -> None:
    flags = data[10] if len(data) > 10 else 0
    offset = 13 + (6 << (flags & 7) if flags & 0x80 else 0)
    parts = 0
    while offset < len(data) and data[offset] not in b",;":
        if data[offset] == ord("!"):
            offset += 2
            while offset < len(data) and data[offset] and parts <= _MAX_PARTS:
                offset = offset + 1 + data[offset]
                parts = parts + 1
        offset = offset + 1
        parts = parts + 1
        if parts > _MAX_PARTS:
            raise ValueError(f"more than {_MAX_PARTS} blocks")


def check_directory(data: bytes, *, is_file: bool = False) -> None:
    """Check the first directory of a TIFF file (`is_file`), or of EXIF data.

    ValueError for too many tags, strips or bytes, or a file whose pixels are JPEG; struct.error if it is missing.
    """
    order = "<" if data[:2] == b"II" else ">"
    is_big = 43 in data[2:4]
    (start,) = struct.unpack_from(order + ("Q" if is_big else "I"), data, 8 if is_big else 4)
    start = min(start, len(data))  # above 2**63 it is no offset for `struct`
    (number,) = struct.unpack_from(order + ("Q" if is_big else "H"), data, start)
    layout = struct.Struct(order + ("HHQ8x" if is_big else "HHI4x"))
    first = start + (8 if is_big else 2)
    total = 0
    end = min(first + number * layout.size, len(data) - layout.size + 1)
    for offset in range(first, end, layout.size)[:_MAX_PARTS]:
        tag, kind, count = layout.unpack_from(data, offset)
        total += min(count * _BYTES.get(kind, 1), len(data))
        if tag in _STRIPS and count > _MAX_STRIPS:
            raise ValueError(f"{count:,} strips or tiles; at most {_MAX_STRIPS:,} are read")
        if (
            is_file and tag == _COMPRESSION
        ):  # every one: of several, Pillow and its decoder may go by different ones
            at = offset + layout.size - (8 if is_big else 4)
            (value,) = struct.unpack_from(order + _NUMBERS.get(kind, "H"), data, at)
            if kind not in _NUMBERS or count != 1 or value in _JPEG:
                raise ValueError(
                    f"a TIFF whose pixels are JPEG (compression {value}); save it as JPEG or PNG"
                )
    if number > _MAX_PARTS or total > 2 * len(data) + _SPARE_BYTES:
        raise ValueError(f"{number:,} tags that name {total:,} bytes, in {len(data):,}")


class _Items:
    """Images and metadata of a HEIC or AVIF file: they share properties and parts, so that few may stand for many."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0
        self._entries = 0
        self._properties_size = 0
        self._bytes = Counter[int]()  # these by item
        self._pixels = Counter[int]()
        self._turns = Counter[int]()
        self._alphas = set[int]()
        self._parts = defaultdict[int, list[int]](list)
        self._work = dict[int, int]()

    def check(self) -> None:
        """Check the numbers of entries, bytes that are copied, and pixels that are allocated and decoded."""
        whole = range(len(self._data))
        self._check_frames(whole)
        references: list[tuple[bytes, int, list[int]]] = []
        for meta in self._contents([whole], b"meta"):
            references += self._read_meta(meta)
        copied = self._properties_size
        for kind, item, targets in references:
            if kind == b"dimg":
                self._parts[item] += targets
            elif (
                kind == b"auxl" and item in self._alphas
            ):  # decoded with each image that it belongs to
                for image in targets:
                    self._parts[image].append(item)
            elif kind == b"cdsc":  # metadata: each image gets a copy
                copied += self._bytes[item] * len(targets)
        if copied > 8 * len(self._data) + _SPARE_BYTES:
            raise ValueError(f"items that name {copied:,} bytes, in {len(self._data):,}")
        self._check_items()

    def _read_meta(self, meta: range) -> list[tuple[bytes, int, list[int]]]:
        """Read the tables of items, and return the references between them."""
        references: list[tuple[bytes, int, list[int]]] = []
        for kind, content in self._boxes(meta[4:]):
            if kind == b"iinf":
                self._check_types(content)
            elif kind == b"iloc":
                self._read_places(content)
            elif kind == b"iprp":
                self._read_properties(content)
            elif kind == b"iref":
                references += self._read_references(content)
        return references

    def _check_items(self) -> None:
        most_bytes = max(self._bytes.values(), default=0)
        if most_bytes > len(self._data):
            raise ValueError(f"an item of {most_bytes:,} bytes, in {len(self._data):,}")
        turns = max(self._turns.values(), default=0)
        if turns > _MAX_TURNS:
            raise ValueError(
                f"an image that is turned {turns} times; at most {_MAX_TURNS} are allowed"
            )
        largest = max(self._pixels.values(), default=0)
        if largest > MAX_PIXELS:
            raise ValueError(f"an image of {largest:,} pixels; at most {MAX_PIXELS:,} are allowed")
        for item in list(self._parts):
            self._check_parts(item, largest)

    def _check_parts(self, item: int, largest: int) -> int:
        """Return the pixels and bytes that an image and its parts cost; ValueError if it shows far fewer pixels."""
        if item not in self._work:
            self._work[item] = -1
            parts = [self._check_parts(part, largest) for part in self._parts.get(item, ())]
            pixels = self._pixels[item] or largest
            if min(parts, default=0) < 0 or sum(parts) > _MAX_TILE + 4 * pixels:
                raise ValueError(
                    f"an image of {pixels:,} pixels that is made of {sum(parts):,}, or of itself"
                )
            self._work[item] = pixels * (1 + self._turns[item]) + self._bytes[item] + sum(parts)
        return self._work[item]

    def _check_frames(self, whole: range) -> None:
        """Check the frames of image sequences: a decoder keeps a record of each, though only images are read."""
        parts = [whole]
        for kind in (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"stsz"):
            parts = self._contents(parts, kind)
        frames = sum(int.from_bytes(self._data[part.start + 8 : part.start + 12]) for part in parts)
        if frames > _MAX_FRAMES:
            raise ValueError(
                f"a sequence of {frames:,} frames; at most {_MAX_FRAMES:,} are allowed"
            )

    def _check_types(self, table: range) -> None:
        size = 4 if self._data[table.start] else 2  # of the number of entries, by the version
        for _, content in self._boxes(table[4 + size :]):
            at = content.start + (10 if self._data[content.start] == 3 else 8)
            kind = self._data[at : at + 4]
            if kind in _CANVASES:
                raise ValueError(
                    f"an item of type {kind.decode()}, which cameras do not write; save it as JPEG or PNG"
                )

    def _read_places(self, table: range) -> None:
        self._at = table.start
        version = self._take(1)
        self._at += 3
        sizes = self._take(2)
        width = 4 if version > 1 else 2
        base = sizes >> 4 & 15
        head = (4 if version else 2) + base  # method, source and base
        index = sizes & 15 if version else 0
        for _ in self._count(width):
            item = self._take(width)
            self._at += head
            for _ in self._count(2):
                self._at += index + (sizes >> 12)
                length = self._take(sizes >> 8 & 15) or len(self._data)  # 0: all of it
                self._bytes[item] += min(length, len(self._data))

    def _read_properties(self, part: range) -> None:
        properties = [(b"", range(0))]  # they count from one
        for table in self._contents([part], b"ipco"):
            properties += self._boxes(table)
        for table in self._contents([part], b"ipma"):
            self._at = table.start
            version = self._take(1)
            flags = self._take(3)
            for _ in self._count(4):
                item = self._take(4 if version else 2)
                for _ in self._count(1):
                    kind, content = properties[
                        self._take(2) & 0x7FFF if flags & 1 else self._take(1) & 0x7F
                    ]
                    self._properties_size += len(content)
                    if kind == b"ispe":
                        width, height = struct.unpack_from(">II", self._data, content.start + 4)
                        self._pixels[item] = max(self._pixels[item], width * height)
                    elif kind in _TURNS:
                        self._turns[item] += 1
                    elif kind == b"auxC" and _ALPHA.match(self._data, content.start + 4):
                        self._alphas.add(item)

    def _read_references(self, table: range) -> Iterator[tuple[bytes, int, list[int]]]:
        """Yield kind, item and the items that it names."""
        size = 4 if self._data[table.start] else 2  # by the version
        for kind, content in self._boxes(table[4:]):
            self._at = content.start
            item = self._take(size)
            yield kind, item, [self._take(size) for _ in self._count(2)]

    def _contents(self, parts: Sequence[range], kind: bytes) -> list[range]:
        """Return the contents of all boxes of a kind in some parts of the file."""
        boxes = itertools.chain.from_iterable(map(self._boxes, parts))
        return [content for name, content in boxes if name == kind]

    def _boxes(self, part: range) -> list[tuple[bytes, range]]:
        """Return kind and content of each box in a part of the file."""
        boxes: list[tuple[bytes, range]] = []
        while len(part) >= 8:
            at = part.start
            head = 8
            size = int.from_bytes(self._data[at : at + 4])
            kind = self._data[at + 4 : at + 8]
            if size == 1:
                size = int.from_bytes(self._data[at + 8 : at + 16])
                head = 16
            size = size or len(part)  # 0: up to the end
            if size < head:
                raise ValueError(f"a box of {size} bytes")
            self._add_entries(1)
            boxes.append((kind, part[head:size]))
            part = part[size:]
        return boxes

    def _take(self, size: int) -> int:
        self._at += size
        return int.from_bytes(self._data[self._at - size : self._at])

    def _count(self, size: int) -> range:
        """Read the number of the entries that follow."""
        number = self._take(size)
        self._add_entries(number)
        return range(number)

    def _add_entries(self, number: int) -> None:
        self._entries += number
        if self._entries > _MAX_ENTRIES:
            raise ValueError(f"more than {_MAX_ENTRIES:,} boxes, properties and references")
