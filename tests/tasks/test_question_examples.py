import pytest
import torch
from datasets import Dataset
from PIL import Image
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

from vlmo.data.examples import RowExamples
from vlmo.data.schema import FEATURES, QUESTION_FEATURES, REASONING_FEATURES
from vlmo.processing import EvalTransform, TrainTransform, TransformConfig
from vlmo.tasks.labels import names_of_source
from vlmo.tasks.nlvr2 import reasoning_examples
from vlmo.tasks.vqa import question_examples
from vlmo.types import normalize_pixels

PLAIN = TransformConfig(image_size=64)
SCORE = 1e-7  # scores are kept in float32


@pytest.fixture(scope="module")
def words():
    return processor()


def questions(rows: Dataset, words, **changes) -> RowExamples:
    settings = {"transform": EvalTransform(PLAIN), "seed": 0, "num_answers": len(ANSWERS)}
    return question_examples(rows, tokenizer=words.tokenizer, **settings | changes)


def sentences(rows: Dataset, words, **changes) -> RowExamples:
    settings = {"transform": EvalTransform(PLAIN), "seed": 0}
    return reasoning_examples(rows, tokenizer=words.tokenizer, **settings | changes)


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
    torch.testing.assert_close(normalize_pixels(batch["pixel_values"]), inputs["pixel_values"], atol=1 / 127.5, rtol=0)


def test_questions_without_answers_can_be_read_but_not_trained_on(words):
    rows = question_rows(4, known=False)
    assert "labels" not in questions(rows, words, num_answers=None)[0, 0]
    with pytest.raises(ValueError, match="no row has an answer"):
        questions(rows, words)


@pytest.mark.parametrize("numbers", [[len(ANSWERS)], [-1], [0, 99]])
def test_answers_outside_the_list_are_named(numbers, words):
    wrong = question_row(1, answer_labels=numbers, answer_scores=[1.0] * len(numbers))
    rows = Dataset.from_list([question_row(0), wrong], features=QUESTION_FEATURES)
    with pytest.raises(ValueError, match=r"question '101' has answer numbers .*; the set's list has 6 answers, 0 to 5"):
        questions(rows, words)


def test_rows_of_another_task_are_refused(words):
    plain = reasoning_rows(2).select_columns(list(FEATURES))
    with pytest.raises(ValueError, match="no questions about images: they lack question, question_id"):
        questions(plain, words)
    with pytest.raises(ValueError, match="no sentences about two images: they lack second_image, label"):
        sentences(question_rows(2), words)


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
    assert "labels" not in sentences(rows, words, labelled=False)[0, 0]
    with pytest.raises(ValueError, match="the label of 'toy-0-0-0' is not known"):
        sentences(rows, words)
    rows = Dataset.from_list([reasoning_row(0), reasoning_row(1, label=2)], features=REASONING_FEATURES)
    with pytest.raises(ValueError, match="the label of 'toy-0-1-0' is 2; expected 1"):
        sentences(rows, words)


def test_a_missing_second_picture_is_named(words):
    rows = Dataset.from_list([reasoning_row(0, second_image=None)], features=REASONING_FEATURES)
    with pytest.raises(ValueError, match=r"sample 0 \(image_id 'toy-0-0-0'\): the row holds no second_image"):
        sentences(rows, words)[0, 0]


def test_names_of_source_built_in_and_prepared_sets(tmp_path):
    assert names_of_source(str(write_questions(tmp_path / "questions"))) == ANSWERS
    assert {"circle", "red", "yes"} < set(names_of_source("shapes-questions"))
    with pytest.raises(ValueError, match="emoji-pairs has no answers"):
        names_of_source("emoji-pairs")
    with pytest.raises(ValueError, match="no answers or classes"):
        names_of_source(str(write_sentences(tmp_path / "sentences")))
