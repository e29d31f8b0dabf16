"""SugarCrepe, ARO and Winoground in the form of their files."""

from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from tests.data.prepare.toy_task_files import jpeg, png, quarantined, write

from vlmo.data.decoding import decode_image
from vlmo.data.prepare import prepare
from vlmo.data.sources import open_source


def read(tmp_path, name: str) -> list[dict]:
    prepare(name, root=tmp_path / "root", out=tmp_path / "out")
    return list(open_source(str(tmp_path / "out"), split="test"))


def sugarcrepe(root, *, tables: str = "data", images: str = "val2017"):
    for kind, records in {
        "swap_att": {"0": ("1.jpg", "a red ball and a blue box", "a blue ball and a red box")},
        "add_obj": {"0": ("1.jpg", "a ball", "a ball and a cat"), "7": ("2.jpg", "a box", "a box and a cat")},
    }.items():
        names = ("filename", "caption", "negative_caption")
        content = {key: dict(zip(names, record, strict=True)) for key, record in records.items()}
        write(root / tables / f"{kind}.json", json.dumps(content))
    for number in (1, 2):
        write(root / images / f"{number}.jpg", jpeg(number))
    return root


@pytest.mark.parametrize(("tables", "images"), [("data", "val2017"), ("", "images/val2017")])
def test_sugarcrepe_makes_a_row_of_each_record(tmp_path, tables, images) -> None:
    root = sugarcrepe(tmp_path / "root", tables=tables, images=images)
    rows = read(tmp_path, "sugarcrepe")
    assert [(row["image_id"], row["kind"]) for row in rows] == [
        ("sugarcrepe/add_obj/0", "add_obj"),
        ("sugarcrepe/add_obj/7", "add_obj"),
        ("sugarcrepe/swap_att/0", "swap_att"),
    ]
    assert (rows[1]["captions"], rows[1]["false_caption"]) == (["a box"], "a box and a cat")
    assert rows[1]["image"] == {"bytes": None, "path": str(root / images / "2.jpg")}
    assert rows[1]["source"] == "sugarcrepe"


def aro(root, *, box: tuple[int, int, int, int] = (2, 1, 4, 5)):
    image = Image.new("RGB", (16, 12), "white")
    image.paste("black", (2, 1, 6, 6))
    (root / "images").mkdir(parents=True)
    image.save(root / "images" / "3.jpg", quality=100, subsampling=0)
    for file, (true, false) in {
        "relation": ("the dog is left of the cat", "the cat is left of the dog"),
        "attribution": ("the wet dog and the white cat", "the white dog and the wet cat"),
    }.items():
        sides = dict(zip(("bbox_x", "bbox_y", "bbox_w", "bbox_h"), box, strict=True))
        record = {"image_id": "3", "image_path": "3.jpg", "true_caption": true, "false_caption": false} | sides
        write(root / f"visual_genome_{file}.json", json.dumps([record]))
    return root


def test_aro_shows_the_box_of_each_record(tmp_path) -> None:
    aro(tmp_path / "root")
    rows = read(tmp_path, "aro")
    assert [(row["image_id"], row["kind"]) for row in rows] == [
        ("aro/relation/0", "relation"),
        ("aro/attribution/0", "attribution"),
    ]
    assert rows[0]["captions"] == ["the dog is left of the cat"]
    assert rows[0]["false_caption"] == "the cat is left of the dog"
    shown = decode_image(rows[0]["image"])
    assert shown.size == (4, 5)
    assert max(high for _, high in shown.getextrema()) < 60  # the black part alone


def test_aro_quarantines_a_box_and_an_image_that_cannot_be_used(tmp_path) -> None:
    root = aro(tmp_path / "root")
    file = root / "visual_genome_relation.json"
    (record,) = json.loads(file.read_text())
    file.write_text(json.dumps([record, record | {"bbox_w": 0}, record | {"image_path": "gone.jpg"}]))
    assert len(read(tmp_path, "aro")) == 2
    reasons = quarantined(tmp_path / "out")
    assert reasons["aro/relation/1"] == "a box of 0 x 5 pixels"
    assert "gone.jpg: cannot be read" in reasons["aro/relation/2"]


EXAMPLE = {
    "id": 0,
    "tag": "Noun",
    "collapsed_tag": "Object",
    "caption_0": "an old person kisses a young person",
    "caption_1": "a young person kisses an old person",
}


def write_winoground(root, *, kind: str, examples: int = 1) -> None:
    records = []
    for number in range(examples):
        files = {side: png(10 * number + side) for side in (0, 1)}
        if kind == "parquet":
            images = {f"image_{side}": {"bytes": data, "path": f"{number}_{side}.png"} for side, data in files.items()}
        else:
            images = {f"image_{side}": f"ex_{number}_img_{side}" for side in files}
            for side, data in files.items():
                write(root / "data" / "images" / f"ex_{number}_img_{side}.png", data)
        records.append(EXAMPLE | {"id": number} | images)
    if kind == "parquet":
        root.mkdir()
        pq.write_table(pa.Table.from_pylist(records), root / "test-00000-of-00001.parquet")
    else:
        write(root / "data" / "examples.jsonl", "".join(json.dumps(record) + "\n" for record in records))


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_winoground_makes_two_rows_of_each_example(tmp_path, kind) -> None:
    write_winoground(tmp_path / "root", kind=kind, examples=2)
    rows = read(tmp_path, "winoground")
    assert len(rows) == 4
    first, second = rows[:2]
    assert (first["captions"], first["false_caption"]) == ([EXAMPLE["caption_0"]], EXAMPLE["caption_1"])
    assert (second["captions"], second["false_caption"]) == ([EXAMPLE["caption_1"]], EXAMPLE["caption_0"])
    assert [row["group"] for row in rows] == [first["group"]] * 2 + [rows[2]["group"]] * 2
    assert first["group"] != rows[2]["group"]
    assert {row["kind"] for row in rows} == {"Object"}
    assert [decode_image(row["image"]).getpixel((0, 0))[0] for row in rows] == [0, 1, 10, 11]


@pytest.mark.parametrize(
    ("name", "file", "content", "message"),
    [
        ("sugarcrepe", "data/add_obj.json", '{"0": {"filename": "1.jpg", "caption": "a"}}', "record 0: .*negative_cap"),
        ("sugarcrepe", "data/add_obj.json", '{"0": ', "add_obj.json: expected records in JSON .*cut off"),
        ("sugarcrepe", "data/add_obj.json", "[" * 100_000, "add_obj.json: expected records in JSON"),
        ("aro", "visual_genome_relation.json", '[{"image_path": "3.jpg"}]', "record 0: .*true_caption.*bbox_h"),
        ("winoground", "examples.jsonl", '{"image_0": "a", "image_1": 3, "caption_0": "b"}', "record 0: .*caption_1"),
        ("winoground", "test.parquet", "PAR1", r"test\.parquet: not a whole parquet file"),
        ("sugarcrepe", "data/add_obj.json", None, "add_obj.json.* is missing; --root must be a folder with"),
        ("aro", "visual_genome_relation.json", None, "visual_genome_relation.json.* is missing; --root must be"),
        ("winoground", "examples.jsonl", None, "examples.jsonl.* is missing; --root must be a folder with"),
    ],
)
def test_other_files_are_named(tmp_path, name, file, content, message) -> None:
    root = tmp_path / "root"
    root.mkdir()
    if content is not None:
        write(sugarcrepe(aro(root)) / file, content)
    with pytest.raises(ValueError, match=message):
        prepare(name, root=root, out=tmp_path / "out")


def test_parquet_of_another_set_is_refused(tmp_path) -> None:
    (tmp_path / "root").mkdir()
    pq.write_table(pa.table({"image": ["a"]}), tmp_path / "root" / "a.parquet")
    with pytest.raises(ValueError, match=r"a\.parquet: no column image_0"):
        prepare("winoground", root=tmp_path / "root", out=tmp_path / "out")
