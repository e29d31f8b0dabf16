import json
from pathlib import Path

import pytest
from tests.data.prepare.test_captions import coco, flickr, genome
from tests.data.prepare.test_captions_shards import URL, parquet_bytes
from tests.data.prepare.test_classes import ade20k, imagenet, object_info
from tests.data.prepare.test_reasoning import Pairs, Questions
from tests.data.prepare.toy_task_files import coco_record, jpeg, write

from vlmo.data.prepare import PREPARERS, labels_of, prepare
from vlmo.data.prepare.preparer import read_records

PUBLISHED = {
    "coco": coco,
    "flickr30k": flickr,
    "visual_genome": genome,
    "imagenet": imagenet,
    "ade20k": ade20k,
    "vqav2": lambda root: Questions().write(root),
    "nlvr2": lambda root: Pairs().write(root),
}
VQA_QUESTIONS, VQA_ANNOTATIONS = (
    f"v2_{name}.json"
    for name in ("OpenEnded_mscoco_train2014_questions", "mscoco_train2014_annotations")
)
ONE_ANSWER = {"annotations": Questions().annotations["train2014"][:1]}
IN_COCO = "is missing; --root must be a folder with train2014/, val2014/"
NO_TEXT = [{"id": 1, "regions": [{"phrase": None}]}]
WRONG = {
    "coco": [
        ("dataset_coco.json", None, f"coco.json {IN_COCO}"),
        ("train2014", None, f"train2014 {IN_COCO}"),
        ("val2014", None, f"val2014 {IN_COCO}"),
        (
            "dataset_coco.json",
            {"images": [{"filename": "a"}]},
            r"images\[0\]: Key.*'cocoid'",
        ),
        ("dataset_coco.json", {"images": [coco_record(1, "dev")]}, r"images\[0\]: Key.*'dev'"),
    ],
    "flickr30k": [("flickr30k-images", None, "flickr30k-images or flickr30k_images is missing")],
    "visual_genome": [
        (
            "region_descriptions.json",
            [{"id": 1}],
            r"ions.json: \[0\]: Key.*'regions'",
        ),
        ("region_descriptions.json", NO_TEXT, "TypeError.*None is no text"),
        (
            "image_data.json",
            [{"image_id": 1}, {"id": 2}],
            r"data.json: \[1\]: Key.*'image_id'",
        ),
        ("image_data.json", None, "or annotations/image_data.json is missing; --root must be"),
        ("region_descriptions.json", None, "or annotations/region_descriptions.json is missing"),
        ("VG_100K", None, "or images/VG_100K is missing"),
        ("VG_100K_2", None, "or images/VG_100K_2 is missing"),
    ],
    "imagenet": [
        ("val/n99999999/a.JPEG", jpeg(0), "val: class 'n99999999' is none of the 3 classes of"),
        ("train", None, "train is missing; --root must be a folder with train/ and val/"),
        (
            "words.txt",
            b"n01440764 tench\nn02012849\n",
            r"words\.txt: .* found 'n02012849'",
        ),
    ],
    "ade20k": [
        ("annotations/validation", None, "annotations/validation is missing; --root must be"),
        ("objectInfo150.txt", object_info(149).encode(), "objectInfo150.txt: 149 classes with 149"),
    ],
    "vqav2": [
        ("v2_mscoco_val2014_annotations.json", None, "val2014_annotations.json is missing"),
        (VQA_QUESTIONS, None, "train2014_questions.json is missing"),
        ("test2015", None, "test2015 is missing"),
        (VQA_ANNOTATIONS, {"annotations": [{"question_id": 1}]}, r"annotations\[0\]: .*'image_id'"),
        (
            VQA_QUESTIONS,
            {"questions": [{"question_id": 1}]},
            r"questions\[0\]: Key.*'image_id'",
        ),
        (VQA_ANNOTATIONS, ONE_ANSWER, "no answer is given to 9 questions"),
    ],
    "nlvr2": [
        ("dev.json", b"\xff\xfe", "dev.json:1: expected sentence"),
        ("dev.json", {"identifier": "dev-1-1-1", "sentence": 5}, "dev.json:1: .*5 is no text"),
        ("dev.json", b"not JSON", "dev.json:1: expected sentence, label, identifier"),
        ("dev.json", {"identifier": "dev-1-0-0"}, r"dev.json:1: .*KeyError\('sentence'\)"),
        (
            "dev.json",
            {"identifier": "dev-1-0", "sentence": "a"},
            "dev.json:1: .*as dev-850-0-1",
        ),
        ("dev.json", ["dev-1-0-0"], "dev.json:1: expected sentence"),
    ],
    "sbu": [
        (
            "a.parquet",
            parquet_bytes({"url": URL, "caption": "x"}),
            "no .parquet .*images.*img2data",
        ),
        ("a.parquet", parquet_bytes({"jpg": b"x", "url": URL}), "none of the columns .* no cap"),
        ("0.parquet", b"PAR1 cut off", "not a whole parquet file"),
    ],
    "text": [
        ("notes.md", b"x", r"no text in it; --root must be a \.txt file, or a folder"),
        ("a.txt", b"\n \n", "not one row of text can be used; there are none"),
    ],
}


@pytest.mark.parametrize(
    ("name", "file", "content", "message"),
    [(name, *wrong) for name, table in WRONG.items() for wrong in table],
)
def test_what_is_missing_or_wrong_is_named(name, file, content, message, tmp_path) -> None:
    root = tmp_path / "root"
    if name in PUBLISHED:
        PUBLISHED[name](root)
    if content is None:
        (root / file).rename(root / "elsewhere")
    else:
        write(root / file, content if isinstance(content, bytes) else json.dumps(content))
    with pytest.raises(ValueError, match=message):
        prepare(name, root=root, out=tmp_path / "out")
    assert [entry.name for entry in tmp_path.iterdir()] == ["root"]


@pytest.mark.parametrize("name", PREPARERS)
def test_every_preparer_says_what_a_missing_root_should_be(name: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for root in ("nowhere", "empty"):
        with pytest.raises(ValueError, match=rf"{root}.*--root"):
            prepare(name, root=tmp_path / root, out=tmp_path / "out")
    assert [entry.name for entry in tmp_path.iterdir()] == ["empty"]


def test_unknown_name_gets_the_nearest(tmp_path) -> None:
    with pytest.raises(ValueError, match=r"no data set 'flickr30' .*did you mean 'flickr30k'\?"):
        prepare("flickr30", root=tmp_path, out=tmp_path / "out")
    with pytest.raises(ValueError, match=r"no data set 'xyzzy' can be prepared\. All: coco"):
        prepare("xyzzy", root=tmp_path, out=tmp_path / "out")


def test_labels_of_other_folders_is_an_error(tmp_path) -> None:
    with pytest.raises(ValueError, match=r"no prepared\.json; .* `vlmo data prepare` has written"):
        labels_of(tmp_path)
    write(tmp_path / "prepared.json", '{"labels": null}')
    with pytest.raises(ValueError, match="no answers or classes"):
        labels_of(tmp_path)
    write(tmp_path / "prepared.json", '{"labels": ["a", "b"]}')
    assert labels_of(tmp_path) == ["a", "b"]


RECORDS = [{"id": 1, "text": 'a ] } " é\u2028'}, [1, [2]], 12345, "end", None, 1.5e3]


def test_records_are_those_of_json(tmp_path) -> None:
    file = tmp_path / "a.json"
    file.write_text(json.dumps(RECORDS, ensure_ascii=False), encoding="utf-8-sig")
    assert read_records(file, lambda record: record) == RECORDS
    whole = {"info": {"images": [0]}, "others": [[1], 2], "images": RECORDS, "after": [3]}
    file.write_text(json.dumps(whole, indent=2))
    assert read_records(file, lambda record: record, key="images") == RECORDS
    assert read_records(file, lambda pair: pair[0]) == list(whole)


@pytest.mark.parametrize(
    ("text", "key", "message"),
    [
        (b'[{"a": 1}, {"a"', None, "is it cut off"),
        (b"[1 2]", None, "is it cut off"),
        (b'["\xe9"]', None, "no JSON in UTF-8"),
        (b"3", None, "it holds no list, or an empty one"),
        (b"[1]", "images", "it holds no list 'images'"),
        (b'{"annotations": [1], "images": 3}', "images", "no list 'images'"),
        (b'{"images": []}', "images", "an empty one"),
        (b"", "images", "is it cut off"),
        (b"[" * 100_000, None, "recursion depth"),
        (b'{"info": ' + b'{"a":' * 100_000, "images", "recursion depth"),
        (
            b'{"images": [{"id": 1}, {"a": 2}]}',
            "images",
            r"images\[1\]: KeyError\('id'\); is it",
        ),
    ],
)
def test_a_wrong_file_is_named(tmp_path, text: bytes, key: str | None, message: str) -> None:
    file = write(tmp_path / "a.json", text)
    with pytest.raises(ValueError, match=message) as caught:
        read_records(file, lambda each: each["id"] if isinstance(each, dict) else each, key=key)
    assert str(file) in str(caught.value)
