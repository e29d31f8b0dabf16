import unicodedata
from datetime import date
from decimal import Decimal

import numpy as np
import pytest

from vlmo.retrieval.metadata import Annotation, MetadataTable, clean_metadata, read_column


@pytest.mark.parametrize(
    ("cells", "values"),
    [
        (["1", "-20", ""], [1, -20, None]),
        (["1", "2.5", "1e3"], [1.0, 2.5, 1000.0]),
        (["007", "12"], ["007", "12"]),
        (["true", "false"], [True, False]),
        (["1", "n/a"], ["1", "n/a"]),
        (["1", "-"], ["1", "-"]),
        (["", " "], [None, None]),
        (["12345678901234567890"], ["12345678901234567890"]),
    ],
)
def test_cells_of_a_column_are_read_alike(cells, values):
    assert read_column(cells) == values


@pytest.mark.parametrize(
    ("name", "value", "plain"),
    [
        ("Price (EUR)", Decimal("2.5"), {"price_eur": 2.5}),
        ("2nd", np.int32(3), {"_2nd": 3}),
        ("id", "x", {"id_": "x"}),
        ("größe", 1, {"größe": 1}),
        ("day", date(2020, 1, 2), {"day": "2020-01-02"}),
        ("tags", ["a", {"b": 1}], {"tags": '["a", {"b": 1}]'}),
        ("huge", 2**70, {"huge": str(2**70)}),
        ("long" * 1000, 1, {"long" * 25: 1}),
        ("!", "?", {"column": "?"}),
        *((name, 2021, {name: "2021"}) for name in ("album", "camera", "ocr_text", "taken")),
        *(("a", value, {}) for value in (b"bytes", float("nan"), None)),
    ],
)
def test_metadata_becomes_plain(name, value, plain):
    assert clean_metadata({name: value}) == plain


def written(path, text):
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_lines_about_one_image_add_up(tmp_path):
    lines = "file_name\tcaption\tn\na/1.png\tone\t1\na/1.png\ttwo\t2\n2.png\t\t3\n"
    table = MetadataTable(written(tmp_path / "about.tsv", lines))
    assert table.about("a/1.png") == Annotation(("one", "two"), {"n": 2})
    assert table.about("deep/below/2.png") == Annotation((), {"n": 3})
    assert table.about("1.png") == Annotation()
    for written_as, file in (("NFC", "NFD"), ("NFD", "NFC")):  # a Mac's files, and what people type
        name, file = (unicodedata.normalize(form, "Café/é.png") for form in (written_as, file))
        table = MetadataTable(written(tmp_path / "accents.csv", f"image,caption\n{name},one\n"))
        assert table.about(file) == Annotation(("one",))
    lines = "image,caption,n\n./1.png,one,1\n./1.png,two,2\n1.png ,three,3\n"
    path = written(tmp_path / "about.csv", lines)
    assert MetadataTable(path).about("1.png") == Annotation(("one", "two", "three"), {"n": 3})


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.csv", "caption\nno image\n", "no image is named"),
        ("a.csv", "image,caption\n1.png,two, commas\n", "not the 2 fields"),
        ("a.csv", 'image,caption\n1.png,"open\n2.png,two\n', "a.csv:2: unexpected end of data"),
        ("a.jsonl", "[]\n", "expected an object"),
        ("a.jsonl", '{"image": "1.png", "captions": 3}\n', "captions must be a text"),
        ("a.txt", "", "expected a table"),
        ("a.csv", b"image,caption\n1.png,s\xfc\xdf\n", "not UTF-8"),
    ],
)
def test_wrong_table_is_one_line(name, text, words, tmp_path):
    with pytest.raises(ValueError, match=words):
        MetadataTable(written(tmp_path / name, text))
