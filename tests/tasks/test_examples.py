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


def class_set(rows: list[dict] | None = None) -> Dataset:
    return Dataset.from_list(rows or class_rows("train", 6), features=class_features(NAMES))


def labelled(dataset: Dataset) -> Examples:
    data = replace(find_recipe("base-imagenet").data, transform=TransformConfig())
    run = RunContext(Path(), data, dataset, processor=None, model={"image_size": SIZE})
    return ClassificationTask().examples(run)


def segment_examples(rows: list[dict] | None = None) -> SegmentExamples:
    dataset = Dataset.from_list(rows or segment_rows("train", 6), features=SEGMENT_FEATURES)
    return SegmentExamples(dataset, transform=SEGMENT_TRANSFORM, num_classes=len(PIXELS), seed=0)


def test_labels_go_with_their_pictures() -> None:
    examples = labelled(class_set())
    assert len(examples) == 6
    assert class_names(class_set()) == NAMES
    batch = examples.collate([examples[0, row] for row in (4, 0, 2)])
    assert batch["labels"].tolist() == [1, 0, 2]
    assert batch["sample_ids"].tolist() == [4, 0, 2]
    assert batch["pixel_values"].shape == (3, 3, SIZE, SIZE)
    assert len(set(batch["image_ids"].tolist())) == 3


@pytest.mark.parametrize("label", [None, -1])
def test_rows_without_a_class_are_named(label) -> None:
    rows = class_rows("train", 3)
    rows[1]["label"] = label
    message = r"sample 1 \(image_id 'train/1'\) has label .*from 0 to 2"
    with pytest.raises(ValueError, match=message):
        class_numbers(class_set(rows))


def test_masks_go_with_their_pictures() -> None:
    examples = segment_examples()
    batch = examples.collate([examples[0, row] for row in range(6)])
    assert batch["labels"].shape == (6, SIZE, SIZE)
    assert batch["labels"].dtype == torch.int64
    assert batch["pixel_values"].shape == (6, 3, SIZE, SIZE)
    assert {IGNORED} < set(batch["labels"].unique().tolist()) <= {0, 1, 2, 3, IGNORED}


@pytest.mark.parametrize("make", [lambda: labelled(class_set()), segment_examples])
def test_augmentation_depends_on_epoch_and_row_alone(make) -> None:
    first, second = make(), make()
    for epoch in (3, 4):
        torch.testing.assert_close(first[epoch, 2], second[epoch, 2], rtol=0, atol=0)
    assert not torch.equal(first[3, 2]["pixel_values"], first[4, 2]["pixel_values"])


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.full((64, 80), 4), "classes up to 4; expected 80 x 64, and 0 to 3 or 255"),
        (np.zeros((64, 64)), "the mask has 64 x 64 pixels and .* expected 80 x 64"),
        (np.zeros((64, 80, 3)), "mode RGB"),
    ],
)
def test_masks_that_cannot_be_used_are_named(mask, message) -> None:
    rows = segment_rows("train", 3)
    rows[2]["mask"] = png(mask.astype(np.uint8))
    examples = segment_examples(rows)
    assert examples[0, 1]["labels"].shape == (SIZE, SIZE)
    with pytest.raises(ValueError, match=rf"sample 2 \(image_id 'train/2'\).*{message}"):
        examples[0, 2]


def test_masks_may_be_indices_of_a_palette() -> None:
    rows = segment_rows("train", 1)
    indexed = Image.new("P", (80, 64), 3)
    indexed.putpalette([255, 0, 0] * 256)
    file = io.BytesIO()
    indexed.save(file, format="PNG")
    rows[0]["mask"]["bytes"] = file.getvalue()
    labels = segment_examples(rows)[0, 0]["labels"]
    assert set(labels.unique().tolist()) <= {3, IGNORED}


PLAIN = TransformConfig(image_size=64)
SCORE = 1e-7  # scores are kept in float32


@pytest.fixture(scope="module")
def words():
    return processor()


def questions(rows: Dataset, words, *, num_answers: int | None = len(ANSWERS)) -> RowExamples:
    contents = Contents(0, EvalTransform(PLAIN), tokenizer=words.tokenizer)
    return question_examples(rows, contents, num_answers=num_answers)


def sentences(rows: Dataset, words, *, transform: Any = None, **changes) -> RowExamples:
    contents = Contents(0, transform or EvalTransform(PLAIN), tokenizer=words.tokenizer)
    return reasoning_examples(rows, contents, **changes)


def test_questions_are_pixels_words_and_the_scores_of_answers(words):
    examples = questions(question_rows(4), words)
    batch = examples.collate([examples[0, row] for row in range(4)])
    red, yellow, yes, no = (ANSWERS.index(answer) for answer in ("red", "yellow", "yes", "no"))
    expected = torch.zeros(4, len(ANSWERS))
    expected[0, red], expected[0, no] = 1, 0.6
    expected[1:3, yes] = 1
    expected[3, yellow], expected[3, no] = 1, 0.6
    torch.testing.assert_close(batch["labels"], expected, atol=SCORE, rtol=0)
    assert batch["sample_ids"].tolist() == [0, 1, 2, 3]
    colors = [(220, 40, 40), (40, 180, 60), (40, 60, 220), (230, 210, 40)]
    inputs = words(
        images=[Image.new("RGB", (24, 20), color) for color in colors],
        text=[row["question"] for row in question_rows(4)],
        return_tensors="pt",
    )
    assert torch.equal(batch["input_ids"], inputs["input_ids"])
    assert torch.equal(batch["attention_mask"], inputs["attention_mask"])
    # The processor rescales in floats, the transform resizes bytes: half a level of 255 apart, in units of 127.5.
    pixels = normalize_pixels(batch["pixel_values"])
    torch.testing.assert_close(pixels, inputs["pixel_values"], atol=1 / 127.5, rtol=0)


def test_questions_without_answers_can_be_read_but_not_trained_on(words, caplog):
    caplog.set_level("INFO")
    unknown = question_rows(4, known=False)
    assert "labels" not in questions(unknown, words, num_answers=None)[0, 0]
    with pytest.raises(ValueError, match="no row has an answer"):
        questions(unknown, words)
    rows = [question_row(number, known=number > 0) for number in range(3)]
    partly = Dataset.from_list(rows, features=QUESTION_FEATURES)
    examples = questions(partly, words)
    assert len(examples) == 2
    assert examples[0, 0]["labels"].argmax().item() == ANSWERS.index("yes")
    assert len(questions(partly, words, num_answers=None)) == 3
    assert "1 questions without an answer are left out of training" in caplog.messages


@pytest.mark.parametrize("numbers", [[len(ANSWERS)], [-1], [0, 99]])
def test_answers_outside_the_list_are_named(numbers, words):
    wrong = question_row(1, answer_labels=numbers, answer_scores=[1.0] * len(numbers))
    rows = Dataset.from_list([question_row(0), wrong], features=QUESTION_FEATURES)
    message = r"question '101' has answer numbers .*; the set's list has 6 answers, 0 to 5"
    with pytest.raises(ValueError, match=message):
        questions(rows, words)


def test_reasoning_pictures_are_left_then_right(words):
    examples = sentences(reasoning_rows(4), words)
    batch = examples.collate([examples[0, row] for row in range(4)])
    assert batch["pixel_values"].shape == (4, 2, 3, 64, 64)
    assert batch["labels"].tolist() == [1, 0, 1, 0]
    same = [torch.equal(left, right) for left, right in batch["pixel_values"]]
    assert same == [True, False, True, False]
    # "both pictures are red": the left one is red in both rows.
    assert torch.equal(batch["pixel_values"][0, 0], batch["pixel_values"][1, 0])


def test_reasoning_pictures_are_augmented_apart(words):
    noisy = TransformConfig(image_size=64, rand_augment_ops=0, horizontal_flip=0, random_erasing=1)
    examples = sentences(reasoning_rows(2), words, transform=TrainTransform(noisy))
    left, right = examples[0, 0]["pixel_values"]
    assert not torch.equal(left, right)
    assert torch.equal(examples[0, 0]["pixel_values"], torch.stack([left, right]))
    assert not torch.equal(examples[1, 0]["pixel_values"][0], left)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"label": -1}, r"image_id 'toy-0-1-0'\) has label -1; expected 1"),
        ({"label": 2}, r"image_id 'toy-0-1-0'\) has label 2; expected 1"),
        ({"second_image": None}, r"\(image_id 'toy-0-1-0'\): the row holds no second_image"),
    ],
)
def test_sentences_without_a_label_or_second_picture_are_named(changes, message, words):
    rows = [reasoning_row(0), reasoning_row(1, **changes)]
    dataset = Dataset.from_list(rows, features=REASONING_FEATURES)
    with pytest.raises(ValueError, match=message):
        sentences(dataset, words)[0, 1]


def test_sentences_without_labels_can_be_read(words):
    assert "labels" not in sentences(reasoning_rows(2, known=False), words, labeled=False)[0, 0]


def test_names_of_source_built_in_and_prepared_sets(tmp_path):
    assert names_of_source(str(write_questions(tmp_path / "questions"))) == ANSWERS
    assert {"circle", "red", "yes"} < set(names_of_source("shapes-questions"))
    with pytest.raises(ValueError, match="emoji-pairs has no answers"):
        names_of_source("emoji-pairs")
    with pytest.raises(ValueError, match="no answers or classes"):
        names_of_source(str(write_sentences(tmp_path / "sentences")))
