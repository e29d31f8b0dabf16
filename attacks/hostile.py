"""Requests and images that are made to harm the service."""

import base64
import functools
import io
import json
import random
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from PIL import Image
from tests.integrations.toy_gallery import drawings
from tests.toy_heic import (
    Item,
    auxiliary,
    box,
    encoded_item,
    grid_of,
    heic,
    items_file,
    movie,
    overlay_of,
    tables,
)

# --------------------------------------------------------------------------------------------------------------- images


def encoded(image: Image.Image | None = None, kind: str = "JPEG", **options) -> bytes:
    """Return an image, by default a drawing, as a file."""
    file = io.BytesIO()
    (image or drawings()[0]).save(file, kind, **options)
    return file.getvalue()


def png_chunk(kind: bytes, data: bytes) -> bytes:
    """Return a chunk with its length and sum."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_bomb(width: int, height: int, *, bits: int = 1, color: int = 0) -> bytes:
    """Return a PNG of zeros: that many pixels in few bytes."""
    packer, rows = zlib.compressobj(9), bytearray()
    row = bytes(1 + width * bits * {0: 1, 2: 3, 6: 4}[color] // 8)
    for _ in range(height):
        rows += packer.compress(row)
    head = struct.pack(">IIBBBBB", width, height, bits, color, 0, 0, 0)
    data = bytes(rows + packer.flush())
    return (
        b"\x89PNG\r\n\x1a\n"
        + png_chunk(b"IHDR", head)
        + png_chunk(b"IDAT", data)
        + png_chunk(b"IEND", b"")
    )


def _png_with(chunks: bytes) -> bytes:
    whole = encoded(kind="PNG")
    return whole[:33] + chunks + whole[33:]


def _frames(kind: str, number: int) -> bytes:
    images = [Image.new("RGB", (64, 64), (shade % 256, 0, 0)) for shade in range(number)]
    return encoded(images[0], kind, save_all=True, append_images=images[1:])


def _jpeg_with_exif(exif: bytes) -> bytes:
    return encoded(exif=b"Exif\x00\x00" + exif)


def tiff(*tags: tuple[int, int, int], following: int = 0, pixels: bytes = b"") -> bytes:
    """Return a TIFF with tags (number, count, value) of 32 bits, and then pixels."""
    listed = b"".join(
        struct.pack("<HHII", tag, 4, count, value) for tag, count, value in sorted(tags)
    )
    return (
        b"II*\x00\x08\x00\x00\x00"
        + struct.pack("<H", len(tags))
        + listed
        + struct.pack("<I", following)
        + pixels
    )


_LOOP = tiff((256, 1, 1), following=8)
_SMALL_TIFF = ((256, 1, 8), (257, 1, 8), (258, 1, 8), (259, 1, 1), (262, 1, 1), (277, 1, 1))


def _cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


def scans(number: int) -> bytes:
    """Return a progressive JPEG whose last scan is there that many times more."""
    whole = encoded(progressive=True)
    last = whole[whole.rindex(b"\xff\xc4", 0, whole.rindex(b"\xff\xda")) : -2]
    return whole[:-2] + number * last + whole[-2:]


def _tiff_of_jpeg(data: bytes) -> bytes:
    """Return a TIFF whose pixels are a JPEG of a drawing."""
    width, height = drawings()[0].size
    tags = [
        (256, 1, width),
        (257, 1, height),
        (258, 1, 8),
        (259, 1, 7),
        (262, 1, 6),
        (277, 1, 3),
        (278, 1, height),
    ]
    return tiff(*tags, (273, 1, 8 + 2 + 9 * 12 + 4), (279, 1, len(data)), pixels=data)


def _run_length_bmp(width: int, height: int) -> bytes:
    """Return a BMP of 8 bits in which a run of a few bytes stands for all rows."""
    data = bytes((255, 1)) * 50 + b"\x00\x01"
    head = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, len(data), 1, 1, 256, 0)
    return (
        b"BM"
        + struct.pack("<IHHI", 54 + 1024 + len(data), 0, 0, 54 + 1024)
        + head
        + bytes(1024)
        + data
    )


@functools.cache  # an encoder takes seconds for it
def _heic_larger_than_it_says() -> bytes:
    """Return a HEIC of 2048 x 2048 pixels whose tables say 64 x 64."""
    said = struct.pack(">II", 2048, 2048)
    return heic(Image.new("RGB", (2048, 2048))).replace(said, struct.pack(">II", 64, 64))


def _small_item() -> Item:
    return encoded_item(Image.new("RGB", (64, 64)))


def _heic_of(*items: Item) -> bytes:
    """Return a HEIC in which each item is made of the next one, and the last one of a small image."""
    references = [(b"dimg", number, [number + 1]) for number in range(1, len(items) + 1)]
    return items_file(dict(enumerate((*items, _small_item()), start=1)), references)


@functools.cache  # an encoder takes seconds for it
def _heic_of_transparent_tiles() -> bytes:
    alpha = encoded_item(Image.new("L", (4992, 5000)), auxiliary(b"auxid:1"))
    items = {1: grid_of(25, 40, 2560, 1600), 2: _small_item(), 3: alpha}
    return items_file(items, [(b"dimg", 1, [2] * 1000), (b"auxl", 3, [2])])


@functools.cache  # an encoder takes seconds for it
def _heic_of_rotations() -> bytes:
    rotations = [box(b"irot", b"\1", bytes(number)) for number in range(50)]
    return items_file({1: encoded_item(Image.new("RGB", (4992, 5000)), *rotations)})


_WEB_PAGE, _ZIP = b"<html><script>alert(1)</script></html>", b"PK\x03\x04" + bytes(60)
REFUSED: dict[str, Callable[[], bytes]] = {
    "png of 20,000 x 20,000": lambda: png_bomb(20_000, 20_000),
    "png of 5,008 x 5,000": lambda: png_bomb(5008, 5000),
    "png of 1 x 25,000,000": lambda: png_bomb(25_000_000, 1),
    "gif that claims 65,535 x 65,535": lambda: b"GIF89a\xff\xff\xff\xff\x80\x00\x00" + bytes(20),
    "bmp of runs that claims 60,000 x 60,000": lambda: _run_length_bmp(60_000, 60_000),
    "png with a comment of 80 MB": lambda: _png_with(
        png_chunk(b"zTXt", b"Comment\x00\x00" + zlib.compress(bytes(80 * 2**20), 9))
    ),
    "png of 20,000 chunks": lambda: _png_with(20_000 * png_chunk(b"tEXt", b"a\x00b")),
    "jpeg of 20,000 segments": lambda: b"\xff\xd8" + 20_000 * b"\xff\xe5\x00\x02" + encoded()[2:],
    "jpeg of 500 scans": lambda: scans(500),
    "cut png": lambda: _cut(encoded(kind="PNG")),
    "cut jpeg": lambda: _cut(encoded()),
    "cut webp": lambda: _cut(encoded(kind="WEBP")),
    "tiff whose list of images leads back to its start": lambda: _LOOP,
    "tiff with a tile of 65,536 x 65,536": lambda: tiff(
        *_SMALL_TIFF, (322, 1, 2**16), (323, 1, 2**16), (324, 1, 8)
    ),
    "tiff of tiles far larger than it": lambda: tiff(
        (256, 1, 65_535),
        (257, 1, 16),
        *_SMALL_TIFF[2:],
        (322, 1, 16),
        (323, 1, 2**20),
        (324, 4096, 8),
        (325, 4096, 8),
    ),
    "png of 4,000 color profiles": lambda: _png_with(
        4000 * png_chunk(b"iCCP", b"a\x00\x00" + zlib.compress(bytes(10**6), 9))
    ),
    "tiff of a million strips": lambda: tiff(*_SMALL_TIFF, (273, 10**6, 8), (279, 10**6, 8)),
    "tiff of a jpeg of 80 scans": lambda: _tiff_of_jpeg(scans(80)),
    "tiff that claims tags of 4 GB": lambda: tiff(
        *_SMALL_TIFF, *((tag, 2**32 - 1, 8) for tag in range(700, 3000))
    ),
    "floats out of range": lambda: encoded(Image.new("F", (8, 8), 1e30), "TIFF"),
    "heic that claims 60,000 x 60,000": lambda: tables({1: (60_000, 60_000)}),
    "heic of a tile a thousand times": lambda: tables(
        {1: (4992, 5000), 2: (4992, 5000)}, references=[(b"dimg", 1, [2] * 1000)]
    ),
    "heic of an image of itself": lambda: tables({1: (8, 8)}, references=[(b"dimg", 1, [1])]),
    "heic of 900 images that share a description of 1 MB": lambda: tables(
        dict.fromkeys(range(1, 901), (8, 8)),
        references=[(b"cdsc", 900, range(1, 900))],
        data=bytes(2**20),
    ),
    "heic of an overlay on 30,000 x 30,000": lambda: _heic_of(overlay_of((30_000, 30_000))),
    "heic of an overlay of an overlay": lambda: _heic_of(
        overlay_of((64, 64)), overlay_of((30_000, 30_000))
    ),
    "heic of a grid of an overlay": lambda: _heic_of(
        grid_of(1, 1, 64, 64), overlay_of((30_000, 30_000))
    ),
    "heic of a copy of an overlay": lambda: _heic_of(
        Item(b"iden", (64, 64)), overlay_of((30_000, 30_000))
    ),
    "heic of 40 copies without a size": lambda: _heic_of(
        Item(b"iden", (5000, 4992)), *[Item(b"iden")] * 40
    ),
    "heic of 1,000 tiles that share a transparency of 4,992 x 5,000": _heic_of_transparent_tiles,
    "heic of an image that is rotated 50 times": _heic_of_rotations,
    "heic of metadata in 32 pieces, each of which is 1 MB": lambda: items_file(
        {
            1: _small_item(),
            **dict.fromkeys(range(2, 22), Item(b"Exif", data=bytes(2**20), extents=32)),
        },
        [(b"cdsc", number, [1]) for number in range(2, 22)],
    ),
    "heic of a sequence of 18 million frames": lambda: items_file(
        {1: _small_item()}, more=movie(18_000_000)
    ),
    "heic that is larger than it says": _heic_larger_than_it_says,
    "cut heic": lambda: _cut(heic(drawings()[0])),
    "jpeg 2000": lambda: encoded(kind="JPEG2000"),
    "svg": lambda: (
        b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>'
    ),
    "html": lambda: _WEB_PAGE,
    "pdf": lambda: b"%PDF-1.7\n1 0 obj\n<<>>\nendobj\n",
    "postscript": lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(x) print\n",
    "zip": lambda: _ZIP,
    "zeros": lambda: bytes(1000),
    "one byte": lambda: b"\xff",
}
TAKEN: dict[str, Callable[[], bytes]] = {
    "gif of 1,000 images": lambda: _frames("GIF", 1000),
    "webp of 300 images": lambda: _frames("WEBP", 300),
    "tiff of 500 images": lambda: _frames("TIFF", 500),
    "png with transparency of 4,992 x 5,000": lambda: png_bomb(4992, 5000, bits=8, color=6),
    "png of 16 bits of 4,992 x 5,000": lambda: png_bomb(4992, 5000, bits=16, color=0),
    "jpeg with 60 kB of nonsense as exif": lambda: _jpeg_with_exif(b"\xff" * 60_000),
    "jpeg whose exif leads back to itself": lambda: _jpeg_with_exif(_LOOP),
    "jpeg with a web page behind it": lambda: encoded() + _WEB_PAGE,
    "png with a zip behind it": lambda: encoded(kind="PNG") + _ZIP,
    "heic with a web page behind it": lambda: heic(drawings()[0]) + _WEB_PAGE,
    "heic with 60 kB of nonsense as exif": lambda: heic(
        drawings()[0], exif=b"Exif\0\0" + b"\xff" * 60_000
    ),
    "one pixel": lambda: encoded(Image.new("RGB", (1, 1)), "PNG"),
    "a line": lambda: encoded(Image.new("RGB", (20_000, 1)), "PNG"),
}


def costly_image() -> bytes:
    """Return 38 bytes of WebP that decode to 24,900,100 pixels."""
    return encoded(Image.new("RGB", (4990, 4990)), "WEBP", lossless=True, method=0)


def damaged(choose: random.Random) -> bytes:
    """Return a drawing in a format at random of which some bytes were overwritten: it may be an image or not."""
    kind = choose.choice(("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "HEIF", "AVIF"))
    data = bytearray(heic(drawings()[0]) if kind == "HEIF" else encoded(kind=kind))
    for _ in range(choose.choice((1, 4, 16))):
        data[choose.randrange(len(data))] = choose.randrange(256)
    return bytes(data)


# ------------------------------------------------------------------------------------------------------------- requests


@dataclass(frozen=True)
class Hostile:
    """A request as it goes over the wire."""

    sent: bytes
    hangs_up: bool = False
    """The client sends less than it announced, and ends the connection."""


def request(
    method: str, path: str, body: bytes = b"", media: str = "application/json", *, heads: str = ""
) -> bytes:
    """Return a request; `heads` are more lines of its head, each with its end."""
    head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {media}\r\n{heads}"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode("utf-8", "surrogateescape") + body


def hostile_requests(choose: random.Random, *, key: str) -> Iterator[Hostile]:
    """Yield requests at random, without end; most have the right key, so that they get further."""
    right = f"Authorization: Bearer {key}\r\n"
    kinds = (_wrong_value, _wrong_filter, _wrong_json, _wrong_id, _wrong_head, _wrong_http)
    while True:
        yield choose.choice(kinds)(choose, right)


_DRAWING = base64.b64encode(encoded()).decode()
_BODIES = {
    "/v1/search": {
        "text": "a red bar",
        "top": 3,
        "rerank": 4,
        "where": "number > 3",
        "weight": 0.5,
    },
    "/v1/similar": {"id": "a", "top": 3, "where": "even"},
    "/v1/vqa": {"question": "what color is it?", "image": _DRAWING, "top": 2},
    "/v1/caption": {"image": _DRAWING},
    "/v1/embeddings": {
        "input": ["a", {"image": _DRAWING}],
        "encoding_format": "float",
        "dimensions": 64,
    },
    "/v1/rerank": {
        "query": "a red bar",
        "documents": [{"image": _DRAWING}],
        "top_n": 1,
        "return_documents": True,
    },
}


def many_lists(number: int) -> bytes:
    """Return a body in JSON of three bytes a value, each of which is wrong."""
    return b'{"input": [' + b"[]," * number + b"[]]}"


def many_keys(number: int) -> bytes:
    """Return a body in JSON of keys that no route knows."""
    return b"{" + b",".join(b'"%d":1' % key for key in range(number)) + b"}"


def proper_requests(*, key: str) -> Iterator[Hostile]:
    """Yield a request in the right form for each route; two name an image and a size that are not there."""
    for path, body in _BODIES.items():
        yield Hostile(
            request(
                "POST", path, json.dumps(body).encode(), heads=f"Authorization: Bearer {key}\r\n"
            )
        )


_VALUES = (
    *(
        None,
        True,
        -1,
        0,
        10**30,
        1e308,
        -1e-320,
        float("nan"),
        float("inf"),
        "",
        " ",
        "\x00",
        "\ud800",
        "\u202e",
    ),
    *(
        "a" * 1000,
        "a" * 5000,
        "\U0001f4a9" * 999,
        "{}" * 200,
        [],
        {},
        [[]] * 300,
        ["a"] * 300,
        {"image": "a"},
        [None],
    ),
    *(
        "data:image/png;base64,",
        "data:,",
        "====",
        "aGk",
        "aGk=\x00",
        "http://localhost/a.png",
        "file:///etc/passwd",
    ),
    *(
        {"text": "a", "image": _DRAWING},
        [_DRAWING] * 17,
        ["a", 1, None],
        "1" * 400,
        {"text": {"text": {}}},
    ),
)
_COMPARISONS = """
sleep(10) = 1; regexp_match(color, '(a+)+$'); number = (select 1); 1 = 1; now() > 1; even = lower(number); color = 'a;
repeat(color, 1000000) = 'a'; number / 0 = 1; number = 9999999999999999999999; color like '%%%%%%%%'; `number` = 1;
array_has(captions, ''); number in (); color between 1 and 'a'; vector is null; path like '/%'; \x00; \ud800 = 1;
cast(number as varchar) = '1'; number = 1 -- a; /* a */ even; arrow_typeof(id) = 'a'
"""
_FILTERS = (
    *_COMPARISONS.split(";"),
    *(
        "(" * 250,
        "(" * 200 + "number" + ")" * 200,
        "not " * 120 + "even",
        "number = 1 or " * 35 + "even",
        "-" * 499,
    ),
    "'; drop table images; --",
)
_IDS = (
    *(
        "../../etc/passwd",
        "%2e%2e%2f%2e%2e%2fetc%2fpasswd",
        "%00",
        "a" * 2000,
        "'%20or%20'1'='1",
        "%ff%fe",
        "//",
        ".",
    ),
    *(
        "%0d%0aX-A:%20b",
        "a;b?c#d",
        "%F0%9F%92%A9",
        "C:%5Cwindows",
        "..%5c..",
        "%252e%252e/",
        "a'%29%3b--",
    ),
)


def _wrong_value(choose: random.Random, right: str) -> Hostile:
    path, body = choose.choice(list(_BODIES.items()))
    body = body | {choose.choice([*body, "other"]): choose.choice(_VALUES)}
    return Hostile(request("POST", path, json.dumps(body).encode(), heads=right))


def _wrong_filter(choose: random.Random, right: str) -> Hostile:
    body = {"text": "a red bar", "where": choose.choice(_FILTERS)}
    return Hostile(request("POST", "/v1/search", json.dumps(body).encode(), heads=right))


def _wrong_json(choose: random.Random, right: str) -> Hostile:
    whole, many = json.dumps(_BODIES["/v1/embeddings"]).encode(), 100_000
    bodies = (
        *(
            b"",
            b"{",
            b"null",
            b"[]",
            b"\xef\xbb\xbf{}",
            b"\xff\xfe{\x00}\x00",
            b'{"text": "\xff"}',
            whole[:-3],
        ),
        *(
            b"[" * many,
            b'{"a":' * many,
            b'{"top": ' + b"9" * many + b"}",
            b'{"text": NaN}',
            b'"' * 1000,
        ),
        *(
            many_lists(many),
            many_keys(many),
            b'{"weight": 0.' + b"9" * 10 * many + b"}",
            b'{"text": "' + b'\\"' * 10 * many,
        ),
        *(
            b'{"text": "a", "text": "b"}',
            b'{"texts": [' + b'"a",' * many + b'"a"]}',
            b'{"' + b"k" * many + b'": 1}',
        ),
    )
    return Hostile(
        request("POST", choose.choice(list(_BODIES)), choose.choice(bodies), heads=right)
    )


def _wrong_id(choose: random.Random, right: str) -> Hostile:
    path = choose.choice(("/v1/images/", "/v1/thumbnails/", "/static/", "/", "/v1/"))
    return Hostile(
        request(
            choose.choice(("GET", "GET", "HEAD", "PUT")), path + choose.choice(_IDS), heads=right
        )
    )


def _wrong_head(choose: random.Random, right: str) -> Hostile:
    keys = ("a" * 20_000, "Basic a", "Bearer", "Bearer \xff", "Bearer " + "k" * 5000)
    origins = (
        "https://evil.example",
        "null",
        "http://[",
        "a" * 9000,
        "\xff",
        "http://localhost@evil.example",
    )
    others = (
        "Sec-Fetch-Site: cross-site",
        "Content-Encoding: gzip",
        "Expect: 100-continue",
        "Upgrade: websocket",
        "Range: bytes=0-,0-,5-1",
    )
    many = ("X: " + "a" * 200_000, "X: a\r\n" * 5000 + "X: a", "\r\n".join(["Cookie: a"] * 20))
    heads = (
        *("", *(f"Authorization: {value}\r\n" for value in keys)),
        *(f"{right}Origin: {origin}\r\n" for origin in origins),
        *(f"{right}{line}\r\n" for line in (*others, *many)),
    )
    body = json.dumps(_BODIES["/v1/search"]).encode()
    return Hostile(request("POST", "/v1/search", body, heads=choose.choice(heads)))


def _wrong_http(choose: random.Random, right: str) -> Hostile:
    post = f"POST /v1/search HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n{right}".encode()
    chunked, end = post + b"Transfer-Encoding: chunked\r\n", b"\r\n\r\n"
    if choose.random() < 0.3:
        short = (post + b"Content-Length: 99\r\n\r\n{}", chunked + b"\r\n9\r\n{}", post, post[:30])
        return Hostile(choose.choice(short), hangs_up=True)
    hosts = (
        *(
            b"evil.example",
            b"",
            b"localhost:99999",
            b"[::1",
            b"a" * 5000,
            b"localhost\r\nHost: evil.example",
        ),
        *(
            b"localhost:80.evil.example",
            b"localhost:80@evil.example",
            b"[::1]evil.example",
            b"[::1%lo]",
        ),
    )
    lines = (
        b"GET / HTTP/9.9",
        b"GET /",
        b"\r\n" * 100 + b"a",
        b"GET http://[/ HTTP/1.1\r\nHost: a",
        b"a",
        b"PRI * HTTP/2.0",
    )
    lengths = (b"-1", b"1e3", b"9" * 50, b"0x2", b"2, 3", b"2\r\nContent-Length: 3")
    whole = (
        *(b"GET / HTTP/1.1\r\nHost: " + host + end for host in hosts),
        *(
            line + end
            for line in (
                *lines,
                b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc",
                post + b"X\x00: a",
                post + b" a",
            )
        ),
        *(post + b"Content-Length: " + length + end + b"{}a" for length in lengths),
        *(
            chunked + b"\r\n" + chunks
            for chunks in (b"x\r\n", b"-1\r\n{}\r\n", b"f" * 40 + b"\r\n")
        ),
        chunked + b"Content-Length: 2\r\n\r\n0\r\n\r\n{}",
    )
    return Hostile(choose.choice(whole))
