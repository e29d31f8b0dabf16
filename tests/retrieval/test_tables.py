from __future__ import annotations

import pytest

from vlmo.retrieval.tables import NOTHING, MetadataTable, Told, Unmatched, table_of_folder, unmatched


def written(path, text):
    path.write_text(text, encoding="utf-8")
    return path


def test_lines_about_one_picture_add_up(tmp_path):
    path = written(tmp_path / "about.tsv", "file_name\tcaption\tn\na/1.png\tone\t1\na/1.png\ttwo\t2\n2.png\t\t3\n")
    table = MetadataTable(path)
    assert table.about("a/1.png") == Told(("one", "two"), {"n": 2})
    assert table.about("deep/below/2.png") == Told((), {"n": 3})
    assert table.about("1.png") == NOTHING
    assert len(table) == 2


def test_spellings_of_a_name_add_up(tmp_path):
    path = written(tmp_path / "about.csv", "image,caption,n\n./1.png,one,1\n./1.png,two,2\n1.png ,three,3\n")
    assert MetadataTable(path).about("1.png") == Told(("one", "two", "three"), {"n": 3})


def test_names_that_no_picture_has_are_counted(tmp_path):
    first = MetadataTable(written(tmp_path / "a.csv", "image,caption\n1.png,one\nsub/2.png,two\n3.png,three\n"))
    second = MetadataTable(written(tmp_path / "b.csv", "image,caption\n1.png,one\n"))
    for name in ("other/1.png", "sub/2.png", "4.png"):
        first.about(name)
    second.about("1.png")
    assert unmatched([first, second]) == Unmatched(1, 4, "3.png", tmp_path / "a.csv")
    first.about("3.png")
    assert unmatched([first, second]) is None


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.csv", "caption\nno picture\n", "no picture is named"),
        ("a.csv", "image,caption\n1.png,two, commas\n", "not the 2 fields"),
        ("a.csv", 'image,caption\n1.png,"open\n2.png,two\n', r"a.csv:2: unexpected end of data; a quote that opens"),
        ("a.jsonl", "[]\n", "expected an object"),
        ("a.jsonl", '{"image": "1.png", "captions": 3}\n', "captions must be a text"),
        ("a.txt", "", "expected a table"),
    ],
)
def test_wrong_table_is_one_line(name, text, words, tmp_path):
    with pytest.raises(ValueError, match=words):
        MetadataTable(written(tmp_path / name, text))


def test_table_in_other_letters_is_refused(tmp_path):
    (tmp_path / "a.csv").write_bytes("image,caption\n1.png,süß\n".encode("latin-1"))
    with pytest.raises(ValueError, match="not UTF-8"):
        MetadataTable(tmp_path / "a.csv")


def test_folder_has_one_table(tmp_path):
    assert table_of_folder(tmp_path) is None
    written(tmp_path / "captions.csv", "image,caption\n1.png,one\n")
    table = table_of_folder(tmp_path)
    assert table is not None
    assert table.about("1.png").captions == ("one",)
    written(tmp_path / "captions.jsonl", "")
    with pytest.raises(ValueError, match="keep one"):
        table_of_folder(tmp_path)
