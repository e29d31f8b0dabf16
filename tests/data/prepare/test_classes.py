import io
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.data.prepare.toy_task_files import jpeg, png, quarantined, write

from vlmo.data.decoding import decode_image, decode_mask, image_bytes
from vlmo.data.prepare import labels_of, prepare
from vlmo.data.prepare.classes import open_ade20k
from vlmo.data.schema import SEGMENT_FEATURES, class_features
from vlmo.data.sources import open_source

SYNSETS = ["n01440764", "n02012849", "n03126707"]
NAMES = ["tench, Tinca tinca", "crane", "crane"]


def imagenet(root: Path) -> Path:
    for label, synset in enumerate(SYNSETS):
        for number in range(3):
            write(root / "train" / synset / f"{synset}_{number}.JPEG", jpeg(10 * label + number))
        write(root / "val" / synset / f"ILSVRC2012_val_{label:08}.JPEG", png(200 + label))
    write(root / "train" / SYNSETS[1] / ".DS_Store", b"left by a file manager")
    return root


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return imagenet(tmp_path / "imagenet")


def test_imagenet_classes_are_the_folders_in_order(root, tmp_path) -> None:
    lines = prepare("imagenet", root=root, out=tmp_path / "out").lines()
    # Nobody knows the size of such a set.
    assert not [line for line in lines if line.startswith("warning")]
    train = open_source(str(tmp_path / "out"))
    assert train.features == class_features(SYNSETS)
    assert train["label"][:] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    shades = [decode_image(row["image"]).getpixel((0, 0))[0] for row in train]
    assert shades == [0, 1, 2, 10, 11, 12, 20, 21, 22]
    assert train["captions"][0] == []
    assert train["image_id"][3] == "imagenet/train/n02012849/n02012849_0.JPEG"
    assert open_source(str(tmp_path / "out"), split="validation")["label"][:] == [0, 1, 2]
    assert labels_of(tmp_path / "out") == SYNSETS


@pytest.mark.parametrize(
    ("name", "start", "blank"),
    [("LOC_synset_mapping.txt", "", " "), ("words.txt", "n00000001\tunused\n", "\t")],
)
def test_imagenet_names_come_from_the_files_that_people_have(root, tmp_path, name, start, blank):
    lines = [f"{synset}{blank}{text}\n" for synset, text in zip(SYNSETS, NAMES, strict=True)]
    write(root / name, start + "".join(lines))
    summary = prepare("imagenet", root=root, out=tmp_path / "out")
    names = ["tench, Tinca tinca", "crane (n02012849)", "crane (n03126707)"]
    assert labels_of(tmp_path / "out") == names
    assert open_source(str(tmp_path / "out")).features["label"].names == SYNSETS
    assert "labels: 3" in summary.lines()


def test_imagenet_prepared_folders_beside_the_classes_are_no_classes(tmp_path) -> None:
    root = tmp_path / "imagenet22k"
    for synset in SYNSETS:
        write(root / synset / "0.JPEG", jpeg(3))
    prepare("imagenet", root=root, out=root / "prepared")
    write(root / "later.unfinished" / "000000" / "train.arrow", b"")
    prepare("imagenet", root=root, out=root / "later")
    assert labels_of(root / "later") == SYNSETS
    assert (tmp_path / "imagenet22k" / "prepared" / "prepared.json").is_file()


ANNOTATION = np.array([[0, 1, 150, 3, 0, 2], [1, 1, 1, 1, 1, 1]] * 2, dtype=np.uint8)
MASK = np.array([[255, 0, 149, 2, 255, 1], [0, 0, 0, 0, 0, 0]] * 2, dtype=np.uint8)


def mask_png(numbers: np.ndarray = ANNOTATION, *, mode: str = "L") -> bytes:
    image = Image.fromarray(numbers)
    if mode == "P":
        # Colors backwards: numbers must come from the indices, not from them.
        image.putpalette([255 - value // 3 for value in range(768)])
    elif mode != "L":
        image = image.convert(mode)
    return image_bytes(image, "PNG")


def object_info(number_of_lines: int = 150) -> str:
    lines = ["Idx\tRatio\tTrain\tVal\tName"]
    for number in range(1, number_of_lines + 1):
        lines.append(f"{number}  \t0.1576  \t11664\t1172\tthing {number}, item {number}")  # noqa: PERF401
    return "\n".join(lines) + "\n"


def ade20k(root: Path) -> Path:
    for folder, part, count in (("training", "train", 3), ("validation", "val", 2)):
        for number in range(1, count + 1):
            write(root / f"images/{folder}/ADE_{part}_{number:08}.jpg", jpeg(number))
            write(root / f"annotations/{folder}/ADE_{part}_{number:08}.png", mask_png())
    write(root / "objectInfo150.txt", object_info())
    return root


@pytest.mark.parametrize(("mode", "place"), [("L", "."), ("P", "ADEChallengeData2016")])
def test_ade20k_makes_a_row_of_each_image_and_counts_classes_from_zero(mode, place, tmp_path):
    root = ade20k(tmp_path / "root" / place)
    write(root / "annotations/validation/ADE_val_00000001.png", mask_png(mode=mode))
    summary = prepare("ade20k", root=tmp_path / "root", out=tmp_path / "out")
    sizes = {split: counts["rows"] for split, counts in summary.splits.items()}
    assert sizes == {"train": 3, "validation": 2}
    assert "warning: train has 3 rows; the whole set has 20,210" in summary.lines()
    train = open_source(str(tmp_path / "out"), split="train")
    assert train.features == SEGMENT_FEATURES
    row = train[1]
    file = root / "images/training/ADE_train_00000002.jpg"
    assert row["image"] == {"bytes": None, "path": str(file)}
    assert (row["image_id"], row["captions"], row["source"]) == ("ADE_train_00000002", [], "ade20k")
    mask = open_source(str(tmp_path / "out"), split="validation")[0]["mask"]
    with Image.open(io.BytesIO(mask["bytes"])) as opened:
        assert (opened.format, opened.mode) == ("PNG", "L")
    np.testing.assert_array_equal(decode_mask(mask), MASK)
    labels = labels_of(tmp_path / "out")
    assert (len(labels), labels[0], labels[149]) == (150, "thing 1, item 1", "thing 150, item 150")


def test_ade20k_items_are_read_in_other_processes_and_know_changed_files(tmp_path) -> None:
    root = ade20k(tmp_path / "root")
    found = open_ade20k(root)
    before = list(found.items())
    assert list(pickle.loads(pickle.dumps(found.read))(before)) == list(found.read(before))
    write(root / "annotations/validation/ADE_val_00000002.png", mask_png(mode="RGB"))
    *same, changed = zip(before, open_ade20k(root).items(), strict=True)
    assert all(old == new for old, new in same)
    assert changed[0] != changed[1]


def test_ade20k_quarantines_what_does_not_fit_together(tmp_path) -> None:
    root = ade20k(tmp_path / "root")
    images, annotations = root / "images/training", root / "annotations/training"
    bad = {
        "without_mask": (jpeg(0), None),
        "without_picture": (None, mask_png()),
        "cut_picture": (jpeg(0)[:-40], mask_png()),
        "cut_mask": (jpeg(0), mask_png()[:-30]),
        "other_size": (jpeg(0, size=(5, 4)), mask_png()),
        "class_151": (jpeg(0), mask_png(ANNOTATION + np.uint8(1))),
        "colored": (jpeg(0), mask_png(mode="RGB")),
    }
    for stem, (image, mask) in bad.items():
        if image is not None:
            write(images / f"{stem}.jpg", image)
        if mask is not None:
            write(annotations / f"{stem}.png", mask)
    summary = prepare("ade20k", root=root, out=tmp_path / "out")
    reasons = quarantined(tmp_path / "out")
    assert reasons.keys() == bad.keys()
    for stem, reason in {
        "without_mask": "the annotation is missing",
        "without_picture": "the image is missing",
        "cut_picture": "cut_picture.jpg: cannot be decoded",
        "cut_mask": "cut_mask.png: cannot be decoded",
        "other_size": "other_size.png: 6 x 4 pixels, its image has 5 x 4",
        "class_151": "class_151.png: class 151; expected 0 (none) to 150",
        "colored": "colored.png: cannot be decoded: mode RGB; a mask needs one channel",
    }.items():
        assert reason in reasons[stem]
    assert (summary.splits["train"]["rows"], summary.splits["train"]["quarantined"]) == (3, 7)
