import json
import os
from pathlib import Path

import pytest
from tests.data.prepare.toy_task_files import write

from vlmo.data.prepare import PREPARERS, find_preparer, labels_of, prepare
from vlmo.data.prepare.parts import find, read_records


@pytest.mark.parametrize("name", PREPARERS)
def test_every_preparer_says_what_a_missing_root_should_be(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--root") as caught:
        prepare(name, root=tmp_path / "nowhere", out=tmp_path / "out")
    assert "nowhere" in str(caught.value)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="--root") as caught:
        prepare(name, root=tmp_path / "empty", out=tmp_path / "out")
    assert "empty" in str(caught.value)
    assert [entry.name for entry in tmp_path.iterdir()] == ["empty"]


def test_find_takes_the_first_that_exists(tmp_path: Path) -> None:
    write(tmp_path / "b" / "c.json", "")
    assert find(tmp_path, "c.json", "b/c.json", layout="c.json") == tmp_path / "b" / "c.json"
    write(tmp_path / "c.json", "")
    assert find(tmp_path, "c.json", "b/c.json", layout="c.json") == tmp_path / "c.json"
    os.mkfifo(tmp_path / "d.json")
    with pytest.raises(ValueError, match=r"d\.json or e\.json is missing; --root must be a folder with d\.json"):
        find(tmp_path, "d.json", "e.json", layout="d.json")
    with pytest.raises(ValueError, match=r"nowhere: no such folder; --root must be"):
        find(tmp_path / "nowhere", "d.json", layout="d.json")


def test_unknown_name_gets_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"no data set 'flickr30' .*Did you mean 'flickr30k'\? All: coco, flickr30k"):
        find_preparer("flickr30")
    with pytest.raises(ValueError, match=r"no data set 'xyzzy' can be prepared\. All: coco"):
        find_preparer("xyzzy")


def test_labels_of_other_folders_is_an_error(tmp_path) -> None:
    with pytest.raises(ValueError, match=r"no prepared\.json; expected a folder that `vlmo data prepare` has written"):
        labels_of(tmp_path)
    write(tmp_path / "prepared.json", '{"labels": null}')
    with pytest.raises(ValueError, match="no answers or classes"):
        labels_of(tmp_path)
    write(tmp_path / "prepared.json", '{"labels": ["a", "b"]}')
    assert labels_of(tmp_path) == ["a", "b"]


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
        (b"[" * 100_000, None, "recursion depth"),
        (b'{"info": ' + b'{"a":' * 100_000, "images", "recursion depth"),
    ],
)
def test_a_wrong_file_is_named(tmp_path, text: bytes, key: str | None, message: str) -> None:
    file = tmp_path / "a.json"
    file.write_bytes(text)
    with pytest.raises(ValueError, match=message) as caught:
        read(file, key)
    assert str(file) in str(caught.value)


def test_a_record_that_lacks_a_field_is_named_by_its_number(tmp_path):
    file = write(tmp_path / "a.json", '{"images": [{"id": 1}, {"name": 2}]}')
    with pytest.raises(ValueError, match=r"images\[1\]: id are needed \(KeyError\('id'\)\)"):
        read_records(file, lambda record: record["id"], needs="id", key="images")
