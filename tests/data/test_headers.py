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


def noisy(size: tuple[int, int] = (40, 24)) -> Image.Image:
    return Image.effect_noise(size, 50)


def encoded(kind: str, *, size: tuple[int, int] = (40, 24), **options) -> bytes:
    return image_bytes(noisy(size), kind, **options)


def png_chunk(kind: bytes, data: bytes = b"") -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_line() -> bytes:
    head = png_chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 70_000, 1, 0, 0, 0, 0))
    data = png_chunk(b"IDAT", zlib.compress(bytes(140_000)))
    return b"\x89PNG\r\n\x1a\n" + head + data + png_chunk(b"IEND")


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
    start = b"BM" + struct.pack("<IHHI", 0, 0, 0, 54 + 1024)
    return start + head + bytes(1024) + b"\0\1" + bytes(more)


def after_start(data: bytes, more: bytes, *, start: int) -> bytes:
    return data[:start] + more + data[start:]


def jpeg(more: bytes) -> bytes:
    return after_start(encoded("JPEG"), more, start=2)


def png(more: bytes) -> bytes:
    return after_start(encoded("PNG"), more, start=33)


def gif(more: bytes) -> bytes:
    return after_start(encoded("GIF"), more, start=781)


def tiff(*tags: tuple[int, int, int, int], data: bytes = bytes(960), order: str = "<") -> bytes:
    """A gray image of 40 x 24, unless `tags` say something else."""
    entries = {256: (4, 1, 40), 257: (4, 1, 24), 258: (3, 1, 8), 259: (3, 1, 1), 262: (3, 1, 1)}
    entries |= {273: (4, 1, 8), 277: (3, 1, 1), 278: (4, 1, 24), 279: (4, 1, 960)}
    entries |= {tag: tuple(rest) for tag, *rest in tags}
    listed = b""
    for tag, (kind, count, value) in sorted(entries.items()):
        if order == ">" and kind == 3:  # values of 16 bits stand on the left
            value <<= 16
        listed += struct.pack(f"{order}HHII", tag, kind, count, value)
    start = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(f"{order}I", 8 + len(data))
    return start + data + struct.pack(f"{order}H", len(entries)) + listed + bytes(4)


def tiff_strips() -> bytes:
    return tiff((273, 4, 30_001, 8), data=bytes(120_004))


def tiff_tile(side: int) -> bytes:
    tile = zlib.compress(bytes(side * min(side, 256)))
    tags = [(322, 4, 1, side), (323, 4, 1, side), (324, 4, 1, 8), (325, 4, 1, len(tile))]
    return tiff(*tags, (259, 3, 1, 8), data=tile)


def with_hidden_scans(whole: bytes) -> bytes:
    """Scans behind a marker that means nothing, whose length decoders do not read."""
    return whole[:-2] + b"\xff\x02\x40\x00" + 33 * b"\xff\xda\x00\x02" + whole[-2:]


def tiff_tiles(
    size: tuple[int, int], *more: tuple[int, int, int, int], tile: tuple[int, int]
) -> bytes:
    """Tiles that all lie at one place of the file."""
    (width, height), (tile_width, tile_height) = size, tile
    number = -(-width // tile_width) * -(-height // tile_height)
    packed = zlib.compress(bytes(tile_width * tile_height))
    places = struct.pack(f"<{number}I", *[8 + 8 * number] * number)
    lengths = struct.pack(f"<{number}I", *[len(packed)] * number)
    tags = [(256, 4, 1, width), (257, 4, 1, height), (259, 3, 1, 8)]
    tags += [(322, 4, 1, tile_width), (323, 4, 1, tile_height)]
    tags += [(324, 4, number, 8), (325, 4, number, 8 + 4 * number)]
    return tiff(*tags, *more, data=places + lengths + packed)


def png_profiles(number: int) -> bytes:
    return png(png_chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(1000))) * number)


def part_of(kind: bytes, *parts: Item) -> bytes:
    """A chain: the first item is made of the second, and so on."""
    references = [(kind, number, [number + 1]) for number in range(1, len(parts))]
    return items_file(dict(enumerate(parts, start=1)), references)


def alpha_of_tiles() -> bytes:
    """Tiles that all have one large image for their transparency."""
    items = {1: grid_of(1, 40, 2560, 64), 2: TILE, 3: ALPHA}
    return items_file(items, [(b"dimg", 1, [2] * 40), (b"auxl", 3, [2])])


def phone_photo() -> bytes:
    """What phones write: a rotated grid, its brightness and depth, an HDR version as an alternative, and metadata."""
    turned = box(b"irot", b"\1")
    grid = grid_of(1, 2, 128, 64)
    gain_map = auxiliary(b"urn:com:apple:photo:2020:aux:hdrgainmap")
    tile = encoded_item(Image.effect_noise((64, 64), 50).convert("RGB"))
    items = {
        1: Item(b"grid", grid.size, grid.data, [turned]),
        **dict.fromkeys((2, 3), tile),
        4: encoded_item(Image.new("L", (64, 32)), gain_map),
        5: encoded_item(Image.new("L", (48, 48)), auxiliary(b"auxid:2")),
        6: Item(b"tmap", (128, 64), bytes(62), [turned]),
        7: Item(b"Exif", data=b"\0\0\0\x06Exif\0\0" + tiff()),
        8: Item(b"mime", data=b"<x:xmpmeta/>"),
        9: encoded_item(Image.new("RGB", (32, 16))),
    }
    references = [(b"dimg", 1, [2, 3]), (b"dimg", 6, [1, 4]), (b"auxl", 4, [1]), (b"auxl", 5, [1])]
    references += [(b"thmb", 9, [1]), (b"cdsc", 7, [1, 6]), (b"cdsc", 8, [1])]
    groups = box(b"grpl", full_box(b"altr", struct.pack(">IIII", 50, 2, 6, 1)))
    video = box(b"mpvd", encoded("JPEG")) + movie(90)
    return items_file(items, references, groups=groups, more=video)


MEGABYTE = 1 << 20
TALL = (16, MEGABYTE)  # a tile
LARGE_CANVAS = overlay_of((30_000, 30_000))
SMALL, TILE, BIG = Item(size=(8, 8)), Item(size=(64, 64)), Item(size=(4000, 4000))
ALPHA = Item(size=(4000, 4000), properties=[auxiliary(b"auxid:1")])
TURNS = [box(b"irot", b"\1", bytes(number)) for number in range(4)]
PIECES = {1: SMALL, 2: Item(b"Exif", data=bytes(MEGABYTE), extents=30)}
TILED = {1: grid_of(1, 99, 6336, 64), 2: Item(size=(64, 64), data=bytes(MEGABYTE))}
SAME_TILE = [(b"dimg", 1, [2] * 99)]
ONE, TWO = {1: (8, 8)}, {1: (8, 8), 2: (8, 8)}
MANY_BIG = dict.fromkeys(range(1, 9), (4000, 4000))
IN_EACH_OTHER = [(b"dimg", number, [number + 1] * 3) for number in range(1, 8)]
SHARED, MANY = [(b"cdsc", 2, [1] * 40)], [(b"dimg", 1, [2] * 20_000)]
FORTY = dict.fromkeys(range(40), (8, 8))
OF_THE_OTHER = [(b"dimg", 1, [2]), (b"dimg", 2, [1])]
TAGS = [(1000 + number, 1, MEGABYTE, 8) for number in range(40)]  # that name the same megabyte
SECOND_TAG, FIRST_TAG = (struct.pack("<HHI", number, 3, 1) for number in (260, 259))
SEGMENTS, OVERLAY = "segments; at most 5,000", "an item of type iovl"
IS_JPEG, MADE_OF = "pixels are JPEG", "16,000,000 pixels that is made of"
HOSTILE = {
    "line": (png_line, "1 x 70000: a side has at most 65,535 pixels"),
    "scans": (lambda: with_scans(40), "33 scans; at most 32"),
    "sequential scans": (lambda: with_sequential_scans(33), "33 scans"),
    "comment": (lambda: gif(b"!\xfe" + 5001 * b"\1a" + b"\0"), "5,001 blocks; at most 5,000"),
    "junk": (lambda: gif(bytes(5001)), "5,001 blocks"),
    "runs": (lambda: runs(3000, 3000), "runs of 3000 x 3000 pixels"),
    "bytes of runs": (lambda: runs(30, 30, more=1 << 22), "runs of 30 x 30 pixels in 4,195,"),
    "bulk": (lambda: png(png_chunk(b"IDAT") * 100_001), "100,001 chunks of pixels"),
    "segments": (lambda: jpeg(b"\xff\xfe\x00\x02" * 5001), SEGMENTS),
    "restarts": (lambda: jpeg(b"\xff\xd0" * 5001), SEGMENTS),
    "padding": (lambda: jpeg(b"\xff" * 50_000), SEGMENTS),
    "chunks": (lambda: png(png_chunk(b"prVt") * 5001), "chunks; at most 5,000"),
    "tile": (lambda: tiff_tile(46_000), "1 tiles of 2,116,000,000 pixels for an image of 40 x 24"),
    "tiles": (lambda: tiff_tiles((1600, 16), tile=TALL), "100 tiles of 16,777,216 .* 1600 x 16"),
    "rotated tiles": (
        lambda: tiff_tiles((1600, 16), (274, 3, 1, 6), tile=TALL),
        "100 tiles of 16,777,216 pixels for an image of 16 x 1600",
    ),
    "hidden scans": (lambda: with_hidden_scans(encoded("JPEG", progressive=True)), "33 scans"),
    "hidden sequential scans": (lambda: with_hidden_scans(encoded("JPEG")), "33 scans"),
    "profiles": (lambda: png_profiles(6), "chunks; at most 5,000"),
    "strips": (tiff_strips, "30,001 strips or tiles"),
    "another order": (lambda: b"II\0*" + tiff_strips()[4:], "30,001 strips or tiles"),
    "jpeg in strips": (lambda: encoded("TIFF", compression="jpeg"), r"JPEG \(compression 7\)"),
    "jpeg in a big tiff": (lambda: encoded("TIFF", compression="jpeg", big_tiff=True), IS_JPEG),
    "old jpeg, another order": (lambda: tiff((259, 3, 1, 6), order=">"), IS_JPEG),
    "jpeg as a byte": (lambda: tiff((259, 1, 1, 7)), IS_JPEG),
    "jpeg said second": (lambda: tiff((260, 3, 1, 7)).replace(SECOND_TAG, FIRST_TAG), IS_JPEG),
    "tags": (lambda: tiff(*TAGS, data=bytes(MEGABYTE)), "49 tags that name 41,943"),
    "boxes of a heic": (lambda: tables(ONE) + box(b"free") * 20_000, "20,001 boxes"),
    "box that ends before it begins": (lambda: tables(ONE) + b"\0\0\0\4free", "a box of 4 bytes"),
    "large item": (lambda: tables({1: (8, 8), 2: (60_000, 60_000)}), "3,600,000,000 pixels of an"),
    "grid of one tile": (
        lambda: tables({1: (4000, 4000), 2: (4000, 4000)}, references=[(b"dimg", 1, [2] * 1000)]),
        f"{MADE_OF} 16,002,",
    ),
    "grid of grids": (lambda: tables(MANY_BIG, references=IN_EACH_OTHER), MADE_OF),
    "image of itself": (lambda: tables(TWO, references=OF_THE_OTHER), "or of itself"),
    "metadata": (lambda: tables(TWO, references=SHARED, data=bytes(MEGABYTE)), "items that name 4"),
    "profile": (lambda: tables(FORTY, profile=bytes(MEGABYTE)), "items that name 41,9"),
    "references": (lambda: tables(ONE, references=MANY), "and references; at most 20,000"),
    "overlay": (lambda: part_of(b"dimg", LARGE_CANVAS, TILE), OVERLAY),
    "overlays": (lambda: part_of(b"dimg", overlay_of((64, 64)), LARGE_CANVAS), OVERLAY),
    "grid of an overlay": (lambda: part_of(b"dimg", grid_of(1, 1, 64, 64), LARGE_CANVAS), OVERLAY),
    "copy": (lambda: part_of(b"dimg", Item(b"iden", (64, 64)), LARGE_CANVAS), OVERLAY),
    "tiled image": (lambda: part_of(b"dimg", Item(b"tili", (64, 64))), "an item of type tili"),
    "copies without a size": (
        lambda: part_of(b"dimg", BIG, *[Item(b"iden")] * 40, SMALL),
        MADE_OF,
    ),
    "long chain of images": (lambda: part_of(b"dimg", *[Item(size=(1, 1))] * 2000), "recursion"),
    "transparency of transparency": (lambda: part_of(b"auxl", *[ALPHA] * 9), MADE_OF),
    "transparency of tiles": (alpha_of_tiles, "163,840 pixels that is made of 640,"),
    "rotations": (lambda: items_file({1: Item(size=(8, 8), properties=TURNS)}), "4 turns of an im"),
    "pieces of an item": (lambda: items_file(PIECES), "31,457,280 bytes of an item"),
    "pieces of metadata": (lambda: items_file(PIECES, [(b"cdsc", 2, [1])]), "that name 31,457,"),
    "bytes of a tile": (lambda: items_file(TILED, SAME_TILE), "405,504 pixels .* made of 104,"),
    "frames": (lambda: items_file({1: SMALL}, more=movie(1_000_001)), "1,000,001 frames of a"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_file_that_would_cause_large_work_is_refused(name: str) -> None:
    make, reason = HOSTILE[name]
    with pytest.raises(ValueError, match=reason):
        EncodedImage({"bytes": make(), "path": None})


USUAL = {
    "progressive": lambda: with_scans(10),
    "thumbnail": lambda: jpeg(b"\xff\xe5\x40\x02" + (b"\xff\xda" * 0x2000)),
    "padded": lambda: jpeg(b"\xff" * 100),
    "profile": lambda: encoded("JPEG", icc_profile=bytes(2_000_000), comment=b"x" * 60_000),
    "chunks": lambda: png(png_chunk(b"prVt") * 100),
    "strips": lambda: encoded("TIFF", size=(8, 3000), strip_size=8),
    "tiles": lambda: tiff_tile(256),
    "many tiles": lambda: tiff_tiles((2000, 10), tile=(16, 4096)),
    "moving photo": lambda: encoded("JPEG") + b"\xff\xda" * 100,
    "one profile": lambda: png_profiles(1),
    "big endian": lambda: tiff(order=">"),
    "big tiff": lambda: encoded("TIFF", big_tiff=True),
    "gif": lambda: encoded("GIF", comment=b"x" * 60_000),
    "side": lambda: encoded("PNG", size=(65_535, 1)),
    "heic": lambda: heic(noisy().convert("RGB"), exif=b"Exif\0\0" + tiff()),
    "transparent heic": lambda: heic(Image.new("RGBA", (64, 64), (9, 9, 9, 255))),
    "photo of a phone": phone_photo,
    "avif": lambda: encoded("AVIF"),
}


@pytest.mark.parametrize("name", USUAL)
def test_usual_file_is_decoded(name: str) -> None:
    data = USUAL[name]()
    decoded = decode_image({"bytes": data, "path": None})
    np.testing.assert_array_equal(decoded, Image.open(io.BytesIO(data)).convert("RGB"))


def test_orientation_is_not_looked_for_in_exif_that_names_more_than_it_holds() -> None:
    for tags, size in (((), (24, 40)), (TAGS, (40, 24))):
        # Also where it says how a thumbnail is compressed.
        exif = tiff((0x0112, 3, 1, 6), (259, 3, 1, 6), *tags, data=bytes(MEGABYTE))
        data = png(png_chunk(b"eXIf", exif))
        assert decode_image({"bytes": data, "path": None}).size == size


def test_scenes_are_left_out_on_demand() -> None:
    data = b"scene:9|ffffff"
    assert decode_image({"bytes": data, "path": None}).size == (9, 9)
    with pytest.raises(ValueError, match="not an image in a known format"):
        decode_image({"bytes": data, "path": None}, formats=COMMON_FORMATS)
