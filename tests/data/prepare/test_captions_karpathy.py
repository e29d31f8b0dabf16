import json
from pathlib import Path

import pytest
from tests.data.prepare.karpathy_files import coco_record, flickr_record, write_coco
from tests.data.prepare.toy_task_files import jpeg, quarantined, write

from vlmo.data.decoding import decode_image
from vlmo.data.prepare import prepare
from vlmo.data.schema import FEATURES
from vlmo.data.sources import open_source

SPLITS = ["train", "restval", "val", "test", "train"]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_coco(tmp_path / "coco", [coco_record(number, split) for number, split in enumerate(SPLITS)])


def test_coco_trains_on_restval_too(root, tmp_path) -> None:
    (root / "karpathy").mkdir()
    (root / "dataset_coco.json").rename(root / "karpathy" / "dataset_coco.json")
    lines = prepare("coco", root=root, out=tmp_path / "out").lines()
    assert "warning: train has 3 rows; the whole set has 113,287" in lines
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


@pytest.mark.parametrize("missing", ["dataset_coco.json", "train2014", "val2014"])
def test_coco_missing_file_is_named_with_the_layout(root, tmp_path, missing: str) -> None:
    (root / missing).rename(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=rf"{missing}.* is missing; --root must be a folder with train2014/, val2014/"):
        prepare("coco", root=root, out=tmp_path / "out")


@pytest.mark.parametrize(
    ("change", "message"),
    [({"split": "dev"}, r"images\[1\]: .*split \(.*restval.*'dev'"), ({"cocoid": None}, r"images\[1\]: .*'cocoid'")],
)
def test_coco_other_records_are_named_before_any_work(root, tmp_path, change, message) -> None:
    record = coco_record(1, "train") | change
    records = [coco_record(0, "train"), {name: value for name, value in record.items() if value is not None}]
    write_coco(root, records)
    with pytest.raises(ValueError, match=message + ".*is it the file of another set"):
        prepare("coco", root=root, out=tmp_path / "out")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["coco"]


def test_flickr30k_has_karpathys_split(tmp_path) -> None:
    records = [flickr_record(number, split) for number, split in enumerate(["train", "val", "test", "train"])]
    for record in records:
        write(tmp_path / "flickr" / "flickr30k-images" / record["filename"], jpeg(record["imgid"]))
    write(tmp_path / "flickr" / "dataset_flickr30k.json", json.dumps({"images": records, "dataset": "flickr30k"}))
    summary = prepare("flickr30k", root=tmp_path / "flickr", out=tmp_path / "out")
    rows = open_source(str(tmp_path / "out"), split="train")
    assert rows["image_id"][:] == ["flickr30k/1000", "flickr30k/1003"]
    assert rows["captions"][:] == [["Caption 0."], ["Caption 3."]]
    assert decode_image(rows[1]["image"]).getpixel((0, 0)) == (3, 3, 3)
    assert [(split, counts.rows, counts.expected) for split, counts in summary.splits.items()] == [
        ("train", 2, 29_000),
        ("validation", 1, 1_014),
        ("test", 1, 1_000),
    ]
    (tmp_path / "flickr" / "flickr30k-images").rename(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=r"flickr30k-images or flickr30k_images is missing; --root must be a folder"):
        prepare("flickr30k", root=tmp_path / "flickr", out=tmp_path / "none")
