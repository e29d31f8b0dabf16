from vlmo.data import tables
from vlmo.data.tables import cut_texts


def test_longest_texts_of_an_image_are_cut(monkeypatch) -> None:
    monkeypatch.setattr(tables, "MAX_TEXT", 10)
    monkeypatch.setattr(tables, "MAX_CAPTIONS", 4)
    assert cut_texts(["12345", "123", "12", "1234", "1"], {}) == (("…", "123", "12", "1234"), {})
    columns = {"ocr_text": "123456789", "year": 2020, "album": "Rome", "more": 10 * "x"}
    expected = {"ocr_text": "12345…", "year": 2020, "album": "Rome", "more": ""}
    assert cut_texts([10 * "x", 11 * "x"], columns) == ((10 * "x",), expected)
