"""Small files that would cause large work: each is refused before a decoder sees it, and usual ones are not."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image
from tests.toy_heic import (
    Item,
    auxiliary,
    box,
    encoded_item,
    full_box,
    grid_of,
    heic,
    items_file,
    movie,
    overlay_of,
    tables,
)

from vlmo.data.decoding import COMMON_FORMATS, EncodedImage, decode_image, image_bytes


def encoded(kind: str, *, size: tuple[int, int] = (40, 24), **options) -> bytes:
    return image_bytes(Image.effect_noise(size, 50), kind, **options)


def png_chunk(kind: bytes, data: bytes = b"") -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_line() -> bytes:
    head = png_chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 70_000, 1, 0, 0, 0, 0))
    return (
        b"\x89PNG\r\n\x1a\n"
        + head
        + png_chunk(b"IDAT", zlib.compress(bytes(140_000)))
        + png_chunk(b"IEND")
    )


def with_scans(number: int) -> bytes:
    whole = encoded("JPEG", progressive=True)
    last = whole[whole.rindex(b"\xff\xc4", 0, whole.rindex(b"\xff\xda")) : -2]
    return whole[:-2] + number * last + whole[-2:]


def with_sequential_scans(number: int) -> bytes:
    """A baseline file of one component whose scan is there more than once."""
    whole = encoded("JPEG")
    return whole[:-2] + number * whole[whole.rindex(b"\xff\xda") : -2] + whole[-2:]


def runs(width: int, height: int, *, more: int = 0) -> bytes:
    head = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, 2, 1, 1, 256, 0)
    return (
        b"BM"
        + struct.pack("<IHHI", 0, 0, 0, 54 + 1024)
        + head
        + bytes(1024)
        + b"\0\1"
        + bytes(more)
    )


def after_start(data: bytes, more: bytes, *, start: int = 2) -> bytes:
    return data[:start] + more + data[start:]


def tiff(*tags: tuple[int, int, int, int], data: bytes = bytes(960), order: str = "<") -> bytes:
    """A grey image of 40 x 24, unless `tags` say something else."""
    entries = {
        256: (4, 1, 40),
        257: (4, 1, 24),
        258: (3, 1, 8),
        259: (3, 1, 1),
        262: (3, 1, 1),
        273: (4, 1, 8),
    }
    entries |= {277: (3, 1, 1), 278: (4, 1, 24), 279: (4, 1, 960)} | {
        tag: rest for tag, *rest in tags
    }
    if order == ">":  # values of 16 bits stand on the left
        entries = {
            tag: (kind, count, value << 16 if kind == 3 else value)
            for tag, (kind, count, value) in entries.items()
        }
    listed = [struct.pack(f"{order}HHII", tag, *entries[tag]) for tag in sorted(entries)]
    directory = struct.pack(f"{order}H", len(listed)) + b"".join(listed) + bytes(4)
    return (
        {"<": b"II*\0", ">": b"MM\0*"}[order]
        + struct.pack(f"{order}I", 8 + len(data))
        + data
        + directory
    )


def tiff_strips() -> bytes:
    return tiff((273, 4, 30_001, 8), data=bytes(120_004))


def tiff_tile(side: int) -> bytes:
    tile = zlib.compress(bytes(side * min(side, 256)))
    tags = [
        (322, 4, 1, side),
        (323, 4, 1, side),
        (324, 4, 1, 8),
        (325, 4, 1, len(tile)),
        (259, 3, 1, 8),
    ]
    return tiff(*tags, data=tile)


def with_hidden_scans(whole: bytes) -> bytes:
    """Scans behind a marker that means nothing, whose length decoders do not read."""
    return whole[:-2] + b"\xff\x02\x40\x00" + 33 * b"\xff\xda\x00\x02" + whole[-2:]


def tiff_tiles(
    width: int, height: int, *more: tuple[int, int, int, int], tile: tuple[int, int]
) -> bytes:
    """Tiles that all lie at one place of the file."""
    number, packed = (
        -(-width // tile[0]) * -(-height // tile[1]),
        zlib.compress(bytes(tile[0] * tile[1])),
    )
    first = 8 + 8 * number
    data = (
        struct.pack(f"<{number}I", *[first] * number)
        + struct.pack(f"<{number}I", *[len(packed)] * number)
        + packed
    )
    tags = [
        (256, 4, 1, width),
        (257, 4, 1, height),
        (322, 4, 1, tile[0]),
        (323, 4, 1, tile[1]),
        (259, 3, 1, 8),
    ]
    return tiff(*tags, (324, 4, number, 8), (325, 4, number, 8 + 4 * number), *more, data=data)


def png_profiles(number: int) -> bytes:
    profile = png_chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(1000)))
    return after_start(encoded("PNG"), profile * number, start=33)


def part_of(kind: bytes, *parts: Item) -> bytes:
    """A chain: the first item is made of the second, and so on."""
    references = [(kind, number, [number + 1]) for number in range(1, len(parts))]
    return items_file(dict(enumerate(parts, start=1)), references)


def alpha_of_tiles() -> bytes:
    """Tiles that all have one large image for their transparency."""
    alpha = Item(size=(4000, 4000), properties=[auxiliary(b"auxid:1")])
    items = {1: grid_of(1, 40, 2560, 64), 2: Item(size=(64, 64)), 3: alpha}
    return items_file(items, [(b"dimg", 1, [2] * 40), (b"auxl", 3, [2])])


def phone_photo() -> bytes:
    """What phones write: a rotated grid, its brightness and depth, an HDR version as an alternative, and metadata."""
    tile = encoded_item(Image.effect_noise((64, 64), 50).convert("RGB"))
    turned = box(b"irot", b"\1")
    grid = grid_of(1, 2, 128, 64)
    gains = encoded_item(
        Image.new("L", (64, 32)), auxiliary(b"urn:com:apple:photo:2020:aux:hdrgainmap")
    )
    depth = encoded_item(Image.new("L", (48, 48)), auxiliary(b"auxid:2"))
    items = {
        1: Item(b"grid", grid.size, grid.data, [turned]),
        **dict.fromkeys((2, 3), tile),
        4: gains,
        5: depth,
        6: Item(b"tmap", (128, 64), bytes(62), [turned]),
        7: Item(b"Exif", data=b"\0\0\0\x06Exif\0\0" + tiff()),
        8: Item(b"mime", data=b"<x:xmpmeta/>"),
        9: encoded_item(Image.new("RGB", (32, 16))),
    }
    references = [
        (b"dimg", 1, [2, 3]),
        (b"dimg", 6, [1, 4]),
        (b"auxl", 4, [1]),
        (b"auxl", 5, [1]),
        (b"thmb", 9, [1]),
    ]
    groups = box(b"grpl", full_box(b"altr", struct.pack(">IIII", 50, 2, 6, 1)))
    video = box(b"mpvd", encoded("JPEG")) + movie(90)
    return items_file(
        items, [*references, (b"cdsc", 7, [1, 6]), (b"cdsc", 8, [1])], groups=groups, more=video
    )


MEGABYTE = 1 << 20
LARGE_CANVAS = overlay_of((30_000, 30_000))
SAME_TILE = [(b"dimg", 1, [2] * 99)]
ONE, TWO = {1: (8, 8)}, {1: (8, 8), 2: (8, 8)}
LARGE = [(1000 + number, 1, MEGABYTE, 8) for number in range(40)]
"""Tags that each name the same megabyte."""
HOSTILE = {
    "line": (png_line, "1 x 70000: a side has at most 65,535 pixels"),
    "scans": (lambda: with_scans(40), "33 scans; at most 32"),
    "sequential scans": (lambda: with_sequential_scans(33), "33 scans"),
    "comment": (
        lambda: after_start(encoded("GIF"), b"!\xfe" + 5001 * b"\1a" + b"\0", start=781),
        "5,001 blocks; at most 5,000",
    ),
    "junk": (lambda: after_start(encoded("GIF"), bytes(5001), start=781), "5,001 blocks"),
    "runs": (lambda: runs(3000, 3000), "runs of 3000 x 3000 pixels"),
    "bytes of runs": (lambda: runs(30, 30, more=1 << 22), "runs of 30 x 30 pixels in 4,195,"),
    "bulk": (
        lambda: after_start(encoded("PNG"), png_chunk(b"IDAT") * 100_001, start=33),
        "100,001 chunks of pixels",
    ),
    "segments": (
        lambda: after_start(encoded("JPEG"), b"\xff\xfe\x00\x02" * 5001),
        "segments; at most 5,000",
    ),
    "restarts": (
        lambda: after_start(encoded("JPEG"), b"\xff\xd0" * 5001),
        "segments; at most 5,000",
    ),
    "padding": (lambda: after_start(encoded("JPEG"), b"\xff" * 50_000), "segments; at most 5,000"),
    "chunks": (
        lambda: after_start(encoded("PNG"), png_chunk(b"prVt") * 5001, start=33),
        "chunks; at most 5,000",
    ),
    "tile": (lambda: tiff_tile(46_000), "1 tiles of 2,116,000,000 pixels for an image of 40 x 24"),
    "tiles": (
        lambda: tiff_tiles(1600, 16, tile=(16, 1 << 20)),
        "100 tiles of 16,777,216 pixels .* 1600 x 16",
    ),
    "tiles of a rotated image": (
        lambda: tiff_tiles(1600, 16, (274, 3, 1, 6), tile=(16, 1 << 20)),
        "100 tiles of 16,777,216 pixels for an image of 16 x 1600",
    ),
    "hidden scans": (lambda: with_hidden_scans(encoded("JPEG", progressive=True)), "33 scans"),
    "hidden sequential scans": (lambda: with_hidden_scans(encoded("JPEG")), "33 scans"),
    "profiles": (lambda: png_profiles(6), "chunks; at most 5,000"),
    "strips": (tiff_strips, "30,001 strips or tiles"),
    "another order": (lambda: b"II\0*" + tiff_strips()[4:], "30,001 strips or tiles"),
    "jpeg in strips": (
        lambda: encoded("TIFF", compression="jpeg"),
        r"pixels are JPEG \(compression 7\)",
    ),
    "jpeg in a big tiff": (
        lambda: encoded("TIFF", compression="jpeg", big_tiff=True),
        "pixels are JPEG",
    ),
    "old jpeg, another order": (lambda: tiff((259, 3, 1, 6), order=">"), "pixels are JPEG"),
    "jpeg as a byte": (lambda: tiff((259, 1, 1, 7)), "pixels are JPEG"),
    "jpeg said second": (
        lambda: tiff((260, 3, 1, 7)).replace(
            struct.pack("<HHI", 260, 3, 1), struct.pack("<HHI", 259, 3, 1)
        ),
        "pixels are JPEG",
    ),
    "tags": (lambda: tiff(*LARGE, data=bytes(MEGABYTE)), "49 tags that name 41,943"),
    "boxes of a heic": (lambda: tables(ONE) + box(b"free") * 20_000, "20,001 boxes"),
    "box that ends before it begins": (lambda: tables(ONE) + b"\0\0\0\4free", "a box of 4 bytes"),
    "item that is too large": (
        lambda: tables({1: (8, 8), 2: (60_000, 60_000)}),
        "3,600,000,000 pixels of an image",
    ),
    "grid of one tile": (
        lambda: tables({1: (4000, 4000), 2: (4000, 4000)}, references=[(b"dimg", 1, [2] * 1000)]),
        "16,000,000 pixels that is made of 16,002,",
    ),
    "grid of grids": (
        lambda: tables(
            dict.fromkeys(range(1, 9), (4000, 4000)),
            references=[(b"dimg", n, [n + 1] * 3) for n in range(1, 8)],
        ),
        "16,000,000 pixels that is made of",
    ),
    "image of itself": (
        lambda: tables(TWO, references=[(b"dimg", 1, [2]), (b"dimg", 2, [1])]),
        "or of itself",
    ),
    "shared metadata": (
        lambda: tables(TWO, references=[(b"cdsc", 2, [1] * 40)], data=bytes(MEGABYTE)),
        "items that name 4",
    ),
    "shared profile": (
        lambda: tables(dict.fromkeys(range(40), (8, 8)), profile=bytes(MEGABYTE)),
        "items that name 41,9",
    ),
    "references": (
        lambda: tables(ONE, references=[(b"dimg", 1, [2] * 20_000)]),
        "boxes, properties and references; at most 20,000",
    ),
    "overlay": (
        lambda: part_of(b"dimg", LARGE_CANVAS, Item(size=(64, 64))),
        "an item of type iovl",
    ),
    "overlay of an overlay": (
        lambda: part_of(b"dimg", overlay_of((64, 64)), LARGE_CANVAS),
        "an item of type iovl",
    ),
    "grid of an overlay": (
        lambda: part_of(b"dimg", grid_of(1, 1, 64, 64), LARGE_CANVAS),
        "an item of type iovl",
    ),
    "copy of an overlay": (
        lambda: part_of(b"dimg", Item(b"iden", (64, 64)), LARGE_CANVAS),
        "an item of type iovl",
    ),
    "tiled image": (lambda: part_of(b"dimg", Item(b"tili", (64, 64))), "an item of type tili"),
    "copies without a size": (
        lambda: part_of(b"dimg", Item(size=(4000, 4000)), *[Item(b"iden")] * 40, Item(size=(8, 8))),
        "16,000,000 pixels that is made of",
    ),
    "long chain of images": (lambda: part_of(b"dimg", *[Item(size=(1, 1))] * 2000), "recursion"),
    "transparency of transparency": (
        lambda: part_of(
            b"auxl", *[Item(size=(4000, 4000), properties=[auxiliary(b"auxid:1")])] * 9
        ),
        "16,000,000 pixels that is made of",
    ),
    "transparency of tiles": (alpha_of_tiles, "163,840 pixels that is made of 640,"),
    "rotations": (
        lambda: items_file(
            {1: Item(size=(8, 8), properties=[box(b"irot", b"\1", bytes(n)) for n in range(4)])}
        ),
        "4 turns of an image; at most 3",
    ),
    "pieces of an item": (
        lambda: items_file(
            {1: Item(size=(8, 8)), 2: Item(b"Exif", data=bytes(MEGABYTE), extents=30)}
        ),
        "31,457,280 bytes of an item",
    ),
    "pieces of metadata": (
        lambda: items_file(
            {1: Item(size=(8, 8)), 2: Item(b"Exif", data=bytes(MEGABYTE), extents=30)},
            [(b"cdsc", 2, [1])],
        ),
        "items that name 31,457,",
    ),
    "bytes of a tile": (
        lambda: items_file(
            {1: grid_of(1, 99, 6336, 64), 2: Item(size=(64, 64), data=bytes(MEGABYTE))}, SAME_TILE
        ),
        "405,504 pixels that is made of 104,",
    ),
    "frames": (
        lambda: items_file({1: Item(size=(8, 8))}, more=movie(1_000_001)),
        "1,000,001 frames of a sequence",
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_file_that_would_cause_large_work_is_refused(name: str) -> None:
    make, reason = HOSTILE[name]
    with pytest.raises(ValueError, match=reason):
        EncodedImage({"bytes": make(), "path": None})


USUAL = {
    "progressive": lambda: with_scans(10),
    "thumbnail": lambda: after_start(encoded("JPEG"), b"\xff\xe5\x40\x02" + (b"\xff\xda" * 0x2000)),
    "padded": lambda: after_start(encoded("JPEG"), b"\xff" * 100),
    "profile": lambda: encoded("JPEG", icc_profile=bytes(2_000_000), comment=b"x" * 60_000),
    "chunks": lambda: after_start(encoded("PNG"), png_chunk(b"prVt") * 100, start=33),
    "strips": lambda: encoded("TIFF", size=(8, 3000), strip_size=8),
    "tiles": lambda: tiff_tile(256),
    "many tiles": lambda: tiff_tiles(2000, 10, tile=(16, 4096)),
    "moving photo": lambda: encoded("JPEG") + b"\xff\xda" * 100,
    "one profile": lambda: png_profiles(1),
    "big endian": lambda: tiff(order=">"),
    "big tiff": lambda: encoded("TIFF", big_tiff=True),
    "gif": lambda: encoded("GIF", comment=b"x" * 60_000),
    "side": lambda: encoded("PNG", size=(65_535, 1)),
    "heic": lambda: heic(
        Image.effect_noise((40, 24), 50).convert("RGB"), exif=b"Exif\0\0" + tiff()
    ),
    "transparent heic": lambda: heic(Image.new("RGBA", (64, 64), (9, 9, 9, 255))),
    "photo of a phone": phone_photo,
    "avif": lambda: encoded("AVIF"),
}


@pytest.mark.parametrize("name", USUAL)
def test_usual_file_is_decoded(name: str) -> None:
    data = USUAL[name]()
    expected = Image.open(io.BytesIO(data)).convert("RGB")
    np.testing.assert_array_equal(
        np.asarray(decode_image({"bytes": data, "path": None})), np.asarray(expected)
    )


def test_orientation_is_not_looked_for_in_exif_that_names_more_than_it_holds() -> None:
    def oriented(
        *tags: tuple[int, int, int, int],
    ) -> bytes:  # also where it says how a thumbnail is compressed
        exif = tiff((0x0112, 3, 1, 6), (259, 3, 1, 6), *tags, data=bytes(MEGABYTE))
        return after_start(encoded("PNG"), png_chunk(b"eXIf", exif), start=33)

    for data, size in ((oriented(), (24, 40)), (oriented(*LARGE), (40, 24))):
        assert decode_image({"bytes": data, "path": None}).size == size


def test_scenes_are_left_out_on_demand() -> None:
    data = b"scene:9|ffffff"
    assert decode_image({"bytes": data, "path": None}).size == (9, 9)
    with pytest.raises(ValueError, match="not an image in a known format"):
        decode_image({"bytes": data, "path": None}, formats=COMMON_FORMATS)
