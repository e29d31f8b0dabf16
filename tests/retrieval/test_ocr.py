"""Text in images is read, found, and read once."""

from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
from PIL import Image, ImageDraw, ImageFont
from tests.integrations.toy_gallery import drawings
from tests.retrieval.toy_index import build, rows

from vlmo.cli import main
from vlmo.retrieval import Searcher, ocr

TEXTS = ("BAKERY", "no parking", "Room 101")


def sign(text: str) -> Image.Image:
    image = Image.new("RGB", (300, 90), "white")
    ImageDraw.Draw(image).text((20, 20), text, fill="black", font=ImageFont.load_default(40))
    return image


def test_drawn_words_are_found_in_their_images(encoder, model, tmp_path, monkeypatch):
    (tmp_path / "images").mkdir()
    for number, image in enumerate([*map(sign, TEXTS), drawings()[0]]):
        image.save(tmp_path / "images" / f"{number}.png")
    build(encoder, tmp_path / "images", out=tmp_path / "index")
    out = str(tmp_path / "index")
    assert Searcher(encoder, out).search("bakery", mode="words").hits == []
    main(["index", str(model), "--out", out, "--ocr"])
    read = {Path(path).name: row["ocr_text"] for path, row in rows(tmp_path / "index").items()}
    assert read == {"0.png": "BAKERY", "1.png": "no parking", "2.png": "Room 101", "3.png": ""}
    for number, query in enumerate(("bakery", "parking", "room 101")):
        hits = Searcher(encoder, out).search(query, top=1).hits
        assert (Path(hits[0].path).name, hits[0].words) == (f"{number}.png", 1.0)
    # The next run remembers to read, and what it has read of the same bytes.
    (tmp_path / "images" / "copy.png").write_bytes((tmp_path / "images" / "0.png").read_bytes())
    monkeypatch.setattr("vlmo.retrieval.embedding.read_text", lambda _: pytest.fail("read again"))
    report = build(encoder, out=tmp_path / "index")
    assert (report.encoded, report.reused, report.unchanged) == (0, 1, 4)
    assert rows(tmp_path / "index")[str(tmp_path / "images" / "copy.png")]["ocr_text"] == "BAKERY"


def test_small_images_are_enlarged_and_lines_are_parted(monkeypatch):
    given = list[tuple[int, int]]()
    reader = lambda image: given.append(image.size) or SimpleNamespace(txts=("EXIT", "no smoking"))  # noqa: E731
    monkeypatch.setattr(ocr, "load_reader", lambda: reader)
    for size in ((128, 96), (3, 200), (320, 100), (4000, 3000)):
        assert ocr.read_text(Image.new("RGB", size)) == "EXIT | no smoking"
    assert given == [(320, 240), (5, 320), (320, 100), (4000, 3000)]


def test_text_without_control_characters_is_kept(encoder, tmp_path, monkeypatch):
    drawings()[0].save(tmp_path / "a.png")
    lines = ("\x1b[31mred\x00", "\u202eleft", "half \ud800", "<b>", "long " * 200_000)
    reader = lambda _: SimpleNamespace(txts=lines)  # noqa: E731
    monkeypatch.setattr(ocr, "load_reader", lambda: reader)
    monkeypatch.setattr("vlmo.retrieval.building.load_reader", lambda: reader)
    build(encoder, tmp_path, out=tmp_path / "index", ocr=True)
    text = rows(tmp_path / "index")[str(tmp_path / "a.png")]["ocr_text"]
    assert text.startswith(" [31mred  |  left | half   | <b> | long long ")
    assert len(text) < 10_000


def test_image_that_the_reader_refuses_has_no_text(monkeypatch, caplog):
    refuse = Mock(side_effect=RuntimeError("the width is 0"))
    monkeypatch.setattr(ocr, "load_reader", lambda: refuse)
    assert ocr.read_text(Image.new("RGB", (1, 4000))) == ""
    assert "1 x 4000 pixels counts as one without text: the width is 0" in caplog.text


def test_missing_package_or_model_is_one_line(encoder, tmp_path, monkeypatch):
    drawings()[0].save(tmp_path / "a.png")
    ocr.load_reader.cache_clear()
    package = SimpleNamespace(origin=str(tmp_path / "rapidocr" / "__init__.py"))
    monkeypatch.setattr(ocr, "find_spec", lambda _: package)
    with pytest.raises(ValueError, match=r"rapidocr.models has no \*_det_\*\.onnx"):
        build(encoder, tmp_path, out=tmp_path / "index", ocr=True)
    monkeypatch.setattr(ocr, "find_spec", lambda _: None)
    with pytest.raises(ModuleNotFoundError, match=r"\[ocr\]"):
        build(encoder, tmp_path, out=tmp_path / "index", ocr=True)
    ocr.load_reader.cache_clear()
