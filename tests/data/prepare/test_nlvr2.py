import json
from pathlib import Path
from typing import Any

import pytest
from tests.data.prepare.toy_task_files import jpeg, png, quarantined, write

from vlmo.data.prepare import prepare
from vlmo.data.schema import REASONING_FEATURES
from vlmo.data.sources import open_source


def record(identifier: str, label: str | None = "True", **more: Any) -> dict[str, Any]:
    split, pictures, _, sentence = identifier.split("-")
    facts = {
        "validation": {"3": "True"},
        "sentence": f"Sentence {sentence} about set {pictures} of {split}.",
        "left_url": "http://example.org/left.png",
        "right_url": "http://example.org/right.png",
        "writer": "92",
        "identifier": identifier,
        "synset": "acorn",
        "query": "two acorns20",
    }
    if split == "train":
        facts["directory"] = 7
    return facts | ({} if label is None else {"label": label}) | more


class Toy:
    """A miniature of the published files, which a test can damage before it is written."""

    def __init__(self) -> None:
        self.records = {
            "train": [record(f"train-10-{pair}-{number}") for pair in range(4) for number in range(2)],
            "dev": [record("dev-850-0-0"), record("dev-850-1-0", "False"), record("dev-850-1-1"), record("dev-9-0-0")],
            "test1": [record("test1-0-0-0", None), record("test1-0-1-0", "False")],
        }

    def write(self, root: Path, *, tables: str = "", pictures: str = "") -> Path:
        for part, records in self.records.items():
            write(root / tables / f"{part}.json", "".join(json.dumps(row) + "\n" for row in records))
            for number, row in enumerate(records):
                stem = row["identifier"].rpartition("-")[0]
                folder = root / "images" / "train" / "7" if part == "train" else root / pictures / part
                write(folder / f"{stem}-img0.png", png(number))
                # Despite their name, many of the published files are JPEG.
                write(folder / f"{stem}-img1.png", jpeg(100 + number))
        return root


def test_nlvr2_makes_a_row_of_each_sentence(tmp_path) -> None:
    root = Toy().write(tmp_path / "root")
    prepare("nlvr2", root=root, out=tmp_path / "out")
    train = open_source(str(tmp_path / "out"), split="train")
    assert train.features == REASONING_FEATURES
    assert len(train) == 8
    row = train[3]
    assert row["image"] == {"bytes": None, "path": str(root / "images/train/7/train-10-1-img0.png")}
    assert row["second_image"]["path"] == str(root / "images/train/7/train-10-1-img1.png")
    assert row["captions"] == ["Sentence 1 about set 10 of train."]
    assert (row["image_id"], row["label"], row["source"]) == ("train-10-1-1", 1, "nlvr2")
    validation = open_source(str(tmp_path / "out"), split="validation")
    assert validation["label"][:] == [1, 0, 1, 1]
    assert open_source(str(tmp_path / "out"), split="test")["label"][:] == [-1, 0]  # one is not given
    # As the official metric groups them.
    assert validation["sentence_group"][:] == ["dev-850-0", "dev-850-0", "dev-850-1", "dev-9-0"]
    assert validation[0]["image"]["path"] == str(root / "dev/dev-850-0-img0.png")


def test_nlvr2_reads_the_layout_of_the_repository(tmp_path) -> None:
    root = Toy().write(tmp_path / "root", tables="nlvr2/data", pictures="images")
    summary = prepare("nlvr2", root=root, out=tmp_path / "out")
    assert {split: counts.rows for split, counts in summary.splits.items()} == {"train": 8, "validation": 4, "test": 2}
    assert "warning: train has 8 rows; the whole set has 86,373" in summary.lines()
    (root / "nlvr2" / "data" / "test1.json").unlink()
    summary = prepare("nlvr2", root=root, out=tmp_path / "without")
    assert (list(summary.splits), summary.notes) == (["train", "validation"], ["test1.json is not there"])


def test_nlvr2_quarantines_bad_records(tmp_path) -> None:
    toy = Toy()
    toy.records["dev"] += [
        record("test1-5-0-0"),
        record("dev-7-0-0", "perhaps"),
        record("dev-850-0-0"),
        record("dev-8-0-0"),
        record("dev-8-1-0"),
    ]
    root = toy.write(tmp_path / "root")
    (root / "dev/dev-8-0-img1.png").unlink()
    file = root / "dev/dev-8-1-img1.png"
    file.write_bytes(file.read_bytes()[:-40])
    summary = prepare("nlvr2", root=root, out=tmp_path / "out")
    reasons = quarantined(tmp_path / "out")
    assert len(reasons) == summary.splits["validation"].quarantined == 5
    assert reasons["test1-5-0-0"].endswith("dev.json:5: 'test1' with label 'True'; expected 'dev', True or False")
    assert reasons["dev-7-0-0"].endswith("dev.json:6: 'dev' with label 'perhaps'; expected 'dev', True or False")
    assert reasons["dev-850-0-0"] == "image_id dev-850-0-0 repeats that of an earlier row"
    assert "dev-8-0-img1.png: cannot be read: No such file" in reasons["dev-8-0-0"]
    assert "dev-8-1-img1.png: cannot be decoded" in reasons["dev-8-1-0"]
    assert summary.splits["validation"].rows == 4


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"\xff\xfe", r"dev.json:1: expected an object"),
        (b'{"identifier": "dev-1-1-1", "sentence": 5}', r"dev.json:1: .*5 is no text"),
        (b"not JSON", r"dev.json:1: expected an object with sentence, label and identifier"),
        (b'{"identifier": "dev-1-0-0", "label": "True"}', r"dev.json:1: .*KeyError\('sentence'\)"),
        (b'{"identifier": "dev-1-0", "sentence": "Short."}', r"dev.json:1: .*such as dev-850-0-1"),
        (b'["dev-1-0-0"]', r"dev.json:1: expected an object"),
    ],
)
def test_nlvr2_names_a_line_that_cannot_be_read(tmp_path, line: bytes, message: str) -> None:
    write(tmp_path / "root/dev.json", line + b"\n")
    write(tmp_path / "root/dev/dev-1-0-img0.png", png(0))
    with pytest.raises(ValueError, match=message):
        prepare("nlvr2", root=tmp_path / "root", out=tmp_path / "out")


def test_nlvr2_says_at_the_door_what_is_missing(tmp_path) -> None:
    write(tmp_path / "root/other.json", "")
    with pytest.raises(ValueError, match=r"train.json or dev.json or test1.json is missing; --root must be a folder"):
        prepare("nlvr2", root=tmp_path / "root", out=tmp_path / "out")
    write(tmp_path / "root/dev.json", "")
    with pytest.raises(ValueError, match="images/dev or dev is missing"):
        prepare("nlvr2", root=tmp_path / "root", out=tmp_path / "out")
