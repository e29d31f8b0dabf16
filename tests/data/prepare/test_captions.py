import json
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.data.prepare.toy_task_files import coco_record, flickr_record, jpeg, write, write_coco

from vlmo.data.decoding import decode_image
from vlmo.data.prepare import prepare
from vlmo.data.schema import FEATURES
from vlmo.data.sources import open_source

SPLITS = ["train", "restval", "val", "test", "train"]


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    return write_coco(tmp_path / "coco", [coco_record(number, split) for number, split in enumerate(SPLITS)])


def test_coco_trains_on_restval_too(coco, tmp_path) -> None:
    (coco / "karpathy").mkdir()
    (coco / "dataset_coco.json").rename(coco / "karpathy" / "dataset_coco.json")
    lines = prepare("coco", root=coco, out=tmp_path / "out").lines()
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
    assert row["image"] == {"bytes": None, "path": str(coco / "val2014" / "COCO_val2014_000000000001.jpg")}
    assert decode_image(row["image"]).getpixel((0, 0)) == (1, 1, 1)
    assert row["source"] == "coco"


@pytest.mark.parametrize("missing", ["dataset_coco.json", "train2014", "val2014"])
def test_coco_missing_file_is_named_with_the_layout(coco, tmp_path, missing: str) -> None:
    (coco / missing).rename(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=rf"{missing}.* is missing; --root must be a folder with train2014/, val2014/"):
        prepare("coco", root=coco, out=tmp_path / "out")


@pytest.mark.parametrize(
    ("change", "message"),
    [({"split": "dev"}, r"images\[1\]: KeyError\('dev'\)"), ({"cocoid": None}, r"images\[1\]: KeyError\('cocoid'\)")],
)
def test_coco_other_records_are_named_before_any_work(coco, tmp_path, change, message) -> None:
    record = coco_record(1, "train") | change
    records = [coco_record(0, "train"), {name: value for name, value in record.items() if value is not None}]
    write_coco(coco, records)
    with pytest.raises(ValueError, match=message + ".*is it the file of another set"):
        prepare("coco", root=coco, out=tmp_path / "out")
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
    sizes = {split: (counts["rows"], counts["known"]) for split, counts in summary.splits.items()}
    assert sizes == {"train": (2, 29_000), "validation": (1, 1_014), "test": (1, 1_000)}
    (tmp_path / "flickr" / "flickr30k-images").rename(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=r"flickr30k-images or flickr30k_images is missing; --root must be a folder"):
        prepare("flickr30k", root=tmp_path / "flickr", out=tmp_path / "none")


COCO_IDS = {1: None, 2: 77, 2417997: None, 3: 88}
FOLDERS = {1: "VG_100K", 2: "VG_100K_2", 2417997: "VG_100K_2", 3: "VG_100K"}


def region(image_id: int, number: int, phrase: str) -> dict:
    return {"region_id": number, "width": 2, "height": 1, "image_id": image_id, "phrase": phrase, "y": 0, "x": 0}


@pytest.fixture
def genome(tmp_path: Path) -> Path:
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


def test_visual_genome_phrases_are_captions_of_the_whole_picture(genome, tmp_path) -> None:
    summary = prepare("visual_genome", root=genome, out=tmp_path / "out")
    rows = open_source(str(tmp_path / "out"))
    assert rows["image_id"][:] == ["visual_genome/1", "coco/77", "visual_genome/2417997", "coco/88"]
    assert rows["captions"][:] == [[f"thing {number}", "the sky"] for number in range(4)]
    assert [decode_image(row["image"]).getpixel((0, 0))[0] for row in rows] == [0, 1, 2, 3]
    assert summary.splits["train"]["captions"] == 8
    assert not [line for line in summary.lines() if line.startswith("warning")]
    assert summary.notes[0].startswith("2 images are from COCO")


def test_visual_genome_finds_other_usual_places(genome, tmp_path) -> None:
    for name in ("image_data.json", "region_descriptions.json"):
        (genome / "annotations").mkdir(exist_ok=True)
        (genome / name).rename(genome / "annotations" / name)
    (genome / "images").mkdir()
    for name in ("VG_100K", "VG_100K_2"):
        (genome / name).rename(genome / "images" / name)
    # Some people put all pictures into one folder.
    (genome / "images" / "VG_100K_2" / "2.jpg").rename(genome / "images" / "VG_100K" / "2.jpg")
    assert prepare("visual_genome", root=genome, out=tmp_path / "out").splits["train"]["rows"] == 4


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("region_descriptions.json", [{"id": 1}], r"\[0\]: KeyError\('regions'\)"),
        ("region_descriptions.json", [{"id": 1, "regions": [{"phrase": None}]}], "TypeError.*None is no text"),
        ("image_data.json", [{"image_id": 1}, {"id": 2}], r"\[1\]: KeyError\('image_id'\)"),
        ("image_data.json", None, r"or annotations/image_data.json is missing; --root must be"),
        ("region_descriptions.json", None, "or annotations/region_descriptions.json is missing"),
        ("VG_100K", None, "or images/VG_100K is missing"),
        ("VG_100K_2", None, "or images/VG_100K_2 is missing"),
    ],
)
def test_visual_genome_missing_file_and_other_json_are_named(genome, tmp_path, name, content, message) -> None:
    if content is None:
        (genome / name).rename(tmp_path / "elsewhere")
    else:
        write(genome / name, json.dumps(content))
    with pytest.raises(ValueError, match=rf"{name}.*{message}"):
        prepare("visual_genome", root=genome, out=tmp_path / "out")


def test_arrow_files_of_the_published_preparation_become_parquet(tmp_path) -> None:
    rows = [{"image": jpeg(n), "caption": [f"c {n}", "d"], "image_id": f"{n}.jpg", "split": "train"} for n in range(3)]
    table = pa.Table.from_pandas(pd.DataFrame(rows))
    with pa.RecordBatchFileWriter(str(tmp_path / "coco.arrow"), table.schema) as writer:
        writer.write_table(table)
    # As docs/data.md has it.
    (tmp_path / "coco").mkdir()
    kept = pa.ipc.open_file(str(tmp_path / "coco.arrow")).read_all().select(["image", "caption", "image_id"])
    pq.write_table(kept, tmp_path / "coco" / "train.parquet")
    found = open_source(str(tmp_path / "coco"))
    assert found["captions"][:] == [row["caption"] for row in rows]
    assert [decode_image(cell).getpixel((0, 0))[0] for cell in found["image"]] == [0, 1, 2]
