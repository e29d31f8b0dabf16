import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.data.prepare.toy_task_files import quarantined, write

from vlmo.data.prepare import prepare
from vlmo.data.sources import open_source
from worlds import clipart, emoji

FILE = """<?xml version="1.0"?>
<svg xmlns="http://www.w3.org/2000/svg" xmlns:cc="http://web.resource.org/cc/"
  xmlns:dc="http://purl.org/dc/elements/1.1/" xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"
  width="200" height="{height}"><metadata><rdf:RDF><cc:Work><dc:title>{title}</dc:title>
  <dc:subject><rdf:Bag>{items}</rdf:Bag></dc:subject>
  <dc:creator><cc:Agent><dc:title>{author}</dc:title></cc:Agent></dc:creator>
  <cc:license rdf:resource="http://web.resource.org/cc/{licence}"/></cc:Work></rdf:RDF></metadata>{body}</svg>"""
pytestmark = pytest.mark.usefixtures("no_emoji")
SHAPES = (
    '<rect x="10" y="20" width="40" height="20" fill="red"/>',
    '<path d="M10 90l50-80l50 80z" fill="green"/>',
    '<path d="M10 10h90v20h-70v60h-20z" fill="blue"/>',
    '<path d="M10 10h20v80h60v-80h20v90h-100z" fill="black"/>',
    '<path d="M10 50l40-10l10-30l10 30l40 10l-40 10l-10 30l-10-30z" fill="gold"/>',
)


APPLE = "food/apple_ann_bell_01"


def art(title, *keywords, shape=0, **changes) -> str:
    items = "".join(f"<rdf:li>{word}</rdf:li>" for word in keywords)
    facts = {"author": "Ann Bell", "licence": "PublicDomain", "height": "100"} | changes
    return FILE.format(title=title, items=items, body=SHAPES[shape], **facts)


FILES = {
    f"{APPLE}.svg": art("Red Apple 2", "fruit", "hash(0x1)", "food", "signs_and_symbols", "apple"),
    "food/menu_1.svg": art("My Collection", "food", shape=1, height="30mm"),
    "food/pear_annbell_x.svg": art("Clipart by Ann Bell - wrong_name", shape=2),
    "tools/saw.svg": art("Sega", "saw", author="Architetto Francesco Rollandin", shape=3),
    "tools/hammer.svg": art("Hammer", licence="GPL/2.0", shape=4),
    "shapes/stars/star.svg": art("Star"),
    "tools/torn.svg": "<svg",
    "tools/wrong.svg": art("Wrong").replace("<rect", "<no_rect"),
}


@pytest.fixture
def shares(monkeypatch):
    """Authors whose names begin with Z are for testing."""
    monkeypatch.setattr(clipart, "hash_share", lambda name: 0.0 if name.startswith("Z") else 0.5)


def prepared(root: Path, files: dict[str, str], out: Path) -> dict[str, dict]:
    for name, text in files.items():
        write(root / "usr/share/openclipart/svg" / name, text)
    prepare("clipart", root=root, out=out)
    return {row["image_id"]: row for row in open_source(str(out))}


def test_titles_and_keywords_are_captions(shares, tmp_path):
    rows = prepared(tmp_path / "in", FILES, tmp_path / "out")
    assert {name: row["captions"] for name, row in rows.items()} == {
        APPLE: ["red apple", "red apple, fruit, food", "a picture of a red apple"],
        "food/menu_1": ["menu", "menu, food", "an icon of a menu"],
        "food/pear_annbell_x": ["pear annbell x", "an icon of a pear annbell x"],
        "tools/saw": ["saw", "a saw"],
    }
    assert {row["licence"] for row in rows.values()} == {"public domain"}
    reasons = quarantined(tmp_path / "out")
    assert "no XML" in reasons["tools/torn"]
    assert "nothing is drawn" in reasons["tools/wrong"]
    # Drawings are cut to what they show and keep their transparency.
    image = Image.open(io.BytesIO(rows[APPLE]["image"]["bytes"]))
    assert (image.mode, image.size) == ("RGBA", (96, 96))
    left, top, right, bottom = image.getchannel("A").getbbox()
    assert (left, right) == (0, 96)
    assert abs(top - 24) <= 1 >= abs(bottom - 72)  # twice as wide as high
    assert image.getpixel((48, 48)) == (255, 0, 0, 255)


def test_other_authors_are_for_testing_and_nothing_looks_like_their_drawings(shares, tmp_path):
    files = {
        "a.svg": art("one", "word", author="Zoe", shape=1),
        "b.svg": art("one", author="Zed", shape=2),
        "c.svg": art("alike", shape=1),
        "d.svg": art("two", shape=3),
    }
    train = prepared(tmp_path / "in", files, tmp_path / "out")
    test = open_source(str(tmp_path / "out"), split="test")
    assert list(train) == ["d"]
    assert (test["image_id"][:], test["captions"][:]) == (["a"], [["one"]])


def test_titles_and_keywords_that_are_hidden_names_are_left_out(shares, tmp_path, monkeypatch):
    names = {"1f437": ("pig face", "pig")}
    drawing = emoji.Drawing("twemoji", "1f437", "", b"", np.zeros(1, np.float32))
    found = emoji.Emoji(names, {"1f437": drawing}, {}, emoji.Concepts(("1f437",), ("1f437",)))
    monkeypatch.setattr(emoji, "NUM_TEST", 0)
    monkeypatch.setattr(clipart, "read_emoji", lambda: found)
    files = {
        "a.svg": art("Pig"),
        "b.svg": art("boar", "animal", "pig", shape=1),
        "c.svg": art("guinea pig", "animal", shape=2),
        "d.svg": art("Pig", author="Zoe", shape=3),
    }
    assert list(prepared(tmp_path / "in", files, tmp_path / "out")) == ["c"]
    assert open_source(str(tmp_path / "out"), split="test")["captions"][:] == [["pig"]]
