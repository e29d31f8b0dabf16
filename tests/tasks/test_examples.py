"""Rows as training reads them: images with classes or masks, questions, and sentences about two images."""

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from PIL import Image
from tests.tasks.toy_vision import IGNORED, NAMES, PIXELS, class_rows, png, segment_rows
from tests.toy_questions import (
    ANSWERS,
    processor,
    question_row,
    question_rows,
    reasoning_row,
    reasoning_rows,
    write_questions,
    write_sentences,
)

from vlmo.data.examples import Contents, Examples, RowExamples
from vlmo.data.schema import QUESTION_FEATURES, REASONING_FEATURES, SEGMENT_FEATURES, class_features
from vlmo.processing import EvalTransform, TrainTransform, TransformConfig
from vlmo.processing.segmentation import SegmentTrainTransform, SegmentTransformConfig
from vlmo.recipes import find_recipe
from vlmo.tasks import ClassificationTask, RunContext
from vlmo.tasks.classification import class_names, class_numbers
from vlmo.tasks.labels import names_of_source
from vlmo.tasks.nlvr2 import reasoning_examples
from vlmo.tasks.segmentation import SegmentExamples
from vlmo.tasks.vqa import question_examples
from vlmo.types import normalize_pixels

SIZE = 32
SEGMENT_TRANSFORM = SegmentTrainTransform(SegmentTransformConfig(), crop_size=SIZE)


def class_set(count: int = 6) -> Dataset:
    return Dataset.from_list(class_rows("train", count), features=class_features(NAMES))


def labelled(dataset: Dataset, **options) -> Examples:
    data = replace(find_recipe("base-imagenet").data, transform=TransformConfig(), **options)
    run = RunContext(Path(), data, dataset, processor=None, model={"image_size": SIZE})
    return ClassificationTask().examples(run)


def segment_set(rows: list[dict] | None = None) -> Dataset:
    return Dataset.from_list(
        segment_rows("train", 6) if rows is None else rows, features=SEGMENT_FEATURES
    )


def segment_examples(dataset: Dataset, **settings) -> SegmentExamples:
    return SegmentExamples(
        dataset, transform=SEGMENT_TRANSFORM, num_classes=len(PIXELS), seed=0, **settings
    )


def test_labels_go_with_their_pictures() -> None:
    examples = labelled(class_set())
    assert len(examples) == 6
    assert class_names(class_set()) == NAMES
    batch = examples.collate([examples[0, row] for row in (4, 0, 2)])
    assert batch["labels"].tolist() == [1, 0, 2]
    assert batch["labels"].dtype == torch.int64
    assert batch["sample_ids"].tolist() == [4, 0, 2]
    assert batch["pixel_values"].shape == (3, 3, SIZE, SIZE)
    assert len(set(batch["image_ids"].tolist())) == 3


@pytest.mark.parametrize("label", [None, -1])
def test_rows_without_a_class_are_named(label) -> None:
    rows = class_rows("train", 3)
    rows[1]["label"] = label
    dataset = Dataset.from_list(rows, features=class_features(NAMES))
    with pytest.raises(
        ValueError, match=r"sample 1 \(image_id 'train/1'\) has label .*from 0 to 2"
    ):
        class_numbers(dataset)


def test_masks_go_with_their_pictures() -> None:
    examples = segment_examples(segment_set())
    batch = examples.collate([examples[0, row] for row in range(6)])
    assert batch["labels"].shape == (6, SIZE, SIZE)
    assert batch["labels"].dtype == torch.int64
    assert batch["pixel_values"].shape == (6, 3, SIZE, SIZE)
    assert set(batch["labels"].unique().tolist()) <= {0, 1, 2, 3, IGNORED}
    assert IGNORED in batch["labels"]


@pytest.mark.parametrize(
    "make", [lambda: labelled(class_set()), lambda: segment_examples(segment_set())]
)
def test_augmentation_depends_on_epoch_and_row_alone(make) -> None:
    first, second = make(), make()
    for epoch in (3, 4):
        for name in (
            ("pixel_values", "labels") if "labels" in first[epoch, 2] else ("pixel_values",)
        ):
            assert torch.equal(first[epoch, 2][name], second[epoch, 2][name])
    assert not torch.equal(first[3, 2]["pixel_values"], first[4, 2]["pixel_values"])


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (
            np.full((64, 80), 4, dtype=np.uint8),
            "classes up to 4; expected 80 x 64, and 0 to 3 or 255",
        ),
        (np.zeros((64, 64), dtype=np.uint8), "the mask has 64 x 64 pixels and .* expected 80 x 64"),
        (np.zeros((64, 80, 3), dtype=np.uint8), "mode RGB"),
    ],
)
def test_masks_that_cannot_be_used_are_named(mask, message) -> None:
    rows = segment_rows("train", 3)
    rows[2]["mask"] = png(mask)
    examples = segment_examples(segment_set(rows))
    assert examples[0, 1]["labels"].shape == (SIZE, SIZE)
    with pytest.raises(ValueError, match=rf"sample 2 \(image_id 'train/2'\).*{message}"):
        examples[0, 2]


def test_masks_may_be_indices_of_a_palette() -> None:
    rows = segment_rows("train", 1)
    indexed = Image.new("P", (80, 64), 3)
    indexed.putpalette([255, 0, 0] * 256)
    file = io.BytesIO()
    indexed.save(file, format="PNG")
    rows[0]["mask"] = {"bytes": file.getvalue(), "path": None}
    labels = segment_examples(segment_set(rows))[0, 0]["labels"]
    assert set(labels.unique().tolist()) <= {3, IGNORED}


PLAIN = TransformConfig(image_size=64)
SCORE = 1e-7  # scores are kept in float32


@pytest.fixture(scope="module")
def words():
    return processor()


def questions(rows: Dataset, words, **changes) -> RowExamples:
    contents = Contents(0, EvalTransform(PLAIN), tokenizer=words.tokenizer)
    return question_examples(rows, contents, **{"num_answers": len(ANSWERS)} | changes)


def sentences(rows: Dataset, words, *, transform: Any = None, **changes) -> RowExamples:
    contents = Contents(0, transform or EvalTransform(PLAIN), tokenizer=words.tokenizer)
    return reasoning_examples(rows, contents, **changes)


def test_question_labels_are_the_scores_of_the_answers(words):
    examples = questions(question_rows(4), words)
    batch = examples.collate([examples[0, row] for row in range(4)])
    expected = torch.zeros(4, len(ANSWERS))
    expected[0, ANSWERS.index("red")], expected[0, ANSWERS.index("no")] = 1, 0.6
    expected[1:3, ANSWERS.index("yes")] = 1
    expected[3, ANSWERS.index("yellow")], expected[3, ANSWERS.index("no")] = 1, 0.6
    torch.testing.assert_close(batch["labels"], expected, atol=SCORE, rtol=0)
    assert batch["pixel_values"].shape == (4, 3, 64, 64)
    assert batch["sample_ids"].tolist() == [0, 1, 2, 3]
    assert batch["input_ids"].shape == batch["attention_mask"].shape == (4, 8)
    tokens = words.tokenizer.decode(batch["input_ids"][0], skip_special_tokens=True)
    assert tokens.replace(" ", "") == "whatcolorisit?"


def test_question_pixels_and_ids_are_the_processors(words):
    examples = questions(question_rows(2), words)
    batch = examples.collate([examples[0, row] for row in range(2)])
    drawn = [Image.new("RGB", (24, 20), color) for color in ((220, 40, 40), (40, 180, 60))]
    inputs = words(images=drawn, text=["what color is it?", "is it green?"], return_tensors="pt")
    assert torch.equal(batch["input_ids"], inputs["input_ids"])
    assert torch.equal(batch["attention_mask"], inputs["attention_mask"])
    # The processor rescales in floats, the transform resizes bytes: half a level of 255 apart, in units of 127.5.
    torch.testing.assert_close(
        normalize_pixels(batch["pixel_values"]), inputs["pixel_values"], atol=1 / 127.5, rtol=0
    )


def test_questions_without_answers_can_be_read_but_not_trained_on(words):
    rows = question_rows(4, known=False)
    assert "labels" not in questions(rows, words, num_answers=None)[0, 0]
    with pytest.raises(ValueError, match="no row has an answer"):
        questions(rows, words)


def test_questions_without_an_answer_are_counted_and_left_out_of_training(words, caplog):
    caplog.set_level("INFO")
    rows = Dataset.from_list(
        [question_row(n, known=n > 0) for n in range(3)], features=QUESTION_FEATURES
    )
    examples = questions(rows, words)
    assert [examples[0, row]["labels"].argmax().item() for row in range(len(examples))] == [
        ANSWERS.index("yes")
    ] * 2
    assert len(questions(rows, words, num_answers=None)) == 3
    assert caplog.messages == ["1 questions without an answer are left out of training"]


@pytest.mark.parametrize("numbers", [[len(ANSWERS)], [-1], [0, 99]])
def test_answers_outside_the_list_are_named(numbers, words):
    wrong = question_row(1, answer_labels=numbers, answer_scores=[1.0] * len(numbers))
    rows = Dataset.from_list([question_row(0), wrong], features=QUESTION_FEATURES)
    with pytest.raises(
        ValueError,
        match=r"question '101' has answer numbers .*; the set's list has 6 answers, 0 to 5",
    ):
        questions(rows, words)


def test_reasoning_pictures_are_left_then_right(words):
    examples = sentences(reasoning_rows(4), words)
    batch = examples.collate([examples[0, row] for row in range(4)])
    assert batch["pixel_values"].shape == (4, 2, 3, 64, 64)
    assert batch["labels"].tolist() == [1, 0, 1, 0]
    assert batch["labels"].dtype == torch.int64
    same = [torch.equal(left, right) for left, right in batch["pixel_values"]]
    assert same == [True, False, True, False]
    # "both pictures are red": the left one is red in both rows.
    assert torch.equal(batch["pixel_values"][0, 0], batch["pixel_values"][1, 0])


def test_reasoning_pictures_are_augmented_apart(words):
    noisy = TransformConfig(image_size=64, rand_augment_ops=0, horizontal_flip=0, random_erasing=1)
    examples = sentences(reasoning_rows(2), words, transform=TrainTransform(noisy))
    left, right = examples[0, 0]["pixel_values"]
    assert not torch.equal(left, right)
    assert torch.equal(examples[0, 0]["pixel_values"], examples[0, 0]["pixel_values"])
    assert not torch.equal(examples[0, 0]["pixel_values"], examples[1, 0]["pixel_values"])


def test_reasoning_labels_must_be_known_for_training(words):
    rows = reasoning_rows(2, known=False)
    assert "labels" not in sentences(rows, words, labeled=False)[0, 0]
    with pytest.raises(ValueError, match=r"image_id 'toy-0-0-0'\) has label -1; expected 1"):
        sentences(rows, words)
    rows = Dataset.from_list(
        [reasoning_row(0), reasoning_row(1, label=2)], features=REASONING_FEATURES
    )
    with pytest.raises(ValueError, match=r"image_id 'toy-0-1-0'\) has label 2; expected 1"):
        sentences(rows, words)


def test_a_missing_second_picture_is_named(words):
    rows = Dataset.from_list([reasoning_row(0, second_image=None)], features=REASONING_FEATURES)
    with pytest.raises(
        ValueError, match=r"sample 0 \(image_id 'toy-0-0-0'\): the row holds no second_image"
    ):
        sentences(rows, words)[0, 0]


def test_names_of_source_built_in_and_prepared_sets(tmp_path):
    assert names_of_source(str(write_questions(tmp_path / "questions"))) == ANSWERS
    assert {"circle", "red", "yes"} < set(names_of_source("shapes-questions"))
    with pytest.raises(ValueError, match="emoji-pairs has no answers"):
        names_of_source("emoji-pairs")
    with pytest.raises(ValueError, match="no answers or classes"):
        names_of_source(str(write_sentences(tmp_path / "sentences")))
