import contextlib
import dataclasses
import importlib.resources
import itertools
import os
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image
from tests.data.test_headers import png_chunk

from vlmo.data.decoding import EncodedImage, decode_image, decode_mask, encode_image, range_path
from vlmo.processing import TrainTransform, TransformConfig

LOSSY = 6  # JPEG at quality 95 of a flat color is off by a few of 255 levels (seen: at most 3)


def cell(image: Image.Image, file_format: str = "PNG", **options) -> dict:
    return encode_image(image, f"picture.{file_format.lower()}", kind=file_format, **options)


def pixels(image: dict) -> np.ndarray:
    picture = decode_image(image)
    assert picture.mode == "RGB"
    return np.asarray(picture)


def noise() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 48, 3), dtype=np.uint8))


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds next to no data."""
    head = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    data = png_chunk(b"IDAT", zlib.compress(bytes(64)))
    return b"\x89PNG\r\n\x1a\n" + head + data + png_chunk(b"IEND")


def of_pixels(mode: str, *values: object, palette: bool = False) -> Image.Image:
    image = Image.new(mode, (len(values), 1))
    if palette:
        image.putpalette([10, 20, 30, 200, 100, 50])
    for column, value in enumerate(values):
        image.putpixel((column, 0), value)
    return image


DEEP = Image.fromarray(np.array([[0, 257, 128, 32896, 65535]], dtype=np.uint16))
FLOATS = Image.fromarray(np.array([[0.0, 0.2, 1.0]], dtype=np.float32))
PALETTE = of_pixels("P", 0, 1, palette=True)
WHITE = (255, 255, 255)
DECODED = {
    "palette": (cell(PALETTE), [(10, 20, 30), (200, 100, 50)]),
    "transparent index": (cell(PALETTE, transparency=0), [WHITE, (200, 100, 50)]),
    "opaque indices": (cell(PALETTE, transparency=b"\xff\x00"), [(10, 20, 30), WHITE]),
    "alpha": (cell(of_pixels("RGBA", (9, 0, 0, 255), (0, 0, 0, 51))), [(9, 0, 0), 204]),
    "grey with alpha": (cell(of_pixels("LA", (100, 255), (0, 0))), [100, 255]),
    "one color": (cell(of_pixels("RGB", (1, 2, 3), (9, 9, 9)), transparency=(1, 2, 3)), [WHITE, 9]),
    "grey": (cell(of_pixels("L", 77)), [77]),
    "bilevel": (cell(of_pixels("1", 0, 1)), [0, 255]),
    "16 bits": (cell(DEEP), [0, 1, 0, 128, 255]),
    "16 bits in TIFF": (cell(DEEP, "TIFF"), [0, 1, 0, 128, 255]),
    "floats": (cell(FLOATS, "TIFF"), [0, 51, 255]),
}


@pytest.mark.parametrize("name", DECODED)
def test_decode_gives_the_colors_of_every_mode(name: str) -> None:
    image, expected = DECODED[name]
    colors = [value if isinstance(value, tuple) else (value,) * 3 for value in expected]
    assert [*map(tuple, pixels(image)[0].tolist())] == colors


def test_decode_float_needs_0_to_1_and_ink_becomes_light() -> None:
    with pytest.raises(ValueError, match=r"mode F with values 0 to 300; expected 0 to 1"):
        decode_image(cell(Image.fromarray(np.array([[0, 300]], dtype=np.float32)), "TIFF"))
    ink = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    assert np.abs(pixels(cell(ink, "JPEG", quality=95)).astype(int) - (255, 0, 0)).max() <= LOSSY


@pytest.mark.parametrize("orientation", range(1, 9))
def test_decode_applies_exif_orientation(orientation: int) -> None:
    # What a viewer must show, and how a camera held that way stores it.
    shown = np.arange(6, dtype=np.uint8).reshape(2, 3) * 40
    stored = {
        1: shown,
        2: shown[:, ::-1],
        3: shown[::-1, ::-1],
        4: shown[::-1],
        5: shown.T,
        6: np.rot90(shown, 1),
        7: shown[::-1, ::-1].T,
        8: np.rot90(shown, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.fromarray(np.ascontiguousarray(stored))
    for file_format in ("PNG", "TIFF"):
        np.testing.assert_array_equal(pixels(cell(image, file_format, exif=exif))[..., 0], shown)


@pytest.mark.parametrize("warnings_are", ["error", "ignore"])
def test_decode_ignores_odd_orientations_and_broken_exif_blocks(warnings_are: str) -> None:
    for odd, file_format in itertools.product((0, 9), ("PNG", "JPEG")):
        exif = Image.Exif()
        exif[0x0112] = odd
        image = cell(Image.new("RGB", (3, 2)), file_format, exif=exif)
        assert EncodedImage(image).decode().size == (3, 2)
    for block in (b"II*\0\xff\xff\xff\xff", b"II+\0\x08\0\0\0" + 8 * b"\xff"):
        with warnings.catch_warnings():
            warnings.simplefilter(warnings_are)
            broken = pixels(cell(noise(), exif=b"Exif\0\0" + block))
        np.testing.assert_array_equal(broken, np.asarray(noise()))


def test_decode_takes_the_first_frame() -> None:
    frames = [Image.new("RGB", (4, 4), color) for color in ((255, 0, 0), (0, 0, 255))]
    animated = cell(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert pixels(animated)[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.98])
def test_decode_refuses_a_cut_file(file_format: str, share: float) -> None:
    image = cell(noise(), file_format)
    image["bytes"] = image["bytes"][: int(len(image["bytes"]) * share)]
    for reduction in (1, 4):
        with pytest.raises(ValueError, match=r"picture\."):
            EncodedImage(image).decode(reduction)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("empty.jpg", "empty file"),
        ("text.png", "not an image in a known format"),
        ("none.png", "cannot be read: No such file"),
        (".", "directory"),
        ("whole.png#bytes=99999+9", "empty file"),
        ("whole.png#bytes=0+500", "cannot be decoded"),
        ("none.png#bytes=0+9", "cannot be read: No such file"),
        ("pipe.png", "no regular file"),
        ("zeros.png", "no regular file"),
        ("sparse.png", "6,442,450,944 bytes; at most"),
        ("sparse.png#bytes=1+9999999999", "9,999,999,999 bytes; at most"),
    ],
)
def test_decode_names_file_and_reason_and_reads_no_endless_file(tmp_path, name, reason) -> None:
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.png").write_text("I am a text.")
    noise().save(tmp_path / "whole.png")
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "zeros.png").symlink_to("/dev/zero")
    with (tmp_path / "sparse.png").open("wb") as file:
        file.truncate(6 << 30)
    with pytest.raises(ValueError, match=reason) as caught:
        decode_image({"bytes": None, "path": str(tmp_path / name)})
    assert str(tmp_path / name) in str(caught.value)


@pytest.mark.parametrize(("width", "height"), [(10_000, 10_000), (16_000, 16_000), (2**30, 2)])
def test_decode_refuses_a_bomb_before_decoding(width: int, height: int) -> None:
    with pytest.raises(ValueError, match=rf"bomb\.png.* {width * height:,} pixels; at most 64,"):
        decode_image({"bytes": png_header(width, height), "path": "bomb.png"})


def test_bound_on_pixels_is_an_argument_and_ours_alone(monkeypatch) -> None:
    # Pillow warns above it, and fails above twice as many.
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    for size in ((40, 40), (80, 80)):
        assert decode_image(cell(Image.new("RGB", size))).size == size
    assert Image.MAX_IMAGE_PIXELS == 1000
    assert decode_image(cell(noise()), max_pixels=48 * 48).size == (48, 48)
    with pytest.raises(ValueError, match=r"48 x 48 is 2,304 pixels; at most 2,303"):
        decode_image(cell(noise()), max_pixels=48 * 48 - 1)


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_decode_of_damaged_bytes_is_a_picture_or_a_value_error(file_format: str) -> None:
    generator = np.random.default_rng(1)
    whole = cell(noise(), file_format)["bytes"]
    for _ in range(60):
        damaged = bytearray(whole)
        for place in generator.integers(0, len(damaged), 6):
            damaged[place] = generator.integers(0, 256)
        # Any other error fails the test.
        with contextlib.suppress(ValueError):
            image = decode_image({"bytes": bytes(damaged), "path": None}, max_pixels=10_000_000)
            assert image.mode == "RGB"


def test_decode_keeps_every_value_of_bytes_of_a_file_and_of_a_piece_of_one(tmp_path) -> None:
    image, file = cell(noise())["bytes"], tmp_path / "many#bytes=1.tar"
    file.write_bytes(b"before" + image + b"after")
    (tmp_path / "a.png").write_bytes(image)
    path = range_path(file, start=6, length=len(image))
    assert path == f"{file}#bytes=6+{len(image)}"
    for data, place in ((image, None), (None, str(tmp_path / "a.png")), (None, path)):
        np.testing.assert_array_equal(pixels({"bytes": data, "path": place}), np.asarray(noise()))
    with pytest.raises(ValueError, match="bytes or a path"):
        decode_image({"bytes": None, "path": None})


def test_decode_mask_rejects_more_channels_and_bits() -> None:
    deep = Image.fromarray(np.full((2, 2), 300, dtype=np.uint16))
    for image, mode in ((noise(), "RGB"), (deep, "I;16")):
        with pytest.raises(ValueError, match=f"picture.png.*: mode {mode}; a mask needs one"):
            decode_mask(cell(image))


@pytest.mark.parametrize(("least", "width"), [(501, 1000), (500, 500), (125, 125), (1, 125)])
def test_jpeg_is_decoded_to_the_smallest_scale_that_is_large_enough(least: int, width: int) -> None:
    image = encode_image(Image.new("RGB", (1000, 1200), "red"), "red.jpg", kind="JPEG")
    assert EncodedImage(image).decode_to(least).size == (width, width * 12 // 10)


@pytest.mark.parametrize("orientation", [1, 3, 6])
@pytest.mark.parametrize("reduction", [1, 2, 4, 8])
def test_encoded_jpeg_knows_its_size_and_decodes_at_a_smaller_scale(orientation, reduction) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.new("RGB", (101, 67), (200, 30, 90))
    encoded = EncodedImage(cell(stored, "JPEG", quality=95, exif=exif))
    size = (67, 101) if orientation == 6 else (101, 67)
    assert encoded.size == size
    picture = encoded.decode(reduction)
    assert picture.mode == "RGB"
    assert picture.size == tuple(-(-side // reduction) for side in size)
    assert np.abs(np.asarray(picture).astype(int) - (200, 30, 90)).max() <= LOSSY


@pytest.mark.parametrize("file_format", ["PNG", "WEBP", "GIF"])
def test_encoded_image_of_another_format_comes_whole(file_format: str) -> None:
    encoded = EncodedImage(cell(Image.new("RGB", (101, 67)), file_format))
    assert encoded.size == encoded.decode(4).size == (101, 67)


# Levels of 255, mean over a picture; seen on this photograph: 2.4 and 4.1 (docs/scaling.md). The second is mostly the
# shift of the crop by less than half a reduced pixel.
REDUCED_WHOLE, REDUCED_CROP = 3.5, 6.0


@pytest.mark.parametrize(("min_crop", "bound"), [(1.0, REDUCED_WHOLE), (0.9, REDUCED_CROP)])
@pytest.mark.parametrize("image_size", [64, 128])
def test_reduced_decoding_of_a_photograph_is_near_the_plain_one(
    min_crop, bound, image_size
) -> None:
    photograph = importlib.resources.files("sklearn") / "datasets" / "images" / "china.jpg"
    image = {"bytes": photograph.read_bytes(), "path": "china.jpg"}
    config = TransformConfig(image_size=image_size, min_crop=min_crop, rand_augment_ops=0)
    transforms = [config, dataclasses.replace(config, reduced_decoding=False)]
    for seed in range(3):
        reduced, whole = (
            TrainTransform(each).pixels(EncodedImage(image), np.random.default_rng(seed)).float()
            for each in transforms
        )
        assert 0 < (reduced - whole).abs().mean() < bound
