from __future__ import annotations

import base64
import io

import numpy as np
import pytest
import torch
from PIL import Image

from vlmo.visualization import data_uri, heat_map, on_white, wrapped


@pytest.mark.parametrize(
    ("text", "written"),
    [("a dog", "a dog"), ("日本 go", "?? go"), ("über", "uber"), ("ж é 日", "? e ?"), ("", "")],
)
def test_sheets_have_plain_letters_rather_than_boxes(text, written):
    assert wrapped(text, width=190, max_lines=1) == [written]


def test_long_texts_are_wrapped_and_shortened():
    lines = wrapped("a word that is quite a bit too long " * 3 + "x" * 100, width=180, max_lines=3)
    assert len(lines) == 3
    assert lines[-1].endswith("...")
    assert max(map(len, lines)) <= 20


def decoded(uri: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))


def test_transparency_becomes_white():
    for mode in ("RGBA", "LA", "P"):
        image = Image.new("RGBA", (4, 4), (10, 20, 30, 0)).convert(mode)
        if mode == "P":
            image.info["transparency"] = image.getpixel((0, 0))
        assert on_white(image).getpixel((1, 1)) == (255, 255, 255)


def test_data_uri_shrinks():
    flat = Image.new("RGB", (500, 250), "red")
    waves = np.sin(np.linspace(0, 9, 300)[:, None, None] * np.linspace(1, 3, 300)[:, None] + np.arange(3))
    photo = Image.fromarray((127 + 90 * waves + np.random.normal(0, 20, waves.shape)).astype(np.uint8))
    assert data_uri(flat).startswith("data:image/webp;base64,")
    assert decoded(data_uri(flat, size=100)).size == (100, 50)
    assert flat.size == (500, 250)  # the caller's image is left alone
    assert decoded(data_uri(photo)).size == (144, 144)


def test_heat_is_where_the_weight_is():
    weights = torch.zeros(4, 4)
    weights[0, 3] = 2.0
    heat = np.asarray(heat_map(Image.new("RGB", (72, 72), "white"), weights, size=80)).astype(int)
    assert heat[5, 75, 1] < 100  # top right: colored
    assert heat[70, 10].tolist() == [255, 255, 255]
    assert heat_map(Image.new("RGB", (300, 150), "white"), weights, size=80).size == (80, 40)
    # A flat map has no color rather than a division by zero.
    assert np.asarray(heat_map(Image.new("RGB", (8, 8), "white"), torch.ones(2, 2), size=16)).min() == 255
