import itertools
import json

import pytest

from vlmo.data.prepare.parts import read_records

RECORDS = [{"id": 1, "text": 'a ] } " é\u2028'}, [1, [2]], 12345, "end", None, 1.5e3]


def read(file, key=None):
    return list(read_records(file, lambda record: record, needs="nothing", key=key))


def test_records_are_those_of_json(tmp_path) -> None:
    file = tmp_path / "a.json"
    file.write_text(json.dumps(RECORDS, ensure_ascii=False), encoding="utf-8-sig")
    assert read(file) == RECORDS
    whole = {"info": {"images": [0]}, "number": 17, "others": [[1], 2], "images": RECORDS, "after": [3]}
    file.write_text(json.dumps(whole, indent=2))
    assert read(file, "images") == RECORDS


def test_one_part_of_a_file_is_in_memory(tmp_path) -> None:
    file = tmp_path / "a.json"
    file.write_text("[" + ",".join(f'{{"number": {number}}}' for number in range(100_000)))
    records = read_records(file, lambda record: record["number"], needs="number")
    # The file is cut off, which only shows at its end: what comes before is read without it.
    assert list(itertools.islice(records, 50_000)) == list(range(50_000))
    with pytest.raises(ValueError, match="cut off"):
        list(records)


@pytest.mark.parametrize(
    ("text", "key", "message"),
    [
        (b'[{"a": 1}, {"a"', None, "is it cut off"),
        (b"[1, 2", None, "is it cut off"),
        (b"[1 2]", None, "is it cut off"),
        (b'["\xe9"]', None, "no JSON in UTF-8"),
        (b'{"images": [1]}', None, "it holds no list, or an empty one"),
        (b"[1]", "images", "it holds no list 'images'"),
        (b'{"annotations": [1], "images": 3}', "images", "no list 'images'"),
        (b'{"images": []}', "images", "an empty one"),
        (b"", "images", "is it cut off"),
    ],
)
def test_a_wrong_file_is_named(tmp_path, text: bytes, key: str | None, message: str) -> None:
    file = tmp_path / "a.json"
    file.write_bytes(text)
    with pytest.raises(ValueError, match=message) as caught:
        read(file, key)
    assert str(file) in str(caught.value)


def test_a_record_that_lacks_a_field_is_told_by_its_number(tmp_path) -> None:
    file = tmp_path / "a.json"
    file.write_text('{"images": [{"id": 1}, {"name": 2}]}')
    records = read_records(file, lambda record: record["id"], needs="id", key="images")
    assert next(records) == 1
    with pytest.raises(ValueError, match=r"images\[1\]: id are needed \(KeyError\('id'\)\)"):
        next(records)
