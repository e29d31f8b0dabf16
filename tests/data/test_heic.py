"""HEIC files are read wherever images are, by an optional package, and by nobody who left them out."""

import importlib.util

import numpy as np
import pytest
from PIL import Image, ImageOps
from tests.toy_heic import heic

from vlmo.data.decoding import decode_image
from vlmo.processing import images
from vlmo.processing.images import open_upright

CLOSE = 6.0
"""Mean difference of 8-bit values that a lossy encoder leaves in a smooth image."""


def smooth() -> Image.Image:
    gradient = Image.linear_gradient("L").resize((64, 40))
    return Image.merge("RGB", [gradient.rotate(turn) for turn in (0, 90, 180)])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_heic_is_decoded_upright(orientation, tmp_path) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data, image = heic(smooth(), exif=exif.tobytes(), quality=90), smooth()
    image.info["exif"] = exif.tobytes()
    expected = np.asarray(ImageOps.exif_transpose(image), dtype=float)
    (tmp_path / "a.jpg").write_bytes(data)  # the name says nothing
    decoded = decode_image({"bytes": data, "path": None})
    for found in (decoded, open_upright(tmp_path / "a.jpg").convert("RGB")):
        assert np.abs(np.asarray(found, dtype=float) - expected).mean() < CLOSE


def test_transparency_is_on_white() -> None:
    image = Image.new("RGBA", (32, 32), (255, 0, 0, 0))
    found = np.asarray(decode_image({"bytes": heic(image, quality=-1), "path": None}))
    assert found.min() > 250


def test_without_the_package_one_line_says_what_to_install(monkeypatch, tmp_path) -> None:
    data = heic(smooth())
    images.register_heic.cache_clear()
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ValueError, match=r"a\.heic: .*HEIC needs pillow_heif.*\[photos\]'"):
        decode_image({"bytes": data, "path": "a.heic"})
