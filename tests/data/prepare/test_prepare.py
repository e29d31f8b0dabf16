from pathlib import Path

import pytest
from tests.data.prepare.toy_task_files import write

from vlmo.data.prepare import PREPARERS, find_preparer, labels_of, prepare


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
