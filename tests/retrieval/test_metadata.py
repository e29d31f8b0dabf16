from __future__ import annotations

from datetime import date
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pytest

from vlmo.retrieval.metadata import (
    Annotation,
    MetadataTable,
    clean_metadata,
    read_column,
)
from vlmo.retrieval.sources import Found, Reader
from vlmo.retrieval.store import column_type, converted


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([1, None, 2], pa.int64()),
        ([1, 2.5], pa.float64()),
        ([True, False], pa.bool_()),
        ([True, 1], pa.string()),
        (["a", 1], pa.string()),
        ([None], None),
        ([], None),
    ],
)
def test_kind_is_the_narrowest_that_holds_all(values, kind):
    assert column_type(values) == kind


def test_values_fit_their_column():
    assert [converted(value, pa.string()) for value in (True, 1, 0.5, "a", None)] == ["true", "1", "0.5", "a", None]
    assert isinstance(converted(1, pa.float64()), float)


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


def test_metadata_becomes_plain():
    given = {
        "Price (EUR)": Decimal("2.5"),
        "2nd": np.int32(3),
        "id": "x",
        "größe": 1,
        "day": date(2020, 1, 2),
        "tags": ["a", {"b": 1}],
        "huge": 2**70,
        "raw": b"bytes",
        "nan": float("nan"),
        "none": None,
        "!": "?",
        "wide": 1,
        "Wide__wider": 2,
    }
    assert clean_metadata(given) == {
        "price_eur": 2.5,
        "_2nd": 3,
        "id_": "x",
        "größe": 1,
        "day": "2020-01-02",
        "tags": '["a", {"b": 1}]',
        "huge": str(2**70),
        "column": "?",
        "wide": 1,
        "wide__wider_": 2,
    }


def written(path, text):
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_lines_about_one_image_add_up(tmp_path):
    path = written(tmp_path / "about.tsv", "file_name\tcaption\tn\na/1.png\tone\t1\na/1.png\ttwo\t2\n2.png\t\t3\n")
    table = MetadataTable(path)
    assert table.about("a/1.png") == Annotation(("one", "two"), {"n": 2})
    assert table.about("deep/below/2.png") == Annotation((), {"n": 3})
    assert table.about("1.png") == Annotation()
    assert len(table) == 2
    path = written(tmp_path / "about.csv", "image,caption,n\n./1.png,one,1\n./1.png,two,2\n1.png ,three,3\n")
    assert MetadataTable(path).about("1.png") == Annotation(("one", "two", "three"), {"n": 3})


def test_names_that_no_image_has_are_counted(tmp_path):
    for folder, text in (("a", "1.png,one\nsub/2.png,two\n3.png,three\n"), ("b", "1.png,one\n")):
        (tmp_path / folder).mkdir()
        written(tmp_path / folder / "captions.csv", f"image,caption\n{text}")
    reader = Reader()
    for name in ("a/other/1.png", "a/sub/2.png", "a/4.png", "b/1.png"):
        reader.stamp(Found(str(tmp_path / name), "", "file", "", 0, root=str(tmp_path / name[0])))
    sentence = reader.unmatched()
    assert sentence.startswith("1 of 4 names")
    assert sentence.endswith(f"3.png in {tmp_path / 'a' / 'captions.csv'}")
    reader.stamp(Found(str(tmp_path / "a" / "3.png"), "", "file", "", 0, root=str(tmp_path / "a")))
    assert reader.unmatched() is None


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.csv", "caption\nno image\n", "no image is named"),
        ("a.csv", "image,caption\n1.png,two, commas\n", "not the 2 fields"),
        ("a.csv", 'image,caption\n1.png,"open\n2.png,two\n', r"a.csv:2: unexpected end of data; a quote that opens"),
        ("a.jsonl", "[]\n", "expected an object"),
        ("a.jsonl", '{"image": "1.png", "captions": 3}\n', "captions must be a text"),
        ("a.txt", "", "expected a table"),
        ("a.csv", b"image,caption\n1.png,s\xfc\xdf\n", "not UTF-8"),
    ],
)
def test_wrong_table_is_one_line(name, text, words, tmp_path):
    with pytest.raises(ValueError, match=words):
        MetadataTable(written(tmp_path / name, text))
