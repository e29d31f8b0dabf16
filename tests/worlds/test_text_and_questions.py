import numpy as np
import pytest

from vlmo.data import builtin
from vlmo.data.schema import FEATURES, QUESTION_FEATURES
from vlmo.data.sources import decode_image, open_source
from worlds import easy_vqa
from worlds.english import prose_sentences


def test_prose_leaves_out_mark_up_and_code() -> None:
    text = """
A *heading* of the page
***********************

Use ``len`` to count the
items of a :class:`~collections.deque`.  It is *very* fast.  See `the manual`_ too.

   >>> len("abc")
   3

   stmt ::= "assert" expression.

The form "assert" is (mostly) harmless! See {x}.
"""
    assert list(prose_sentences(text)) == [
        "Use len to count the items of a collections.deque.",
        "It is very fast.",
        "See the manual too.",
        "The form assert is (mostly) harmless!",
    ]


@pytest.mark.slow
def test_english_text(shared_folder) -> None:
    train = open_source("english-text", split="train", cache_dir=shared_folder)
    test = open_source("english-text", split="test", cache_dir=shared_folder)
    assert train.features == FEATURES
    # The number depends on the version of Python, whose documentation this is.
    assert len(train) > 9_000
    assert 0.03 < len(test) / (len(train) + len(test)) < 0.07
    sentences = [captions[0] for captions in [*train["captions"][:], *test["captions"][:]]]
    assert len(set(sentences)) == len(sentences)
    assert len({*train["image_id"][:], *test["image_id"][:]}) == len(sentences)
    assert set(train["source"][:]) == {"python", "easy-vqa"}
    assert not any(character in sentence for sentence in sentences for character in "`*\n_=<>{}")
    assert all(4 <= len(sentence.split()) <= 50 for sentence in sentences)


def test_easy_vqa(shared_folder) -> None:
    rows = {split: open_source("easy-vqa", split=split, cache_dir=shared_folder) for split in ("train", "test")}
    labels = builtin.labels("easy-vqa")
    assert len(labels) == 13
    assert [len(found) for found in rows.values()] == [38_575, 9_673]
    images = [set(found["image_id"][:]) for found in rows.values()]
    assert [len(found) for found in images] == [4_000, 1_000]
    assert not images[0] & images[1]
    for found in rows.values():
        assert found.features == QUESTION_FEATURES
        assert [[labels[number] for number in numbers] for numbers in found["answer_labels"][:]] == found["answers"][:]
        assert {answer for (answer,) in found["answers"][:]} == set(labels)
    first = rows["train"][0]
    assert (first["captions"], first["question"], first["answers"]) == ([], "what is the blue shape?", ["rectangle"])
    assert (first["question_type"], first["answer_type"]) == ("what shape", "other")
    assert decode_image(first["image"]).size == (64, 64)


def test_balanced_easy_vqa_thins_questions_for_a_yes_about_colors(shared_folder) -> None:
    whole, thinned = (
        open_source(name, split="train", cache_dir=shared_folder) for name in ("easy-vqa", "easy-vqa-balanced")
    )
    kept, shares = set(thinned["question_id"][:]), {"yes": [], "no": []}
    for name, question, (answer,) in zip(*(whole[n][:] for n in ("question_id", "question", "answers")), strict=True):
        if answer in shares and set(easy_vqa.COLORS) & set(question.rstrip("?").split()):
            shares[answer].append(name in kept)
        else:
            assert name in kept, question
    for answer, thinning in shares.items():  # the answer has no say in what goes
        assert np.mean(thinning) == pytest.approx(0.3, abs=0.02), answer


@pytest.mark.parametrize(
    ("question", "kind"),
    [
        ("what color is the circle?", "what color"),
        ("what is the color of the shape?", "what color"),
        ("what is the blue shape?", "what shape"),
        ("is a circle present?", "is there"),
        ("does the image contain a red shape?", "is there"),
        ("is no circle present?", "is there not"),
        ("does the image not contain a red shape?", "is there not"),
    ],
)
def test_question_types(question, kind) -> None:
    assert easy_vqa.question_type(question) == kind
