import json
from pathlib import Path

import pytest
from tests.data.prepare.toy_task_files import coco_record, flickr_record, jpeg, write, write_coco

from vlmo.data.decoding import decode_image
from vlmo.data.prepare import prepare
from vlmo.data.schema import FEATURES
from vlmo.data.sources import open_source

SPLITS = ["train", "restval", "val", "test", "train"]


def coco(root: Path) -> Path:
    return write_coco(root, [coco_record(number, split) for number, split in enumerate(SPLITS)])


def test_coco_trains_on_restval_too(tmp_path) -> None:
    root = coco(tmp_path / "coco")
    (root / "karpathy").mkdir()
    (root / "dataset_coco.json").rename(root / "karpathy" / "dataset_coco.json")
    lines = prepare("coco", root=root, out=tmp_path / "out").lines()
    assert "warning: train has 3 rows; the whole set has 113,287" in lines
    ids = {"train": ["coco/0", "coco/1", "coco/4"], "validation": ["coco/2"], "test": ["coco/3"]}
    for split, expected in ids.items():
        assert open_source(str(tmp_path / "out"), split=split)["image_id"][:] == expected
    train = open_source(str(tmp_path / "out"))
    assert train.features == FEATURES
    row = train[1]
    assert (row["captions"], row["source"]) == (["Caption 1.", "Other words 1."], "coco")
    file = root / "val2014" / "COCO_val2014_000000000001.jpg"
    assert row["image"] == {"bytes": None, "path": str(file)}
    assert decode_image(row["image"]).getpixel((0, 0)) == (1, 1, 1)


def flickr(root: Path) -> Path:
    splits = ["train", "val", "test", "train"]
    records = [flickr_record(number, split) for number, split in enumerate(splits)]
    for record in records:
        write(root / "flickr30k-images" / record["filename"], jpeg(record["imgid"]))
    write(root / "dataset_flickr30k.json", json.dumps({"images": records, "dataset": "flickr30k"}))
    return root


def test_flickr30k_has_karpathys_split(tmp_path) -> None:
    summary = prepare("flickr30k", root=flickr(tmp_path / "flickr"), out=tmp_path / "out")
    rows = open_source(str(tmp_path / "out"), split="train")
    assert rows["image_id"][:] == ["flickr30k/1000", "flickr30k/1003"]
    assert rows["captions"][:] == [["Caption 0."], ["Caption 3."]]
    assert decode_image(rows[1]["image"]).getpixel((0, 0)) == (3, 3, 3)
    sizes = {split: (counts["rows"], counts["known"]) for split, counts in summary.splits.items()}
    assert sizes == {"train": (2, 29_000), "validation": (1, 1_014), "test": (1, 1_000)}


COCO_IDS = {1: None, 2: 77, 2417997: None, 3: 88}
FOLDERS = {1: "VG_100K", 2: "VG_100K_2", 2417997: "VG_100K_2", 3: "VG_100K"}


def region(image_id: int, number: int, phrase: str) -> dict:
    place = {"x": 0, "y": 0, "width": 2, "height": 1}
    return {"region_id": number, "image_id": image_id, "phrase": phrase} | place


def genome(root: Path) -> Path:
    data, regions = [], []
    for shade, (image_id, folder) in enumerate(FOLDERS.items()):
        write(root / folder / f"{image_id}.jpg", jpeg(shade))
        url = f"https://cs.stanford.edu/people/rak248/{folder}/{image_id}.jpg"
        data.append({"image_id": image_id, "url": url, "coco_id": COCO_IDS[image_id]})
        phrases = (f"thing {shade}", "the sky")
        parts = [region(image_id, 10 * shade + n, phrase) for n, phrase in enumerate(phrases)]
        regions.append({"regions": parts, "id": image_id})
    write(root / "image_data.json", json.dumps(data))
    write(root / "region_descriptions.json", json.dumps(regions))
    return root


def move_elsewhere(root: Path) -> None:
    """Move everything to the other usual places; some people put all images into one folder."""
    for file in [*root.iterdir()]:
        folder = root / ("annotations" if file.suffix else "images")
        folder.mkdir(exist_ok=True)
        file.rename(folder / file.name)
    (root / "images" / "VG_100K_2" / "2.jpg").rename(root / "images" / "VG_100K" / "2.jpg")


@pytest.mark.parametrize("places", ["usual", "other"])
def test_visual_genome_phrases_are_captions_of_the_whole_image(places, tmp_path) -> None:
    root = genome(tmp_path / "vg")
    if places == "other":
        move_elsewhere(root)
    summary = prepare("visual_genome", root=root, out=tmp_path / "out")
    rows = open_source(str(tmp_path / "out"))
    assert rows["image_id"][:] == ["visual_genome/1", "coco/77", "visual_genome/2417997", "coco/88"]
    assert rows["captions"][:] == [[f"thing {number}", "the sky"] for number in range(4)]
    assert [decode_image(row["image"]).getpixel((0, 0))[0] for row in rows] == [0, 1, 2, 3]
    assert summary.splits["train"]["captions"] == 8
    assert not [line for line in summary.lines() if line.startswith("warning")]
    assert summary.notes[0].startswith("2 images are from COCO")
