from __future__ import annotations

import base64
import io

import numpy as np
import pytest
import torch
from PIL import Image

from vlmo.visualization import _lines, data_uri, grid, heat_map


@pytest.mark.parametrize(
    ("text", "written"),
    [("a dog", "a dog"), ("日本 go", "?? go"), ("über", "uber"), ("ж é 日", "? e ?"), ("", "")],
)
def test_sheets_have_plain_letters_rather_than_boxes(text, written):
    assert _lines(text, 20, 1) == [written]


def test_a_grid_has_a_tile_for_each_image_and_shortens_texts():
    lines = _lines("a word that is quite a bit too long " * 3, 20, 2)
    assert [len(line) <= 20 for line in lines] == [True] * 2
    tile = (Image.new("RGBA", (3, 90), "green"), "1. " * 99, "x" * 300)
    sheet = grid("a heading " * 99, [tile] * 5, columns=4)
    assert sheet.size == (2 * 28 + 4 * 216 - 16, 2 * 28 + 44 + 2 * 270 - 16)
    columns = (np.asarray(sheet) == (0, 128, 0)).all(axis=2).any(axis=0).nonzero()[0]
    assert 28 < columns.min() < 128 < 28 + 3 * 216 < columns.max() < 28 + 4 * 216
    assert grid("", [], columns=4).height < sheet.height


def test_data_uri_shrinks():
    flat = Image.new("RGB", (500, 250), "red")
    waves = np.sin(np.linspace(0, 9, 300)[:, None, None] * np.linspace(1, 3, 300)[:, None])
    noise = 127 + 90 * waves + np.random.normal(0, 20, (300, 300, 3))
    photo = Image.fromarray(noise.astype(np.uint8))
    for uri, size in ((data_uri(flat), (144, 72)), (data_uri(photo), (144, 144))):
        kind, _, data = uri.partition(",")
        assert kind == "data:image/webp;base64"
        assert Image.open(io.BytesIO(base64.b64decode(data))).size == size
    assert flat.size == (500, 250)  # the caller's image is left alone


def test_heat_is_where_the_weight_is():
    weights = torch.zeros(4, 4)
    weights[0, 3] = 2.0
    heat = np.asarray(heat_map(Image.new("RGB", (72, 72), "white"), weights, size=80)).astype(int)
    assert heat[5, 75, 1] < 100  # top right: colored
    assert heat[70, 10].tolist() == [255, 255, 255]
    assert heat_map(Image.new("RGB", (300, 150), "white"), weights, size=80).size == (80, 40)
    # A flat map has no color rather than a division by zero.
    flat = heat_map(Image.new("RGB", (8, 8), "white"), torch.ones(2, 2), size=16)
    assert np.asarray(flat).min() == 255
