import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.data.prepare.toy_task_files import jpeg, png, quarantined, write

from vlmo.data.prepare import labels_of, prepare
from vlmo.data.schema import QUESTION_FEATURES, REASONING_FEATURES
from vlmo.data.sources import open_source

TRAIN_IMAGES = range(1, 13)
VAL_IMAGES = range(101, 105)
TEST_IMAGES = range(201, 204)

# What a float32 leaves of 0.3 and 0.9.
FLOAT32 = 1e-6


def annotators(**counts: int) -> list[dict[str, Any]]:
    answers = [{"answer": name, "answer_confidence": "yes"} for name in counts]
    return [each for each in answers for _ in range(counts[each["answer"]])]


class Questions:
    """A miniature of the published files, which a test can change before it is written."""

    def __init__(self) -> None:
        self.questions: dict[str, list[dict[str, Any]]] = {part: [] for part in PARTS}
        self.annotations: dict[str, list[dict[str, Any]]] = {"train2014": [], "val2014": []}
        for part, images in (("train2014", TRAIN_IMAGES), ("val2014", VAL_IMAGES)):
            for image in images:
                thing = f"thing{image}"
                self.ask(part, image, 0, "Is it grey?", "yes/no", Yes=0, yes=8, no=1, maybe=1)
                self.ask(part, image, 1, "How many?", "number", **{"two": 5, "2": 3, "3": 2})
                self.ask(part, image, 2, "Which thing?", "other", **{thing: 10})
        for image in TEST_IMAGES:
            self.questions["test2015"].append(asked(image, 0, "What is it?"))
        self.questions["test-dev2015"].append(asked(TEST_IMAGES[0], 0, "What is it?"))

    def ask(self, part: str, image: int, place: int, text: str, kind: str, **counts: int) -> None:
        """Ask for an image; of the answers with their counts the first one is the majority's."""
        self.questions[part].append(asked(image, place, text))
        self.annotations[part].append(
            {
                "question_type": text.split(maxsplit=1)[0].lower(),
                "multiple_choice_answer": next(iter(counts)),
                "answers": annotators(**counts),
                "image_id": image,
                "answer_type": kind,
                "question_id": image * 1000 + place,
            }
        )

    def write(self, root: Path) -> Path:
        for part, questions in self.questions.items():
            content = {"info": {"year": 2017}, "task_type": "Open-Ended", "questions": questions}
            write(root / f"v2_OpenEnded_mscoco_{part}_questions.json", json.dumps(content))
        for part, annotations in self.annotations.items():
            content = {"info": {}, "license": {}, "annotations": annotations}
            write(root / f"v2_mscoco_{part}_annotations.json", json.dumps(content))
        for part, images in zip(PARTS, (TRAIN_IMAGES, VAL_IMAGES, TEST_IMAGES), strict=False):
            for image in images:
                write(image_file(root, part, image), jpeg(image))
        return root


PARTS = ("train2014", "val2014", "test2015", "test-dev2015")


def asked(image: int, place: int, text: str) -> dict[str, Any]:
    return {"image_id": image, "question": text, "question_id": image * 1000 + place}


def image_file(root: Path, part: str, image: int) -> Path:
    return root / part / f"COCO_{part}_{image:012}.jpg"


@pytest.fixture(scope="module")
def vqav2(tmp_path_factory) -> SimpleNamespace:
    """The miniature as it is published, prepared."""
    folder = tmp_path_factory.mktemp("vqav2")
    root = Questions().write(folder / "root")
    summary = prepare("vqav2", root=root, out=folder / "out")
    splits = {name: open_source(str(folder / "out"), split=name) for name in summary.splits}
    return SimpleNamespace(root=root, out=folder / "out", summary=summary, **splits)


def test_vqav2_makes_a_row_of_each_question(vqav2) -> None:
    assert vqav2.train.features == QUESTION_FEATURES
    first, second = vqav2.train[0], vqav2.train[1]
    assert first["image"] == {"bytes": None, "path": str(image_file(vqav2.root, "train2014", 1))}
    assert (first["captions"], first["image_id"], first["source"]) == ([], "coco/1", "vqav2")
    assert (first["question"], first["question_id"]) == ("Is it grey?", "1000")
    assert (first["question_type"], first["answer_type"]) == ("is", "yes/no")
    assert first["answers"] == ["yes"] * 8 + ["no", "maybe"]
    assert labels_of(vqav2.out) == ["yes", "2"]
    assert (first["answer_labels"], first["answer_scores"]) == ([0], [1.0])
    # "two" is as good an answer as "2", but the published preparation counts the words as they stand.
    assert second["answer_labels"] == [1]
    assert second["answer_scores"] == pytest.approx([0.9], abs=FLOAT32)


def test_vqav2_leaves_out_training_questions_without_a_known_answer(vqav2) -> None:
    train, validation = vqav2.train, vqav2.validation
    # Two of four images of val2014 are held out; their unanswerable questions stay, for an honest score.
    assert len(train) == 2 * (len(TRAIN_IMAGES) + 2)
    assert len(validation) == 3 * 2
    assert sum(labels == [] for labels in validation["answer_labels"]) == 2
    assert not set(train["image_id"]) & set(validation["image_id"])
    assert set(validation["image_id"]) <= {f"coco/{image}" for image in VAL_IMAGES}
    notes = "\n".join(vqav2.summary.notes)
    assert "2 answers are given to 9 questions or more; whole: 3,129" in notes
    assert f"{len(TRAIN_IMAGES) + 2} questions with none of these answers are left out" in notes
    assert "the questions about 2 images of val2014 are for validation" in notes
    assert vqav2.summary.splits["train"]["quarantined"] == 0
    assert "warning: test_std has 3 rows; the whole set has 447,793" in vqav2.summary.lines()


def test_vqav2_test_splits_have_no_answers_and_need_not_be_there(vqav2, tmp_path) -> None:
    assert vqav2.test_std["question_id"][:] == [str(image * 1000) for image in TEST_IMAGES]
    assert vqav2.test_dev["question_id"][:] == ["201000"]
    row = vqav2.test_dev[0]
    known = [row[name] for name in ("answers", "answer_labels", "answer_scores", "answer_type")]
    assert known == [[], [], [], ""]
    assert row["image"]["path"] == str(image_file(vqav2.root, "test2015", 201))
    toy = Questions()
    toy.questions = {part: toy.questions[part][::-1] for part in PARTS[:2]}
    toy.annotations["val2014"].reverse()
    summary = prepare("vqav2", root=toy.write(tmp_path / "root"), out=tmp_path / "out")
    assert list(summary.splits) == ["train", "validation"]
    # The same images are held out, whatever the order.
    again = open_source(str(tmp_path / "out"), split="validation")
    assert set(again["image_id"]) == set(vqav2.validation["image_id"])


def test_vqav2_quarantines_what_does_not_fit_together(tmp_path) -> None:
    toy = Questions()
    toy.questions["train2014"] += [asked(1, 0, "Again?"), asked(2, 9, "Without an annotation?")]
    toy.questions["train2014"].append(asked(4, 8, "About which picture?"))
    extra = {"question_type": "is", "answer_type": "yes/no", "multiple_choice_answer": "yes"}
    extra["answers"] = annotators(yes=10)
    toy.annotations["train2014"].append(extra | {"image_id": 5, "question_id": 4008})
    toy.annotations["train2014"][6]["answers"] = annotators(yes=3)  # of the image 3
    root = toy.write(tmp_path / "root")
    summary = prepare("vqav2", root=root, out=tmp_path / "out")
    reasons = quarantined(tmp_path / "out")
    assert "question_id 1000 repeats that of an earlier row" in reasons["coco/1"]
    assert reasons["coco/2"].startswith("question 2009 needs an annotation of its image with 10 an")
    assert reasons["coco/3"].endswith(": image 3, 3 answers")
    assert reasons["coco/4"].endswith(": image 5, 10 answers")
    assert summary.splits["train"]["rows"] == 2 * (len(TRAIN_IMAGES) + 2) - 1
    assert summary.splits["train"]["quarantined"] == 4


def record(identifier: str, label: str | None = "True") -> dict[str, Any]:
    split, images, _, sentence = identifier.split("-")
    text = f"Sentence {sentence} about set {images} of {split}."
    facts = {"identifier": identifier, "sentence": text, "synset": "acorn"}
    facts |= {"directory": 7} if split == "train" else {}
    return facts | ({} if label is None else {"label": label})


class Pairs:
    def __init__(self) -> None:
        dev = [record("dev-850-0-0"), record("dev-850-1-0", "False"), record("dev-850-1-1")]
        self.records = {
            "train": [record(f"train-10-{pair}-{n}") for pair in range(4) for n in range(2)],
            "dev": [*dev, record("dev-9-0-0")],
            "test1": [record("test1-0-0-0", None), record("test1-0-1-0", "False")],
        }

    def write(self, root: Path) -> Path:
        for part, records in self.records.items():
            write(root / f"{part}.json", "".join(json.dumps(row) + "\n" for row in records))
            for number, row in enumerate(records):
                stem = row["identifier"].rpartition("-")[0]
                folder = root / "images" / "train" / "7" if part == "train" else root / part
                write(folder / f"{stem}-img0.png", png(number))
                # Despite their name, many of the published files are JPEG.
                write(folder / f"{stem}-img1.png", jpeg(100 + number))
        return root


def test_nlvr2_makes_a_row_of_each_sentence(tmp_path) -> None:
    root = Pairs().write(tmp_path / "root")
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
    # One is not given.
    assert open_source(str(tmp_path / "out"), split="test")["label"][:] == [-1, 0]
    # As the official metric groups them.
    assert validation["sentence_group"][:] == ["dev-850-0", "dev-850-0", "dev-850-1", "dev-9-0"]
    assert validation[0]["image"]["path"] == str(root / "dev/dev-850-0-img0.png")


def test_nlvr2_quarantines_bad_records(tmp_path) -> None:
    toy = Pairs()
    toy.records["dev"] += [record("test1-5-0-0"), record("dev-7-0-0", "perhaps")]
    toy.records["dev"].append(record("dev-850-0-0"))
    summary = prepare("nlvr2", root=toy.write(tmp_path / "root"), out=tmp_path / "out")
    reasons = quarantined(tmp_path / "out")
    assert len(reasons) == summary.splits["validation"]["quarantined"] == 3
    assert "dev.json:5: 'test1' with label 'True'; expected 'dev'" in reasons["test1-5-0-0"]
    assert "dev.json:6: 'dev' with label 'perhaps'; expected 'dev'" in reasons["dev-7-0-0"]
    assert reasons["dev-850-0-0"] == "image_id dev-850-0-0 repeats that of an earlier row"
    assert summary.splits["validation"]["rows"] == 4
