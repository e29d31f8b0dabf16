"""Work that a small image file can cause, read from its headers before a decoder does it: parts, scans, tags, tiles."""

import contextlib
import io
import itertools
import re
import struct
from collections import Counter, defaultdict
from collections.abc import Iterator

from PIL import Image

from vlmo.processing.images import MAX_PIXELS, check_pixels

MAX_SIDE = 65_535
"""Longest side that is decoded, JPEG's own limit: rows of one pixel take many times the memory of the pixels."""
# Pillow reads segments, chunks and blocks one by one; cameras write some tens.
_MAX_PARTS = 5000
# Chunks of pixels, 8 KB in usual files.
_MAX_BULK = 100_000
# Scans of a JPEG, all of them over the whole image; encoders write about ten.
_MAX_SCANS = 32
# Bytes, and pixels, of a BMP of runs, which Pillow decodes in Python.
_MAX_RUNS = 1 << 22
# A color profile in a PNG counts for so many chunks: a megabyte may be compressed in it.
_PROFILE_PARTS = 1000
# Pillow reads strips one by one too; programs write no more than there are rows.
_MAX_STRIPS = 30_000
# Bytes that tags may name beside the file's own, as those of some cameras do by mistake.
_SPARE_BYTES = 1 << 24
# Pixels, which a decoder holds even if the image has fewer.
_MAX_TILE = 4096**2

# The tables of a HEIC or AVIF file; 64 million pixels in tiles of 256 x 256 have some 7,000.
_MAX_ENTRIES = 20_000
# libheif takes 64 bytes for a frame.
_MAX_FRAMES = 1_000_000
# An image is cropped, rotated and mirrored once at most (MIAF).
_MAX_TURNS = 3
# Boxes of HEIF (ISO 23008-12): crop, rotation and mirroring, each of which copies the image.
_TURNS = {b"clap", b"irot", b"imir"}
# Overlays and tiled images have their size in data that nothing else repeats.
_CANVASES = {b"iovl", b"tili"}
_ALPHA = re.compile(
    rb"urn:mpeg:(mpegB:cicp:systems:auxiliary:alpha|(hevc|avc):2015:auxid:1)(\0|\Z)"
)

# JPEG (ITU T.81, annex B): a marker is 0xFF and a code; between scans 0xFF 0x00 and restarts are data.
_MARKER = re.compile(rb"\xff[\x01-\xfe]")
_MARKER_IN_SCANS = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")
# Markers without a length; those below 0xC0 mean nothing, and decoders skip two bytes.
_ALONE = {*range(0x01, 0xC0), *range(0xD0, 0xDA)}
# Codes of the start of a scan, and of the end of the image.
_SCAN = 0xDA
_END = 0xD9
# Chunks of pixels (PNG, 11.2.3), and of the further frames of an animation.
_BULK = {b"IDAT", b"fdAT"}

# All that Pillow takes for a TIFF file.
_TIFF = {b"II*\0", b"II\0*", b"MM\0*", b"MM*\0", b"II+\0", b"MM\0+"}
# Bytes of an offset, and the codes of an offset, of the number of tags and of a tag.
_SMALL_TIFF = (4, "I", "H", "HHI4x")
_BIG_TIFF = (8, "Q", "Q", "HHQ8x")
# Tags of TIFF 6.0: size of a tile, places of strips and tiles, compression.
_WIDTH = 322
_LENGTH = 323
_STRIPS = {273, 324}
_COMPRESSION = 259
# Old and new; a strip may be a JPEG of as many scans as it likes.
_JPEG = {6, 7}
# Types of one number that a directory holds itself: SHORT and LONG.
_NUMBERS = {3: "H", 4: "I"}
# Bytes of a value by its type.
_BYTES = dict(enumerate((1, 1, 1, 2, 4, 8, 1, 1, 2, 4, 8, 4, 8, 4, 1, 1, 8, 8, 8)))


def check_parts(data: bytes) -> None:
    """Check the parts that decoders read one by one; ValueError for too many, or more bytes than the file holds."""
    # By the first bytes, as decoders choose: names and media types may lie.
    if data.startswith(b"\xff\xd8"):
        _check_jpeg(data)
    elif data.startswith(b"\x89PNG"):
        _check_png(data)
    elif data.startswith((b"GIF87a", b"GIF89a")):
        _check_gif(data)
    elif data.startswith(b"BM") and data[30:34] in {b"\1\0\0\0", b"\2\0\0\0"}:  # of runs
        # A negative height means that rows run from top to bottom.
        width, height = struct.unpack_from("<ii", data, 18)
        if max(abs(width * height), len(data)) > _MAX_RUNS:
            raise ValueError(
                f"runs of {abs(width)} x {abs(height)} pixels in {len(data):,} bytes; "
                f"at most {_MAX_RUNS:,} of both"
            )
    elif data[:4] in _TIFF:
        check_directory(data, is_file=True)
    elif data[4:8] == b"ftyp":
        _Items(data).check()


def _check_number(number: int, most: int, noun: str) -> None:
    if number > most:
        raise ValueError(f"{number:,} {noun}; at most {most:,} are read")


def check_size(opened: Image.Image, *, max_pixels: int) -> None:
    """Check the sizes that the header of an image names; ValueError if one is too large."""
    width, height = opened.size
    check_pixels(opened, max_pixels=max_pixels)
    if max(width, height) > MAX_SIDE:
        raise ValueError(
            f"{width} x {height}: a side has at most {MAX_SIDE:,} pixels, make it smaller"
        )
    tags = getattr(opened, "tag_v2", {})
    # Before a rotation.
    stored_width = tags.get(256, width)
    stored_height = tags.get(257, height)
    across = tags.get(_WIDTH) or stored_width
    down = tags.get(_LENGTH) or stored_height
    # Tiles at the edges are decoded whole.
    tiles = -(-stored_width // across) * -(-stored_height // down)
    pixels = width * height
    tile = across * down
    if tile > max(_MAX_TILE, pixels) or tiles * tile > _MAX_TILE + 4 * pixels:
        raise ValueError(f"{tiles:,} tiles of {tile:,} pixels for an image of {width} x {height}")


def _check_jpeg(data: bytes) -> None:
    offset = 2
    parts = 0
    scans = 0
    pattern = _MARKER
    reach = _MAX_PARTS + 2
    while marker := pattern.search(data, offset, offset + reach):
        parts += 1
        if not scans:
            # Padding is read byte by byte.
            parts += marker.start() - offset
        offset = marker.end()
        code = data[offset - 1]
        # What follows, such as the video of a moving photo, is not read.
        if code == _END:
            return
        if code == _SCAN:
            scans += 1
            pattern = _MARKER_IN_SCANS
            reach = len(data)
        _check_number(parts, _MAX_PARTS, "segments")
        _check_number(scans, _MAX_SCANS, "scans")
        # Two bytes of length, which count themselves.
        if code not in _ALONE:
            offset += int.from_bytes(data[offset : offset + 2])
    if not scans:
        _check_number(len(data) - offset, _MAX_PARTS, "bytes before the next of the segments")


def _check_png(data: bytes) -> None:
    offset = 8
    parts = 0
    bulk = 0
    # A length beyond the end of the file ends the loop too.
    while offset < len(data):
        kind = data[offset + 4 : offset + 8]
        # A chunk is its length (4 bytes), its kind (4), the data and a checksum (4).
        offset += 12 + int.from_bytes(data[offset : offset + 4])
        if kind in _BULK:
            bulk += 1
        else:
            parts += _PROFILE_PARTS if kind == b"iCCP" else 1
        _check_number(parts, _MAX_PARTS, "chunks")
        _check_number(bulk, _MAX_BULK, "chunks of pixels")


def _check_gif(data: bytes) -> None:
    with contextlib.suppress(IndexError):  # the file ends
        offset = 13
        if data[10] & 0x80:
            offset += 6 << (data[10] & 7)  # a palette
        # The signature (6 bytes) and the screen (7) stand before a palette of 3 bytes a color.
        blocks = 0
        while data[offset] not in b",;":
            # An extension is a code, a label and blocks, each after its length; 0 ends them.
            if data[offset] == ord("!"):
                offset += 2
                while data[offset]:
                    offset += 1 + data[offset]
                    blocks += 1
                    _check_number(blocks, _MAX_PARTS, "blocks")
            offset += 1
            blocks += 1
            _check_number(blocks, _MAX_PARTS, "blocks")


def check_directory(data: bytes, *, is_file: bool = False) -> None:
    """Check the first directory of a TIFF file (`is_file`), or of EXIF data.

    ValueError for too many tags, strips or bytes, or a file whose pixels are JPEG; struct.error if it is missing.
    """
    # Intel (II) or Motorola (MM); 43 is BigTIFF, 42 the usual one.
    order = "<" if data[:2] == b"II" else ">"
    size, *codes = _BIG_TIFF if 43 in data[2:4] else _SMALL_TIFF
    offsets, numbers, layout = (struct.Struct(f"{order}{code}") for code in codes)
    (start,) = offsets.unpack_from(data, size)
    # Above 2**63 it is no offset for `struct`.
    start = min(start, len(data))
    (number,) = numbers.unpack_from(data, start)
    first = start + numbers.size
    total = 0
    end = min(first + number * layout.size, len(data) - layout.size + 1)
    for offset in range(first, end, layout.size)[:_MAX_PARTS]:
        tag, kind, count = layout.unpack_from(data, offset)
        total += min(count * _BYTES.get(kind, 1), len(data))
        if tag in _STRIPS:
            _check_number(count, _MAX_STRIPS, "strips or tiles")
        # All of them: of several, Pillow and its decoder may go by different ones.
        if is_file and tag == _COMPRESSION:
            at = offset + layout.size - size
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
        self._data = memoryview(data)
        self._entries = 0
        self._properties_size = 0
        # These by item.
        self._bytes = Counter[int]()
        self._pixels = Counter[int]()
        self._turns = Counter[int]()
        self._alphas = set[int]()
        self._parts = defaultdict[int, list[int]](list)
        self._work = dict[int, int]()
        # Kind, item and the items that it names.
        self._references: list[tuple[bytes, int, list[int]]] = []

    def check(self) -> None:
        """Check the numbers of entries, bytes that are copied, and pixels that are allocated and decoded."""
        # A decoder keeps a record of every frame of a sequence, though only images are read.
        # `stsz` lists the size of every frame: version and flags, a common size, their number.
        samples = self._find(self._data, b"moov", b"trak", b"mdia", b"minf", b"stbl", b"stsz")
        frames = sum(int.from_bytes(table[8:12]) for table in samples)
        _check_number(frames, _MAX_FRAMES, "frames of a sequence")
        # Types, places in the file, properties and references of items.
        readers = {
            b"iinf": self._check_types,
            b"iloc": self._read_places,
            b"iprp": self._read_properties,
            b"iref": self._read_references,
        }
        for meta in self._find(self._data, b"meta"):
            for kind, content in self._boxes(meta[4:]):
                if kind in readers:
                    readers[kind](content)
        # Small parts that many items share are copied for each of them.
        copied = self._properties_size
        for kind, item, targets in self._references:
            if kind == b"dimg":
                self._parts[item] += targets
            elif kind == b"auxl" and item in self._alphas:
                for image in targets:  # the transparency is decoded with all of these
                    self._parts[image].append(item)
            elif kind == b"cdsc":  # metadata, of which all these images get a copy
                copied += self._bytes[item] * len(targets)
        if copied > 8 * len(self._data) + _SPARE_BYTES:
            raise ValueError(f"items that name {copied:,} bytes, in {len(self._data):,}")
        largest = max(self._pixels.values(), default=0)
        _check_number(largest, MAX_PIXELS, "pixels of an image")
        _check_number(max(self._bytes.values(), default=0), len(self._data), "bytes of an item")
        _check_number(max(self._turns.values(), default=0), _MAX_TURNS, "turns of an image")
        for item in list(self._parts):
            self._check_parts(item, largest)

    def _check_parts(self, item: int, largest: int) -> int:
        """Return the pixels and bytes that an image and its parts cost; ValueError if it shows far fewer pixels."""
        if item not in self._work:
            # Marks an item that is being looked at: meeting it again is a circle.
            self._work[item] = -1
            parts = [self._check_parts(part, largest) for part in self._parts.get(item, ())]
            pixels = self._pixels[item] or largest
            if min(parts, default=0) < 0 or sum(parts) > _MAX_TILE + 4 * pixels:
                raise ValueError(
                    f"an image of {pixels:,} pixels that is made of {sum(parts):,}, or of itself"
                )
            self._work[item] = pixels * (1 + self._turns[item]) + self._bytes[item] + sum(parts)
        return self._work[item]

    def _check_types(self, table: memoryview) -> None:
        # Of the number of entries, by the version.
        size = 4 if table[0] else 2
        for _, content in self._boxes(table[4 + size :]):
            at = 10 if content[0] == 3 else 8
            kind = bytes(content[at : at + 4])
            if kind in _CANVASES:
                raise ValueError(
                    f"an item of type {kind.decode()}, which cameras do not write; save it as JPEG or PNG"
                )

    def _read_places(self, table: memoryview) -> None:
        stream = io.BytesIO(table)
        # Version in one byte, flags in three; the version says how wide numbers are.
        version = _take(stream, 4) >> 24
        # Four bits each: widths of offset, length, base and index.
        sizes = _take(stream, 2)
        width = 4 if version > 1 else 2
        head = (4 if version else 2) + (sizes >> 4 & 15)  # method, source and base
        index = sizes & 15 if version else 0
        for _ in self._count(stream, width):
            item = _take(stream, width)
            stream.read(head)
            for _ in self._count(stream, 2):
                stream.read(index + (sizes >> 12))
                length = _take(stream, sizes >> 8 & 15) or len(self._data)  # 0: all of it
                self._bytes[item] += min(length, len(self._data))

    def _read_properties(self, part: memoryview) -> None:
        properties = [(b"", part[:0])]  # they count from one
        for table in self._find(part, b"ipco"):
            properties += self._boxes(table)
        for table in self._find(part, b"ipma"):
            stream = io.BytesIO(table)
            version = _take(stream, 1)
            # A flag says whether numbers of properties take one byte or two.
            width = 2 if _take(stream, 3) & 1 else 1
            for _ in self._count(stream, 4):
                item = _take(stream, 4 if version else 2)
                for _ in self._count(stream, 1):
                    # The first bit says whether a decoder must know the property.
                    number = _take(stream, width) & (0x7FFF if width == 2 else 0x7F)
                    kind, content = properties[number]
                    self._properties_size += len(content)
                    if kind == b"ispe":
                        pixels = int.from_bytes(content[4:8]) * int.from_bytes(content[8:12])
                        self._pixels[item] = max(self._pixels[item], pixels)
                    elif kind in _TURNS:
                        self._turns[item] += 1
                    elif kind == b"auxC" and _ALPHA.match(content, 4):
                        self._alphas.add(item)

    def _read_references(self, table: memoryview) -> None:
        size = 4 if table[0] else 2  # by the version
        for kind, content in self._boxes(table[4:]):
            stream = io.BytesIO(content)
            item = _take(stream, size)
            targets = [_take(stream, size) for _ in self._count(stream, 2)]
            self._references.append((kind, item, targets))

    def _find(self, part: memoryview, *kinds: bytes) -> list[memoryview]:
        """Return the contents of all boxes of the last kind, which lie in boxes of the kinds before it."""
        parts = [part]
        for kind in kinds:
            boxes = itertools.chain.from_iterable(map(self._boxes, parts))
            parts = [content for name, content in boxes if name == kind]
        return parts

    def _boxes(self, part: memoryview) -> Iterator[tuple[bytes, memoryview]]:
        """Yield kind and content of all boxes in a part of the file."""
        while len(part) >= 8:
            head = 8
            size = int.from_bytes(part[:4])
            kind = bytes(part[4:8])
            if size == 1:
                size = int.from_bytes(part[8:16])
                head = 16
            # 0: up to the end.
            size = size or len(part)
            if size < head:
                raise ValueError(f"a box of {size} bytes")
            self._add_entries(1)
            yield kind, part[head:size]
            part = part[size:]

    def _count(self, stream: io.BytesIO, size: int) -> range:
        """Read the number of the entries that follow."""
        number = _take(stream, size)
        self._add_entries(number)
        return range(number)

    def _add_entries(self, number: int) -> None:
        self._entries += number
        _check_number(self._entries, _MAX_ENTRIES, "boxes, properties and references")


def _take(stream: io.BytesIO, size: int) -> int:
    return int.from_bytes(stream.read(size))
