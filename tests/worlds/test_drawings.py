import json
from pathlib import Path

import pytest
from PIL import Image
from tests.data.prepare.toy_task_files import write

from vlmo.data.builtin import emoji
from vlmo.data.decoding import image_bytes
from vlmo.data.prepare import prepare
from vlmo.data.sources import open_source
from worlds import emoji as worlds_emoji

# Concepts with names of their own, a variant of one in skin tone, and one that looks as another does.
CODES = ("1f600", "1f436", "1f34e", "1f680", "1f44d", "1f31e")
TONE = "1f44d-1f3fb"
# The one that each style draws in the same color does not exist: styles differ by 60 levels of red.
STYLES = {"twemoji": 0, "openmoji": 60, "noto": 120, "fluent": 180}
NOTO = "emoji-datasource-google/img/google/64"
TRAINED = ("twemoji", "noto", "fluent")


def drawing(style: str, codes: str, *, kind: str = "PNG") -> bytes:
    place = (*CODES, TONE).index(codes)
    image = Image.new("RGB", (32, 32), (STYLES[style], 30 * place, 255 - 30 * place))
    return image_bytes(image, kind, lossless=True)


@pytest.fixture
def found(monkeypatch) -> worlds_emoji.Emoji:
    """One concept kept in OpenMoji's style and one kept altogether, out of six in two styles."""
    monkeypatch.setattr(worlds_emoji, "NUM_TEST", 1)
    monkeypatch.setattr(worlds_emoji, "NUM_NEW", 1)
    styles = {}
    for style in ("twemoji", "openmoji"):
        files = {f"{codes}.png": drawing(style, codes) for codes in (*CODES, TONE)}
        styles[style] = worlds_emoji.read_drawings(style, files)
    monkeypatch.setattr(worlds_emoji, "read_style", styles.__getitem__)
    english = emoji.english_names()
    names = {codes: english[codes] for codes in english if codes in {*CODES, TONE}}
    monkeypatch.setattr(emoji, "english_names", lambda: names)
    return worlds_emoji.read_emoji()


def packages(root: Path, *, fluent: bool = True) -> Path:
    for codes in (*CODES, TONE):
        write(root / NOTO / f"{codes}.png", drawing("noto", codes))
        if fluent:
            file = root / "@lobehub/fluent-emoji-3d/assets" / f"{codes}-fe0f.webp"
            write(file, drawing("fluent", codes, kind="WEBP"))
    entries = [{"hexcode": codes.upper(), "tags": [f"tag of {codes}", "common"]} for codes in CODES]
    entries.append({"hexcode": "1F1E6", "label": "no tags"})
    write(root / "emojibase-data/en/data.json", json.dumps(entries))
    return root


def test_drawings_of_further_styles_join_those_of_the_builtin_set_with_keywords(found, tmp_path):
    prepare("drawings", root=packages(tmp_path / "node_modules"), out=tmp_path / "out")
    parts = ("train", "test", "concepts")
    train, test, concepts = (open_source(str(tmp_path / "out"), split=part) for part in parts)
    kept, new = found.test[0].codes, found.new[0].codes
    base = worlds_emoji.base_codes
    known = {codes for codes in (*CODES, TONE) if base(codes) != base(new)}
    assert set(train["image_id"]) == {f"{style}/{codes}" for style in TRAINED for codes in known}
    assert test["image_id"][:] == [f"openmoji/{kept}"]
    assert concepts["image_id"][:] == [f"twemoji/{new}"]
    licences = dict(zip(train["source"], train["licence"], strict=True))
    assert licences == {"twemoji": "CC-BY-4.0", "noto": "Apache-2.0", "fluent": "MIT"}
    for image_id, texts in zip(train["image_id"], train["captions"], strict=True):
        codes = image_id.split("/")[1]
        assert texts[0] == emoji.english_names()[codes][0]
        assert (f"tag of {codes}, common" in texts) == (codes in CODES)
        article = "an" if texts[0][0] in "aeiou" else "a"
        typed = {f"{words}{article} {texts[0]}" for words in ("", "a picture of ", "an icon of ")}
        assert (texts[-1] in typed) == texts[0][0].islower()
    assert all(len(texts) == 1 for texts in test["captions"])


def test_drawings_that_look_like_a_kept_one_are_left_out(found, tmp_path):
    root = packages(tmp_path / "in", fluent=False)
    kept, new = found.test[0].codes, found.new[0].codes
    others = [codes for codes in CODES if codes not in {kept, new}]
    looks = (("openmoji", kept), ("twemoji", new), ("noto", new))
    for codes, look in zip(others, looks, strict=False):
        write(root / NOTO / f"{codes}.png", drawing(*look))
    prepare("drawings", root=root, out=tmp_path / "out")
    drawn = set(open_source(str(tmp_path / "out"))["image_id"])
    assert not {f"noto/{codes}" for codes in others[:3]} & drawn
    assert {f"noto/{codes}" for codes in others[3:]} <= drawn


def test_names_of_kept_concepts_are_no_captions(found, tmp_path):
    """Neither as a name nor among keywords, in any style."""
    root, new = packages(tmp_path / "in"), found.new[0].codes
    hidden, other = found.names[new][0], next(codes for codes in CODES if codes != new)
    entry = {"hexcode": other, "tags": ["kept", hidden.upper()]}
    write(root / "emojibase-data/en/data.json", json.dumps([entry]))
    prepare("drawings", root=root, out=tmp_path / "out")
    captions = {text for texts in open_source(str(tmp_path / "out"))["captions"] for text in texts}
    assert "kept" in captions
    assert not any(hidden in text.lower() for text in captions)
