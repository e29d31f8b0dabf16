import json
import os
from pathlib import Path

import pytest
from tests.data.prepare.toy_task_files import write

from vlmo.data.prepare import PREPARERS, labels_of, prepare
from vlmo.data.prepare.preparer import find, read_records


@pytest.mark.parametrize("name", PREPARERS)
def test_every_preparer_says_what_a_missing_root_should_be(name: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for root in ("nowhere", "empty"):
        with pytest.raises(ValueError, match=rf"{root}.*--root"):
            prepare(name, root=tmp_path / root, out=tmp_path / "out")
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


def test_unknown_name_gets_the_nearest(tmp_path) -> None:
    with pytest.raises(ValueError, match=r"no data set 'flickr30' .*Did you mean 'flickr30k'\? All: coco, flickr30k"):
        prepare("flickr30", root=tmp_path, out=tmp_path / "out")
    with pytest.raises(ValueError, match=r"no data set 'xyzzy' can be prepared\. All: coco"):
        prepare("xyzzy", root=tmp_path, out=tmp_path / "out")


def test_labels_of_other_folders_is_an_error(tmp_path) -> None:
    with pytest.raises(ValueError, match=r"no prepared\.json; expected a folder that `vlmo data prepare` has written"):
        labels_of(tmp_path)
    write(tmp_path / "prepared.json", '{"labels": null}')
    with pytest.raises(ValueError, match="no answers or classes"):
        labels_of(tmp_path)
    write(tmp_path / "prepared.json", '{"labels": ["a", "b"]}')
    assert labels_of(tmp_path) == ["a", "b"]


RECORDS = [{"id": 1, "text": 'a ] } " é\u2028'}, [1, [2]], 12345, "end", None, 1.5e3]


def test_records_are_those_of_json(tmp_path) -> None:
    file = tmp_path / "a.json"
    file.write_text(json.dumps(RECORDS, ensure_ascii=False), encoding="utf-8-sig")
    assert read_records(file, lambda record: record) == RECORDS
    whole = {"info": {"images": [0]}, "number": 17, "others": [[1], 2], "images": RECORDS, "after": [3]}
    file.write_text(json.dumps(whole, indent=2))
    assert read_records(file, lambda record: record, key="images") == RECORDS
    assert read_records(file, lambda pair: pair[0]) == list(whole)


@pytest.mark.parametrize(
    ("text", "key", "message"),
    [
        (b'[{"a": 1}, {"a"', None, "is it cut off"),
        (b"[1 2]", None, "is it cut off"),
        (b'["\xe9"]', None, "no JSON in UTF-8"),
        (b"3", None, "it holds no list, or an empty one"),
        (b"[1]", "images", "it holds no list 'images'"),
        (b'{"annotations": [1], "images": 3}', "images", "no list 'images'"),
        (b'{"images": []}', "images", "an empty one"),
        (b"", "images", "is it cut off"),
        (b"[" * 100_000, None, "recursion depth"),
        (b'{"info": ' + b'{"a":' * 100_000, "images", "recursion depth"),
        (b'{"images": [{"id": 1}, {"name": 2}]}', "images", r"images\[1\]: KeyError\('id'\); is it the file of anoth"),
    ],
)
def test_a_wrong_file_is_named(tmp_path, text: bytes, key: str | None, message: str) -> None:
    file = write(tmp_path / "a.json", text)
    with pytest.raises(ValueError, match=message) as caught:
        read_records(file, lambda record: record["id"] if isinstance(record, dict) else record, key=key)
    assert str(file) in str(caught.value)
