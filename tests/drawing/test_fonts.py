from __future__ import annotations

import numpy as np
import pytest
from PIL import ImageFont

from vlmo.drawing import fonts
from vlmo.drawing.sheet import Sheet

ASCII = frozenset(map(chr, range(33, 127)))
LETTERS = {"": ASCII, "A": ASCII | set("üж"), "B": ASCII | set("日本")}


@pytest.fixture
def machine(monkeypatch):
    """Fonts A and B beside Pillow's own, and no other; they differ in what letters they have."""
    made = {}
    monkeypatch.setattr(fonts, "_FILES", ("gone", "A", "B"))
    monkeypatch.setattr(fonts, "_has", lambda name, letter: letter in LETTERS[name])

    def font(name, size):
        if name == "gone":
            return None
        return made.setdefault((name, size), ImageFont.load_default(size))

    monkeypatch.setattr(fonts, "_font", font)
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
    font, plain = fonts.fitting(text, size=20)
    assert plain == written
    assert font is machine(name, 20)


def test_own_font_is_known_to_lack_letters():
    assert fonts._has("", "a")
    assert fonts._has("", "…")
    assert not fonts._has("", "日")
    assert fonts._font("no such font.ttf", 20) is None


def test_sheet_without_other_fonts_writes_plain_letters(monkeypatch):
    """Rather than boxes, all of which look alike."""
    monkeypatch.setattr(fonts, "_FILES", ())
    drawn = []
    for line, written in (("über", "uber"), ("uber", "uber"), ("日", "?"), ("?", "?")):
        sheet = Sheet(200, 40)
        assert sheet.wrapped(line, width=190, max_lines=1) == [written]
        sheet.text(line, x=5, y=5)
        drawn.append(np.asarray(sheet.finished()))
    np.testing.assert_array_equal(drawn[0], drawn[1])
    np.testing.assert_array_equal(drawn[2], drawn[3])
    assert not np.array_equal(drawn[0], drawn[2])
