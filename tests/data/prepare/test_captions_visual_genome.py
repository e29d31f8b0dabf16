import json
from pathlib import Path

import pytest
from tests.data.prepare.karpathy_files import coco_record
from tests.data.prepare.toy_task_files import jpeg, quarantined, write

from vlmo.data.decoding import decode_image
from vlmo.data.prepare import prepare
from vlmo.data.sources import open_source

COCO_IDS = {1: None, 2: 77, 2417997: None, 3: 88}
FOLDERS = {1: "VG_100K", 2: "VG_100K_2", 2417997: "VG_100K_2", 3: "VG_100K"}


def region(image_id: int, number: int, phrase: str) -> dict:
    return {"region_id": number, "width": 2, "height": 1, "image_id": image_id, "phrase": phrase, "y": 0, "x": 0}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "vg"
    data, regions = [], []
    for shade, (image_id, folder) in enumerate(FOLDERS.items()):
        write(root / folder / f"{image_id}.jpg", jpeg(shade))
        url = f"https://cs.stanford.edu/people/rak248/{folder}/{image_id}.jpg"
        facts = {"width": 6, "height": 4, "flickr_id": None}
        data.append({"image_id": image_id, "url": url, "coco_id": COCO_IDS[image_id]} | facts)
        phrases = [region(image_id, 10 * shade, f"thing {shade}"), region(image_id, 10 * shade + 1, "the sky")]
        regions.append({"regions": phrases, "id": image_id})
    write(root / "image_data.json", json.dumps(data))
    write(root / "region_descriptions.json", json.dumps(regions))
    return root


def test_visual_genome_phrases_are_captions_of_the_whole_picture(root, tmp_path) -> None:
    summary = prepare("visual_genome", root=root, out=tmp_path / "out")
    rows = open_source(str(tmp_path / "out"))
    assert rows["image_id"][:] == ["visual_genome/1", "coco/77", "visual_genome/2417997", "coco/88"]
    assert rows["captions"][:] == [[f"thing {number}", "the sky"] for number in range(4)]
    assert [decode_image(row["image"]).getpixel((0, 0))[0] for row in rows] == [0, 1, 2, 3]
    assert summary.splits["train"].captions == 8
    assert not [line for line in summary.lines() if line.startswith("warning")]


def test_visual_genome_keeps_cocos_held_out_pictures_apart(root, tmp_path) -> None:
    notes = prepare("visual_genome", root=root, out=tmp_path / "without").notes
    assert "2 images are from COCO" in notes[0]
    records = [coco_record(77, "test"), coco_record(88, "restval"), coco_record(99, "val")]
    write(root / "dataset_coco.json", json.dumps({"images": records}))
    summary = prepare("visual_genome", root=root, out=tmp_path / "with")
    assert summary.notes == []
    assert {split: counts.rows for split, counts in summary.splits.items()} == {"train": 3, "coco_held_out": 1}
    assert open_source(str(tmp_path / "with"), split="coco_held_out")["image_id"][:] == ["coco/77"]


def test_visual_genome_finds_other_usual_places(root, tmp_path) -> None:
    for name in ("image_data.json", "region_descriptions.json"):
        (root / "annotations").mkdir(exist_ok=True)
        (root / name).rename(root / "annotations" / name)
    (root / "images").mkdir()
    for name in ("VG_100K", "VG_100K_2"):
        (root / name).rename(root / "images" / name)
    # Some people put all pictures into one folder.
    (root / "images" / "VG_100K_2" / "2.jpg").rename(root / "images" / "VG_100K" / "2.jpg")
    assert prepare("visual_genome", root=root, out=tmp_path / "out").splits["train"].rows == 4


def test_visual_genome_bad_pictures_are_quarantined(root, tmp_path) -> None:
    (root / "VG_100K" / "1.jpg").unlink()
    (root / "VG_100K_2" / "2417997.jpg").write_bytes(b"<html>404</html>")
    prepare("visual_genome", root=root, out=tmp_path / "out")
    reasons = quarantined(tmp_path / "out")
    assert "VG_100K/1.jpg: cannot be read" in reasons["visual_genome/1"]
    assert "not an image" in reasons["visual_genome/2417997"]
    assert len(open_source(str(tmp_path / "out"))) == 2


@pytest.mark.parametrize("missing", ["image_data.json", "region_descriptions.json", "VG_100K", "VG_100K_2"])
def test_visual_genome_missing_file_is_named(root, tmp_path, missing: str) -> None:
    (root / missing).rename(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=rf"{missing} or \w+/{missing} is missing; --root must be"):
        prepare("visual_genome", root=root, out=tmp_path / "out")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("region_descriptions.json", [{"id": 1}], r"\[0\]: id and regions"),
        ("region_descriptions.json", [{"id": 1, "regions": [{"phrase": None}]}], "TypeError.*None is no text"),
        ("image_data.json", [{"image_id": 1}], r"\[0\]: image_id and url"),
        ("dataset_coco.json", {"images": [{"split": "val", "filename": "1.jpg"}]}, r"images\[0\]: cocoid and split"),
    ],
)
def test_visual_genome_other_json_is_an_error(root, tmp_path, name, content, message) -> None:
    write(root / name, json.dumps(content))
    with pytest.raises(ValueError, match=rf"{name}: .*{message}"):
        prepare("visual_genome", root=root, out=tmp_path / "out")
