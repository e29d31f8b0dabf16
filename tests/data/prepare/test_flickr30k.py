import json
from pathlib import Path

import pytest
from tests.data.prepare.karpathy_files import flickr_record
from tests.data.prepare.toy_task_files import jpeg, write

from vlmo.data.decoding import decode_image
from vlmo.data.prepare import prepare
from vlmo.data.sources import open_source


@pytest.fixture
def root(tmp_path: Path) -> Path:
    records = [flickr_record(number, split) for number, split in enumerate(["train", "val", "test", "train"])]
    for record in records:
        write(tmp_path / "flickr" / "flickr30k-images" / record["filename"], jpeg(record["imgid"]))
    text = json.dumps({"images": records, "dataset": "flickr30k"})
    write(tmp_path / "flickr" / "dataset_flickr30k.json", text)
    return tmp_path / "flickr"


def test_flickr30k_has_karpathys_split(root, tmp_path) -> None:
    summary = prepare("flickr30k", root=root, out=tmp_path / "out")
    rows = open_source(str(tmp_path / "out"), split="train")
    assert rows["image_id"][:] == ["flickr30k/1000", "flickr30k/1003"]
    assert rows["captions"][:] == [["Caption 0."], ["Caption 3."]]
    assert decode_image(rows[1]["image"]).getpixel((0, 0)) == (3, 3, 3)
    assert [(split, counts.rows, counts.expected) for split, counts in summary.splits.items()] == [
        ("train", 2, 29_000),
        ("validation", 1, 1_014),
        ("test", 1, 1_000),
    ]


def test_flickr30k_without_pictures_says_what_is_missing(root, tmp_path) -> None:
    (root / "flickr30k-images").rename(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=r"flickr30k-images or flickr30k_images is missing; --root must be a folder"):
        prepare("flickr30k", root=root, out=tmp_path / "out")
