import os
from pathlib import Path

import pytest
from tests.data.prepare.toy_task_files import write

from vlmo.data.prepare import PREPARERS, find_preparer, labels_of, prepare
from vlmo.data.prepare.parts import find, with_article


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


def test_pipe_is_no_file_of_a_set(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.json")
    with pytest.raises(ValueError, match=r"a\.json is missing"):
        find(tmp_path, "a.json", layout="a.json")


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
