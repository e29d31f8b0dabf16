from __future__ import annotations

import base64
import io

import numpy as np
import pytest
import torch
from PIL import Image, ImageFont

from vlmo import visualization
from vlmo.visualization import Sheet, data_uri, heat_map, on_white

ASCII = frozenset(map(chr, range(33, 127)))
LETTERS = {"": ASCII, "A": ASCII | set("üж"), "B": ASCII | set("日本")}


@pytest.fixture
def machine(monkeypatch):
    """Fonts A and B beside Pillow's own, and no other; they differ in what letters they have."""
    made = {}
    monkeypatch.setattr(visualization, "_FONTS", ("", "gone", "A", "B"))
    monkeypatch.setattr(visualization, "_has", lambda name, letter: letter in LETTERS[name])

    def font(name, size):
        if name == "gone":
            return None
        return made.setdefault((name, size), ImageFont.load_default(size))

    monkeypatch.setattr(visualization, "_font", font)
    return lambda name, size: made[name, size]


@pytest.mark.parametrize(
    ("text", "name", "written"),
    [
        ("a dog", "", "a dog"),
        ("grün", "A", "grün"),
        ("gru\u0308n", "A", "grün"),  # as macOS spells names of files
        ("日本 go", "B", "日本 go"),
        ("日本 ü é", "B", "日本 u e"),
        ("ж é 日", "A", "ж e ?"),
        ("ﬁ ½", "", "fi ?"),
    ],
)
def test_first_font_with_all_letters_is_taken(text, name, written, machine):
    font, plain = visualization.fitting_font(text, size=20)
    assert plain == written
    assert font is machine(name, 20)


def test_own_font_is_known_to_lack_letters():
    assert visualization._has("", "a")
    assert visualization._has("", "…")
    assert not visualization._has("", "日")
    assert visualization._font("no such font.ttf", 20) is None


def test_sheet_without_other_fonts_writes_plain_letters(monkeypatch):
    """Rather than boxes, all of which look alike."""
    monkeypatch.setattr(visualization, "_FONTS", ("",))
    drawn = []
    for line, written in (("über", "uber"), ("uber", "uber"), ("日", "?"), ("?", "?")):
        sheet = Sheet(200, 40)
        assert sheet.wrapped(line, width=190, max_lines=1) == [written]
        sheet.text(line, x=5, y=5)
        drawn.append(np.asarray(sheet.finished()))
    np.testing.assert_array_equal(drawn[0], drawn[1])
    np.testing.assert_array_equal(drawn[2], drawn[3])
    assert not np.array_equal(drawn[0], drawn[2])


def decoded(uri: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))


def test_transparency_becomes_white():
    for mode in ("RGBA", "LA", "P"):
        image = Image.new("RGBA", (4, 4), (10, 20, 30, 0)).convert(mode)
        if mode == "P":
            image.info["transparency"] = image.getpixel((0, 0))
        assert on_white(image).getpixel((1, 1)) == (255, 255, 255)


def test_data_uri_shrinks_and_chooses_the_format():
    flat = Image.new("RGB", (500, 250), "red")
    waves = np.sin(np.linspace(0, 9, 300)[:, None, None] * np.linspace(1, 3, 300)[:, None] + np.arange(3))
    photo = Image.fromarray((127 + 90 * waves + np.random.normal(0, 20, waves.shape)).astype(np.uint8))
    assert data_uri(flat, size=100).startswith("data:image/png;base64,")
    assert decoded(data_uri(flat, size=100)).size == (100, 50)
    assert data_uri(photo).startswith("data:image/jpeg;base64,")
    assert flat.size == (500, 250)  # the caller's image is left alone
    assert decoded(data_uri(photo)).size == (144, 144)


def test_heat_is_where_the_weight_is():
    weights = torch.zeros(4, 4)
    weights[0, 3] = 2.0
    heat = np.asarray(heat_map(Image.new("RGB", (72, 72), "white"), weights, size=80)).astype(int)
    assert heat[5, 75, 1] < 100  # top right: coloured
    assert heat[70, 10].tolist() == [255, 255, 255]
    assert heat_map(Image.new("RGB", (300, 150), "white"), weights, size=80).size == (80, 40)
    # A flat map has no colour rather than a division by zero.
    assert np.asarray(heat_map(Image.new("RGB", (8, 8), "white"), torch.ones(2, 2), size=16)).min() == 255
