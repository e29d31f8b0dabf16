import json
from pathlib import Path

import pytest
from tests.data.prepare.toy_task_files import jpeg, png, quarantined, write

from vlmo.data.decoding import decode_image
from vlmo.data.prepare import labels_of, prepare
from vlmo.data.schema import class_features
from vlmo.data.sources import open_source

SYNSETS = ["n01440764", "n02012849", "n03126707"]
NAMES = ["tench, Tinca tinca", "crane", "crane"]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "imagenet"
    for label, synset in enumerate(SYNSETS):
        for number in range(3):
            write(root / "train" / synset / f"{synset}_{number}.JPEG", jpeg(10 * label + number))
        write(root / "val" / synset / f"ILSVRC2012_val_{label:08}.JPEG", png(200 + label))
    return root


def test_imagenet_classes_are_the_folders_in_order(root, tmp_path) -> None:
    lines = prepare("imagenet", root=root, out=tmp_path / "out").lines()
    assert not [line for line in lines if line.startswith("warning")]  # nobody knows the size of such a set
    train = open_source(str(tmp_path / "out"))
    assert train.features == class_features(SYNSETS)
    assert train["label"][:] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert [decode_image(row["image"]).getpixel((0, 0))[0] for row in train] == [0, 1, 2, 10, 11, 12, 20, 21, 22]
    assert train["captions"][0] == []
    assert train["image_id"][3] == "imagenet/train/n02012849/n02012849_0.JPEG"
    assert open_source(str(tmp_path / "out"), split="validation")["label"][:] == [0, 1, 2]
    assert labels_of(tmp_path / "out") == SYNSETS


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("LOC_synset_mapping.txt", "".join(f"{s} {n}\n" for s, n in zip(SYNSETS, NAMES, strict=True))),
        ("words.txt", "n00000001\tunused\n" + "".join(f"{s}\t{n}\n" for s, n in zip(SYNSETS, NAMES, strict=True))),
        (
            "imagenet_class_index.json",
            json.dumps({str(i): pair for i, pair in enumerate(zip(SYNSETS, NAMES, strict=True))}),
        ),
    ],
)
def test_imagenet_names_come_from_the_files_that_people_have(root, tmp_path, name: str, text: str) -> None:
    write(root / name, text)
    summary = prepare("imagenet", root=root, out=tmp_path / "out")
    assert labels_of(tmp_path / "out") == ["tench, Tinca tinca", "crane (n02012849)", "crane (n03126707)"]
    assert open_source(str(tmp_path / "out")).features["label"].names == SYNSETS
    assert "labels: 3" in summary.lines()


def test_imagenet_1k_is_known_by_its_thousand_synsets(tmp_path) -> None:
    for number in range(1000):
        write(tmp_path / "in" / "train" / f"n{number:08}" / "a.JPEG", jpeg(number % 256))
    write(tmp_path / "in" / "val" / "n00000000" / "b.JPEG", jpeg(0))
    lines = prepare("imagenet", root=tmp_path / "in", out=tmp_path / "out").lines()
    assert "warning: train has 1,000 rows; the whole set has 1,281,167" in lines
    assert "warning: validation has 1 rows; the whole set has 50,000" in lines


def test_imagenet_bad_files_are_quarantined(root, tmp_path) -> None:
    write(root / "train" / SYNSETS[0] / "readme.txt", "Not a picture.")
    write(root / "train" / SYNSETS[1] / "n02012849_0.JPEG", jpeg(1)[:-30])
    write(root / "train" / SYNSETS[1] / ".DS_Store", b"left by a file manager")
    summary = prepare("imagenet", root=root, out=tmp_path / "out")
    assert summary.splits["train"].rows == 8
    assert set(quarantined(tmp_path / "out")) == {
        "imagenet/train/n01440764/readme.txt",
        "imagenet/train/n02012849/n02012849_0.JPEG",
    }


def test_imagenet_layouts_that_cannot_be_read_are_named(root, tmp_path) -> None:
    def refused(message: str) -> None:
        with pytest.raises(ValueError, match=message):
            prepare("imagenet", root=root, out=tmp_path / "out")

    write(root / "val" / "n99999999" / "a.JPEG", jpeg(0))
    refused(r"class 'n99999999' is not among the 3 classes of train")
    for synset in ("n99999999", *SYNSETS):
        for file in (root / "val" / synset).iterdir():
            file.rename(root / "val" / f"{synset}.JPEG")
        (root / "val" / synset).rmdir()
    refused("val: no folder of a class in it; --root must be")
    (root / "train").rename(tmp_path / "elsewhere")
    refused(r"validation but no train/; --root must be a folder with train/ and val/")
    (root / "val").rename(tmp_path / "elsewhere too")
    refused("no folder of a class in it; --root must be")


def test_imagenet_prepared_folders_beside_the_classes_are_no_classes(tmp_path) -> None:
    root = tmp_path / "imagenet22k"
    for synset in SYNSETS:
        write(root / synset / "0.JPEG", jpeg(3))
    prepare("imagenet", root=root, out=root / "prepared")
    write(root / "later.unfinished" / "000000" / "train.arrow", b"")
    prepare("imagenet", root=root, out=root / "later")
    assert labels_of(root / "later") == SYNSETS
    assert (tmp_path / "imagenet22k" / "prepared" / "prepared.json").is_file()


@pytest.mark.parametrize(("below", "splits"), [("train", {"train": 9}), ("", {"train": 9, "validation": 3})])
def test_imagenet_is_read_as_it_is_downloaded_and_as_folders_of_classes(root, tmp_path, below, splits) -> None:
    place = tmp_path / "all" / "ILSVRC" / "Data" / "CLS-LOC"
    place.parent.mkdir(parents=True)
    root.rename(place)
    summary = prepare("imagenet", root=place / below if below else tmp_path / "all", out=tmp_path / "out")
    assert {split: counts.rows for split, counts in summary.splits.items()} == splits


@pytest.mark.parametrize(
    ("name", "text"), [("words.txt", "n01440764 tench\nn02012849\n"), ("imagenet_class_index.json", "[1, 2]")]
)
def test_imagenet_names_that_cannot_be_read_are_named(root, tmp_path, name, text) -> None:
    write(root / name, text)
    with pytest.raises(ValueError, match=f"{name}: expected a folder's and a class's name a line, or JSON such as"):
        prepare("imagenet", root=root, out=tmp_path / "out")
