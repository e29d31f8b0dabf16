"""Files that are made to harm: each gets an answer that says why not, and memory stays bounded."""

from __future__ import annotations

import io
import signal
import struct
import zlib
from collections.abc import Callable, Iterator

import httpx
import pytest
from PIL import Image

from tests.integrations.toy_gallery import drawings
from tests.serving.toy_service import Gallery, ServerProcess, in_base64, png

MAX_GROWTH = 900 * 2**20
"""Bytes that the whole set may add to a server's memory at its highest: two images of 25 million pixels are decoded
at a time, and transparency takes four copies of four bytes a pixel. The bombs would take from two gigabytes up."""
PATIENCE_S = 60


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_bomb(width: int, height: int, *, bits: int = 1, colour: int = 0) -> bytes:
    """Zeros of that many pixels in few bytes."""
    packer, rows = zlib.compressobj(9), bytearray()
    row = bytes(1 + width * bits * {0: 1, 2: 3, 6: 4}[colour] // 8)
    for _ in range(height):
        rows += packer.compress(row)
    head = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    data = bytes(rows + packer.flush())
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", head) + png_chunk(b"IDAT", data) + png_chunk(b"IEND", b"")


def frames(kind: str, number: int, **options) -> bytes:
    images = [Image.new("RGB", (64, 64), (shade % 256, 0, 0)) for shade in range(number)]
    file = io.BytesIO()
    images[0].save(file, kind, save_all=True, append_images=images[1:], **options)
    return file.getvalue()


def text_bomb() -> bytes:
    """A PNG whose comment unpacks to 200 MB."""
    comment = png_chunk(b"zTXt", b"Comment\x00\x00" + zlib.compress(bytes(200 * 2**20), 9))
    whole = png(drawings()[0])
    return whole[:33] + comment + whole[33:]


def jpeg_with_exif(exif: bytes) -> bytes:
    file = io.BytesIO()
    drawings()[0].save(file, "JPEG", exif=b"Exif\x00\x00" + exif)
    return file.getvalue()


def tiff_loop() -> bytes:
    """A TIFF whose list of images leads back to its start."""
    return b"II*\x00\x08\x00\x00\x00" + struct.pack("<HHHII", 1, 256, 3, 1, 1) + struct.pack("<I", 8)


def cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


def jpeg(kind: str = "JPEG", **options) -> bytes:
    file = io.BytesIO()
    drawings()[0].save(file, kind, **options)
    return file.getvalue()


def scans(number: int) -> bytes:
    """A progressive JPEG whose last scan is there many times."""
    whole = jpeg(progressive=True)
    last = whole[whole.rindex(b"\xff\xc4", 0, whole.rindex(b"\xff\xda")) : -2]
    return whole[:-2] + number * last + whole[-2:]


REFUSED: dict[str, Callable[[], bytes]] = {
    "png of 50,000 x 50,000": lambda: png_bomb(50_000, 50_000),
    "png of 5,001 x 5,000": lambda: png_bomb(5008, 5000),
    "gif that claims 65,535 x 65,535": lambda: b"GIF89a\xff\xff\xff\xff\x80\x00\x00" + bytes(20),
    "comment of 200 MB in a png": text_bomb,
    "cut png": lambda: cut(png(drawings()[0])),
    "cut jpeg": lambda: cut(jpeg()),
    "tiff without an image": tiff_loop,
    "svg": lambda: (
        b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><image href="file:///etc/passwd"/></svg>'
    ),
    "html": lambda: b"<html><script>alert(1)</script></html>",
    "pdf": lambda: b"%PDF-1.7\n1 0 obj\n<<>>\nendobj\n",
    "postscript": lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(x) print\n",
    "zip": lambda: b"PK\x03\x04" + bytes(60),
    "zeros": lambda: bytes(1000),
    "one byte": lambda: b"\xff",
    "floats out of range": lambda: tiff(Image.new("F", (8, 8), 1e30)),
    "png of 1 x 25,000,000": lambda: png_bomb(25_000_000, 1),
    "jpeg of 500 scans": lambda: scans(500),
    "jpeg 2000": lambda: jpeg("JPEG2000"),
}
TAKEN: dict[str, Callable[[], bytes]] = {
    "gif of 2,000 images": lambda: frames("GIF", 2000),
    "webp of 300 images": lambda: frames("WEBP", 300),
    "tiff of 1,000 images": lambda: frames("TIFF", 1000),
    "png with transparency of 4,992 x 5,000": lambda: png_bomb(4992, 5000, bits=8, colour=6),
    "png of 16 bits of 4,992 x 5,000": lambda: png_bomb(4992, 5000, bits=16, colour=0),
    "jpeg with 60 kB of nonsense as exif": lambda: jpeg_with_exif(b"\xff" * 60_000),
    "jpeg whose exif leads back to itself": lambda: jpeg_with_exif(tiff_loop()),
    "jpeg with a web page behind it": lambda: jpeg() + b"<html><script>alert(1)</script></html>",
    "png with a zip behind it": lambda: png(drawings()[0]) + b"PK\x03\x04" + bytes(60),
    "one pixel": lambda: png(Image.new("RGB", (1, 1))),
    "a line": lambda: png(Image.new("RGB", (20_000, 1))),
}


def tiff(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "TIFF")
    return file.getvalue()


@pytest.fixture(scope="module")
def server(gallery: Gallery) -> Iterator[ServerProcess]:
    with ServerProcess(gallery.model, "--index", gallery.index, "--vqa", gallery.vqa) as process:
        yield process


@pytest.fixture(scope="module")
def memory(server: ServerProcess) -> int:
    """After requests of the usual kind."""
    for _ in range(3):
        assert send(server, png(drawings()[0])).status_code == 200
    return server.memory("VmHWM")


def send(server: ServerProcess, data: bytes) -> httpx.Response:
    files = {"image": ("image.png", data, "image/png")}
    return httpx.post(f"{server.address}/v1/search", files=files, data={"top": "1"}, timeout=PATIENCE_S)


@pytest.mark.parametrize("name", REFUSED)
def test_hostile_file_is_refused_with_a_reason(server, memory, name) -> None:
    response = send(server, REFUSED[name]())
    assert response.status_code == 422, response.text
    assert response.json()["error"]["reason"].startswith("no usable image: ")
    assert len(response.json()["error"]["reason"]) < 300
    assert server.memory("VmHWM") - memory < MAX_GROWTH


@pytest.mark.parametrize("name", TAKEN)
def test_odd_file_that_is_an_image_is_searched_by(server, memory, name) -> None:
    response = send(server, TAKEN[name]())
    assert response.status_code == 200, response.text
    assert server.memory("VmHWM") - memory < MAX_GROWTH


@pytest.mark.parametrize(
    "text", ["====", "aGk", "a" * 1001, "\u00e9", "data:image/png;base64,", "data:,", "aGk=\x00", " "]
)
def test_nonsense_as_base64_is_refused(server, text) -> None:
    response = httpx.post(f"{server.address}/v1/search", json={"image": text}, timeout=PATIENCE_S)
    assert response.status_code == 422
    assert text.strip(" =") == "" or text not in response.text


def test_many_large_images_at_a_time_are_decoded_a_few_at_a_time(server, memory) -> None:
    large = in_base64(png_bomb(4992, 5000, bits=8, colour=6))
    body = {"images": [large] * 4}
    response = httpx.post(f"{server.address}/v1/embed", json=body, timeout=PATIENCE_S)
    assert len(response.json()["images"]) == 4
    assert server.memory("VmHWM") - memory < MAX_GROWTH


def test_server_still_answers_after_all_of_it_and_ends_with_0(server) -> None:
    assert send(server, png(drawings()[0])).status_code == 200
    server.stop(signal.SIGINT)
    assert server.process.wait(PATIENCE_S) == 0
