import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from tests.data.prepare.toy_task_files import jpeg, png, quarantined

from vlmo.data.prepare import labels_of, prepare
from vlmo.data.schema import FEATURES, QUESTION_FEATURES, REASONING_FEATURES
from vlmo.data.sources import decode_image, open_source

# What a float32 leaves of 0.3.
FLOAT32 = 1e-6


def write_arrow(file: Path, rows: list[dict[str, Any]], **options: Any) -> Path:
    """As the published preparation writes: rows through pandas, the file format of Arrow, no compression."""
    table = pa.Table.from_pandas(pd.DataFrame(rows))
    return write_table(file, table, **options)


def write_table(file: Path, table: pa.Table, *, chunk: int | None = None, compression: str | None = None) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    options = pa.ipc.IpcWriteOptions(compression=compression)
    with pa.OSFile(str(file), "wb") as sink, pa.RecordBatchFileWriter(sink, table.schema, options=options) as writer:
        writer.write_table(table, max_chunksize=chunk)
    return file


def captioned(shade: int, split: str) -> dict[str, Any]:
    captions = [f"shade {shade}", f"grey of {shade}"]
    return {"image": jpeg(shade), "caption": captions, "image_id": f"COCO_{shade:012}.jpg", "split": split}


def questions(image: int, *, split: str, known: bool = True) -> dict[str, Any]:
    """Two questions about a picture; the first has one known answer, the second two."""
    return {
        "image": jpeg(image),
        "questions": ["Is it grey?", "How many?"],
        "answers": [["yes"], ["2", "no"]] if known else [],
        "answer_labels": [[0], [3, 1]] if known else [],
        "answer_scores": [[1.0], [0.9, 0.3]] if known else [],
        "image_id": image,
        "question_id": [image * 1000, image * 1000 + 1],
        "split": split,
    }


def pair(identifier: str, sentences: list[str], answers: list[str]) -> dict[str, Any]:
    shade = len(identifier)
    return {
        "image_0": png(shade),
        "image_1": jpeg(shade + 100),
        "questions": sentences,
        "answers": answers,
        "identifier": identifier,
    }


def write_captions(root: Path) -> Path:
    shades = itertools.count()
    for split, number in (("train", 5), ("restval", 2), ("val", 2), ("test", 1)):
        rows = [captioned(next(shades), split) for _ in range(number)]
        write_arrow(root / f"coco_caption_karpathy_{split}.arrow", rows)
    return root


def write_questions(root: Path) -> Path:
    images = {"train": (1, 2, 3), "trainable_val": (11, 12), "rest_val": (13,), "val": (11, 12, 13)}
    for split, numbers in images.items():
        write_arrow(root / f"vqav2_{split}.arrow", [questions(image, split=split) for image in numbers])
    for split, numbers in {"test": (21, 22), "test-dev": (21,)}.items():
        rows = [questions(image, split=split, known=False) for image in numbers]
        write_arrow(root / f"vqav2_{split}.arrow", rows)
    return root


def write_pairs(root: Path) -> Path:
    write_arrow(root / "nlvr2_train.arrow", [pair("train-1-0", ["Both are grey."], ["True"])])
    dev = [
        pair("dev-850-0", ["Both are grey.", "One is red."], ["True", "False"]),
        pair("dev-850-1", ["One is red."], ["True"]),
        pair("dev-9-0", ["One is red."], ["False"]),
    ]
    write_arrow(root / "nlvr2_dev.arrow", dev)
    write_arrow(root / "nlvr2_balanced_dev.arrow", dev[:1])
    return root


def pixels(cell: Any) -> np.ndarray:
    return np.asarray(decode_image(cell))


def expected_pixels(content: bytes) -> np.ndarray:
    return pixels({"bytes": content, "path": None})


def test_vilt_arrow_captions_become_rows_of_our_layout(tmp_path) -> None:
    summary = prepare("vilt_arrow", root=write_captions(tmp_path / "arrows"), out=tmp_path / "out")
    assert {split: counts.rows for split, counts in summary.splits.items()} == {"train": 7, "validation": 2, "test": 1}
    train = open_source(str(tmp_path / "out"), split="train")
    assert train.features == FEATURES
    # Files of a split follow each other by name: restval, then train.
    assert train["image_id"][:] == [f"COCO_{shade:012}.jpg" for shade in (5, 6, 0, 1, 2, 3, 4)]
    row = train[2]
    assert (row["captions"], row["source"]) == (["shade 0", "grey of 0"], "coco_caption_karpathy")
    for row in train:
        shade = int(row["image_id"][5:-4])
        np.testing.assert_array_equal(pixels(row["image"]), expected_pixels(jpeg(shade)))
        assert row["image"]["bytes"] is None  # read in place
        assert row["image"]["path"].startswith(f"{tmp_path}/arrows/coco_caption_karpathy_")
    assert "warning: train has 7 rows; the whole set has 113,287" in summary.lines()


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary()])
def test_vilt_arrow_finds_pictures_in_batches_of_either_width(tmp_path, kind: pa.DataType) -> None:
    rows = [captioned(shade, "train") for shade in range(7)]
    table = pa.Table.from_pandas(pd.DataFrame(rows))
    table = table.set_column(0, "image", table.column("image").cast(kind))
    write_table(tmp_path / "arrows/sbu_0.arrow", table.slice(0, 5), chunk=2)
    write_table(tmp_path / "arrows/sbu_1.arrow", table.slice(5))
    prepare("vilt_arrow", root=tmp_path / "arrows", out=tmp_path / "out")
    train = open_source(str(tmp_path / "out"), split="train")
    assert len(train) == 7
    for shade, row in enumerate(train):
        np.testing.assert_array_equal(pixels(row["image"]), expected_pixels(jpeg(shade)))


def test_vilt_arrow_questions_become_a_row_each(tmp_path) -> None:
    summary = prepare("vilt_arrow", root=write_questions(tmp_path / "arrows"), out=tmp_path / "out")
    counts = {split: counts.rows for split, counts in summary.splits.items()}
    assert counts == {"train": 10, "validation": 2, "test_dev": 2, "test_std": 4}
    assert labels_of(tmp_path / "out") == ["yes", "no", "#2", "2"]
    assert "1 numbers of answers occur in no row; they are called #NUMBER" in summary.notes
    assert "vqav2_val.arrow is left out: its rows are in the files of its two halves" in summary.notes
    train = open_source(str(tmp_path / "out"), split="train")
    assert train.features == QUESTION_FEATURES
    assert train["question_id"][:4] == ["1000", "1001", "2000", "2001"]
    first, second = train[0], train[1]
    assert first["image"] == second["image"]
    np.testing.assert_array_equal(pixels(first["image"]), expected_pixels(jpeg(1)))
    assert (first["question"], first["image_id"], first["captions"]) == ("Is it grey?", "coco/1", [])
    assert (second["answer_labels"], second["answers"]) == ([3, 1], [])
    assert second["answer_scores"] == pytest.approx([0.9, 0.3], abs=FLOAT32)
    test_std = open_source(str(tmp_path / "out"), split="test_std")
    assert test_std["answer_labels"][:] == [[]] * 4
    for half in ("trainable_val", "rest_val"):
        (tmp_path / "arrows" / f"vqav2_{half}.arrow").unlink()
    summary = prepare("vilt_arrow", root=tmp_path / "arrows", out=tmp_path / "val")
    assert (summary.splits["train"].rows, summary.splits["validation"].rows) == (6, 6)


def test_vilt_arrow_sentences_become_a_row_each(tmp_path) -> None:
    prepare("vilt_arrow", root=write_pairs(tmp_path / "arrows") / "nlvr2", out=tmp_path / "out")
    validation = open_source(str(tmp_path / "out"), split="validation")
    assert validation.features == REASONING_FEATURES
    assert validation["image_id"][:] == ["dev-850-0/0", "dev-850-0/1", "dev-850-1/0", "dev-9-0/0"]
    assert validation["label"][:] == [1, 0, 1, 0]
    assert validation[1]["captions"] == ["One is red."]
    np.testing.assert_array_equal(pixels(validation[0]["image"]), expected_pixels(png(9)))
    np.testing.assert_array_equal(pixels(validation[0]["second_image"]), expected_pixels(jpeg(109)))
    # The same sentence about the same set of images is one group; another set's is another.
    first, second, third, fourth = validation["sentence_group"][:]
    assert second == third
    assert len({first, second, fourth}) == 3


def test_vilt_arrow_asks_which_of_several_sets(tmp_path) -> None:
    root = write_questions(write_pairs(write_captions(tmp_path / "arrows")))
    message = r"holds the sets coco_caption_karpathy, nlvr2_balanced, nlvr2, vqav2; name one of them, such as --root"
    with pytest.raises(ValueError, match=message):
        prepare("vilt_arrow", root=root, out=tmp_path / "out")
    with pytest.raises(ValueError, match=message):
        prepare("vilt_arrow", root=root / "nlvr", out=tmp_path / "out")
    summary = prepare("vilt_arrow", root=root / "vqav2", out=tmp_path / "out")
    assert summary.splits["train"].rows == 10
    assert prepare("vilt_arrow", root=root / "vqav2", out=tmp_path / "out").already


def test_vilt_arrow_goes_by_names_with_and_without_numbers(tmp_path) -> None:
    for name in ("conceptual_caption_train_0", "conceptual_caption_train_12", "conceptual_caption_val_0"):
        write_arrow(tmp_path / f"{name}.arrow", [captioned(len(name), "train")])
    summary = prepare("vilt_arrow", root=tmp_path, out=tmp_path / "out")
    assert {split: counts.rows for split, counts in summary.splits.items()} == {"train": 2, "validation": 1}


def test_vilt_arrow_quarantines_bad_rows(tmp_path) -> None:
    rows = [questions(image, split="train") for image in range(1, 9)]
    rows[1]["image"] = rows[1]["image"][:-40]
    rows[2]["image"] = None
    rows[3]["image"] = b""
    rows[4]["question_id"] = [5000]
    rows[5]["question_id"] = [1000, 6001]
    root = write_arrow(tmp_path / "arrows/vqav2_train.arrow", rows).parent
    summary = prepare("vilt_arrow", root=root, out=tmp_path / "out")
    reasons = quarantined(tmp_path / "out")
    assert "cannot be decoded" in reasons["coco/2"]
    assert reasons["coco/3"] == "the row has no image"
    assert "empty file (0 bytes)" in reasons["coco/4"]
    assert reasons["vqav2_train/0/4"].startswith("batch/row vqav2_train/0/4: zip() argument")
    assert reasons["coco/6"] == "question_id 1000 repeats that of an earlier row"
    assert (summary.splits["train"].rows, summary.splits["train"].quarantined) == (7, 8)


@pytest.mark.parametrize(
    "targets",
    [
        {"answer_scores": [[1.0], [0.9]]},
        {"answer_scores": [[1.5], [0.9, 0.3]]},
        {"answer_labels": [[-1], [3, 1]]},
    ],
)
def test_vilt_arrow_quarantines_targets_that_do_not_fit_together(targets, tmp_path) -> None:
    rows = [questions(1, split="train") | targets, questions(2, split="train")]
    write_arrow(tmp_path / "arrows" / "vqav2_train.arrow", rows)
    prepare("vilt_arrow", root=tmp_path / "arrows", out=tmp_path / "out")
    (reason,) = quarantined(tmp_path / "out").values()
    assert "expected as many scores from 0 to 1 as numbers from 0 up" in reason
    assert open_source(str(tmp_path / "out"))["image_id"][:] == ["coco/2"] * 2


def cut_off(root: Path) -> None:
    file = write_arrow(root / "vg.arrow", [captioned(1, "train")])
    file.write_bytes(file.read_bytes()[:-100])


def other_images(root: Path) -> None:
    table = pa.Table.from_pandas(pd.DataFrame([captioned(1, "train"), captioned(2, "train")]))
    write_table(root / "vg.arrow", table.set_column(0, "image", pa.array(["a", "b"])))


def of_two_preparations(root: Path) -> None:
    write_questions(root)
    rows = [questions(31, split="trainable_val") | {"answers": [["no"], ["2", "yes"]]}]
    write_arrow(root / "vqav2_trainable_val.arrow", rows)


def questions_without(root: Path, split: str = "train", **changes: Any) -> None:
    write_arrow(root / f"vqav2_{split}.arrow", [questions(21, split=split, known=split == "train") | changes])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda root: root.mkdir(), "no .arrow file; --root must be a folder with files such as vqav2_train.arrow"),
        (
            lambda root: write_arrow(root / "vg.arrow", [{"image": jpeg(1), "image_id": "a"}]),
            "columns that no published preparation writes. .*Found vg.arrow",
        ),
        (other_images, "a column of images holds string; expected"),
        (
            lambda root: write_arrow(
                root / "vg.arrow", [captioned(1, "train") | {"image": b"a" * 10_000}], compression="zstd"
            ),
            "vg.arrow: its images are compressed by Arrow; write the file without",
        ),
        (cut_off, "vg.arrow: not an Arrow file, or cut off"),
        (of_two_preparations, "answer 0 is 'no', in another file 'yes'|answer 0 is 'yes', in another file"),
        (lambda root: questions_without(root, "test"), "vqav2_test.arrow: no answers; a file for training is needed"),
        (lambda root: questions_without(root, answer_labels=[[0], [3]]), "3 answers with 2 numbers"),
    ],
)
def test_vilt_arrow_refuses_other_files(tmp_path, spoil: Any, message: str) -> None:
    spoil(tmp_path / "arrows")
    with pytest.raises(ValueError, match=message):
        prepare("vilt_arrow", root=tmp_path / "arrows", out=tmp_path / "out")
