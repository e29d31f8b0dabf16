import json
import os
from pathlib import Path

import pytest
from tests.data.prepare.toy_task_files import write

from vlmo.data.prepare import PREPARERS, find_preparer, labels_of, prepare
from vlmo.data.prepare.parts import find, read_records, with_article


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


@pytest.mark.parametrize(
    ("name", "typed"),
    [
        ("red bell", "a red bell"),
        ("umbrella", "an umbrella"),
        ("icon", "an icon"),
        ("user", "a user"),
        ("usb drive", "a usb drive"),
        ("unicorn", "a unicorn"),
        ("uninstall", "an uninstall"),
        ("one o'clock", "a one o'clock"),
        ("onion", "an onion"),
        ("euro", "a euro"),
        ("ewe", "a ewe"),
        ("hourglass", "an hourglass"),
        ("house", "a house"),
        ("3d cube", None),
        ("Japan", None),
    ],
)
def test_names_get_their_article(name: str, typed: str | None) -> None:
    captions = with_article([name, "synonym"], key="x")
    if typed is None:
        assert captions == (name, "synonym")
        return
    assert captions[:2] == (name, "synonym")
    assert captions[2] in {typed, f"a picture of {typed}", f"an icon of {typed}"}


def test_every_way_of_typing_is_used_about_as_often_as_planned() -> None:
    typed = [with_article(["bell"], key=f"set:{number}")[1] for number in range(400)]
    shares = [typed.count(words) / 400 for words in ("a bell", "a picture of a bell", "an icon of a bell")]
    assert shares == pytest.approx([0.5, 0.25, 0.25], abs=0.08)


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
