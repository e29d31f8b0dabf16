import json
from pathlib import Path

import pytest
from tests.data.prepare.karpathy_files import coco_record, write_coco
from tests.data.prepare.toy_task_files import jpeg, quarantined

from vlmo.data.decoding import decode_image
from vlmo.data.prepare import prepare
from vlmo.data.schema import FEATURES
from vlmo.data.sources import open_source

SPLITS = ["train", "restval", "val", "test", "train"]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_coco(tmp_path / "coco", [coco_record(number, split) for number, split in enumerate(SPLITS)])


def test_coco_trains_on_restval_too(root, tmp_path) -> None:
    prepare("coco", root=root, out=tmp_path / "out")
    found = {split: open_source(str(tmp_path / "out"), split=split) for split in ("train", "validation", "test")}
    assert {split: rows["image_id"][:] for split, rows in found.items()} == {
        "train": ["coco/0", "coco/1", "coco/4"],
        "validation": ["coco/2"],
        "test": ["coco/3"],
    }
    assert found["train"].features == FEATURES
    row = found["train"][1]
    assert row["captions"] == ["Caption 1.", "Other words 1."]
    assert row["image"] == {"bytes": None, "path": str(root / "val2014" / "COCO_val2014_000000000001.jpg")}
    assert decode_image(row["image"]).getpixel((0, 0)) == (1, 1, 1)
    assert row["source"] == "coco"


def test_coco_finds_the_split_in_a_folder_of_its_own(root, tmp_path) -> None:
    (root / "karpathy").mkdir()
    (root / "dataset_coco.json").rename(root / "karpathy" / "dataset_coco.json")
    assert prepare("coco", root=root, out=tmp_path / "out").splits["train"].rows == 3


def test_coco_warns_where_sizes_differ(root, tmp_path) -> None:
    lines = prepare("coco", root=root, out=tmp_path / "out").lines()
    assert "warning: train has 3 rows; the whole set has 113,287" in lines
    assert "warning: validation has 1 rows; the whole set has 5,000" in lines
    assert "warning: test has 1 rows; the whole set has 5,000" in lines


def test_coco_bad_records_are_quarantined_with_a_reason(tmp_path) -> None:
    records = [coco_record(number, "train") for number in range(8)]
    records[3] |= {"cocoid": 1}
    records[4]["sentences"] = [{"raw": " "}]
    records[5]["sentences"][0]["raw"] = ""
    root = write_coco(tmp_path / "coco", records)
    (root / "train2014" / records[0]["filename"]).unlink()
    (root / "train2014" / records[2]["filename"]).write_bytes(jpeg(2)[:-40])
    summary = prepare("coco", root=root, out=tmp_path / "out")
    assert open_source(str(tmp_path / "out"))["image_id"][:] == ["coco/1", "coco/5", "coco/6", "coco/7"]
    assert open_source(str(tmp_path / "out"))["captions"][1] == ["Other words 5."]
    reasons = quarantined(tmp_path / "out")
    assert "COCO_train2014_000000000000.jpg: cannot be read: No such file" in reasons["coco/0"]
    assert reasons["coco/1"] == "image_id coco/1 repeats that of an earlier row"
    assert "cannot be decoded" in reasons["coco/2"]
    assert reasons["coco/4"] == "every caption is empty"
    assert reasons["coco/5"] == "caption 1 is empty; removed, the row is kept"
    train = summary.splits["train"]
    assert (train.rows, train.quarantined, train.captions, train.removed_captions) == (4, 4, 7, 1)
    assert "warning: 50.0% of train cannot be used; quarantine.jsonl says why" in summary.lines()


def test_coco_unknown_split_is_named_before_any_work(root, tmp_path) -> None:
    records = [coco_record(0, "train"), coco_record(1, "dev")]
    write_coco(root, records)
    with pytest.raises(ValueError, match=r"images\[1\]: .*split \(.*restval.*'dev'"):
        prepare("coco", root=root, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "out.unfinished").exists()


@pytest.mark.parametrize("missing", ["dataset_coco.json", "train2014", "val2014"])
def test_coco_missing_file_is_named_with_the_layout(root, tmp_path, missing: str) -> None:
    (root / missing).rename(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=rf"{missing}.* is missing; --root must be a folder with train2014/, val2014/"):
        prepare("coco", root=root, out=tmp_path / "out")


def test_coco_file_of_another_set_is_an_error(root, tmp_path) -> None:
    text = json.dumps({"images": [{"filename": "a.jpg", "split": "train", "sentences": [{"raw": "x"}]}]})
    (root / "dataset_coco.json").write_text(text)
    with pytest.raises(
        ValueError, match=r"images\[0\]: .*are needed \(KeyError\('cocoid'\)\); is it the file of another set"
    ):
        prepare("coco", root=root, out=tmp_path / "out")
