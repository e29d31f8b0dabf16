import json

import pytest

from vlmo.data.prepare import json_stream
from vlmo.data.prepare.json_stream import read_array

RECORDS = [{"id": 1, "text": 'a ] } " é\u2028'}, [1, [2]], 12345, "end", None, 1.5e3]


@pytest.mark.parametrize("chunk", [1, 2, 7, 1 << 20])
@pytest.mark.parametrize("indent", [None, 2])
def test_read_array_gives_what_json_gives(tmp_path, monkeypatch, chunk: int, indent: int | None) -> None:
    monkeypatch.setattr(json_stream, "_CHUNK", chunk)
    file = tmp_path / "a.json"
    file.write_text(json.dumps(RECORDS, indent=indent, ensure_ascii=False), encoding="utf-8")
    assert list(read_array(file)) == RECORDS
    whole = {"info": {"images": [0]}, "number": 17, "others": [[1], 2], "images": RECORDS, "after": [3]}
    file.write_text(json.dumps(whole, indent=indent), encoding="utf-8")
    assert list(read_array(file, key="images")) == RECORDS


def test_read_array_of_nothing_is_empty(tmp_path) -> None:
    file = tmp_path / "a.json"
    file.write_text('{"images": [ ]}')
    assert list(read_array(file, key="images")) == []


def test_read_array_keeps_one_element_in_memory(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(json_stream, "_CHUNK", 64)
    file = tmp_path / "a.json"
    file.write_text("[" + ",".join(f'{{"number": {number}}}' for number in range(1000)))
    records = read_array(file)
    # The file is cut off, which only shows at its end: what comes before is read without it.
    assert [next(records)["number"] for _ in range(900)] == list(range(900))
    with pytest.raises(ValueError, match="cut off"):
        list(records)


@pytest.mark.parametrize(
    ("text", "key", "message"),
    [
        ('[{"a": 1}, {"a"', None, "is the file cut off"),
        ("[1, 2", None, "is the file cut off"),
        ("[1 2]", None, "is the file cut off"),
        ('{"images": [1]}', None, r"expected '\['"),
        ("[1]", "images", r"expected '\{'"),
        ('{"annotations": [1], "images": 3}', "images", "no list 'images'"),
        ("", "images", "expected"),
    ],
)
def test_read_array_names_the_file_that_is_wrong(tmp_path, text: str, key: str | None, message: str) -> None:
    file = tmp_path / "a.json"
    file.write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        list(read_array(file, key=key))
    assert str(file) in str(caught.value)


def test_read_array_names_a_file_in_another_encoding(tmp_path) -> None:
    file = tmp_path / "a.json"
    file.write_bytes('["é"]'.encode("latin-1"))
    with pytest.raises(ValueError, match="not the JSON"):
        list(read_array(file))
