import numpy as np
import pytest

from vlmo.data import builtin
from vlmo.data.builtin import easy_vqa, english
from vlmo.data.builtin.english import prose_sentences
from vlmo.data.schema import FEATURES, QUESTION_FEATURES, Built, make_row
from vlmo.data.sources import decode_image, open_source


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
def test_english_text(cache_dir) -> None:
    train = open_source("english-text", split="train", cache_dir=cache_dir)
    test = open_source("english-text", split="test", cache_dir=cache_dir)
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


def test_easy_vqa(cache_dir) -> None:
    train = open_source("easy-vqa", split="train", cache_dir=cache_dir)
    test = open_source("easy-vqa", split="test", cache_dir=cache_dir)
    assert (len(train), len(test)) == (38_575, 9_673)
    assert len(set(train["image_id"][:])) == 4_000
    assert len(set(test["image_id"][:])) == 1_000
    assert not set(train["image_id"][:]) & set(test["image_id"][:])
    assert train.features == QUESTION_FEATURES
    assert len({*train["question_id"][:], *test["question_id"][:]}) == 38_575 + 9_673
    first = train[0]
    assert (first["captions"], first["question"], first["answers"]) == ([], "what is the blue shape?", ["rectangle"])
    assert (first["question_type"], first["answer_type"]) == ("what shape", "other")
    picture = decode_image(first["image"])
    assert picture.size == (64, 64)
    # The blue rectangle of the first question is there.
    assert any(blue > red + 60 and blue > green + 60 for _, (red, green, blue) in picture.getcolors(4096))


def test_easy_vqa_answers_are_numbered_by_the_list(cache_dir) -> None:
    labels = builtin.labels("easy-vqa")
    assert len(labels) == 13
    for split in ("train", "test"):
        rows = open_source("easy-vqa", split=split, cache_dir=cache_dir)
        assert [[labels[number] for number in numbers] for numbers in rows["answer_labels"][:]] == rows["answers"][:]
        assert set(map(tuple, rows["answer_scores"][:])) == {(1.0,)}
        assert {answer for (answer,) in rows["answers"][:]} == set(labels)
    with pytest.raises(ValueError, match="english-text has neither answers"):
        builtin.labels("english-text")


def test_balanced_easy_vqa_thins_questions_for_a_yes_about_colours(cache_dir) -> None:
    whole, thinned = (
        open_source(name, split="train", cache_dir=cache_dir) for name in ("easy-vqa", "easy-vqa-balanced")
    )
    kept = set(thinned["question_id"][:])
    colours = {"black", "blue", "brown", "gray", "green", "red", "teal", "yellow"}
    rows = zip(*(whole[name][:] for name in ("question_id", "question", "answers")), strict=True)
    shares = {"yes": [], "no": []}
    for name, question, (answer,) in rows:
        if answer in shares and colours & set(question.rstrip("?").split()):
            shares[answer].append(name in kept)
        else:
            assert name in kept, question
    assert len(kept) == len(thinned) < len(whole)
    for answer, thinning in shares.items():  # the answer has no say in what goes
        assert np.mean(thinning) == pytest.approx(0.3, abs=0.02), answer
    test = [open_source(name, split="test", cache_dir=cache_dir) for name in ("easy-vqa", "easy-vqa-balanced")]
    assert test[0]["question_id"][:] == test[1]["question_id"][:]


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


def test_unknown_split_of_a_built_in_set(cache_dir) -> None:
    with pytest.raises(ValueError, match="easy-vqa: no split 'val'; it has test, train"):
        open_source("easy-vqa", split="val", cache_dir=cache_dir)


def small_build() -> dict[str, Built]:
    rows = [make_row("1", captions=["a text"], source="test", licence="CC0")]
    return {"easy-vqa": (FEATURES, {"train": rows})}


def test_cache_is_built_anew_when_a_package_changes(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(easy_vqa, "build", small_build)
    builtin.load("easy-vqa", split="train", cache_dir=tmp_path)
    builtin.load("easy-vqa", split="train", cache_dir=tmp_path)
    assert len(list((tmp_path / "builtin").iterdir())) == 1
    monkeypatch.setattr(builtin, "version", dict.fromkeys(easy_vqa.PACKAGES, "another").get)
    builtin.load("easy-vqa", split="train", cache_dir=tmp_path)
    assert len(list((tmp_path / "builtin").iterdir())) == 2


def test_cache_folder_comes_from_the_environment(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(easy_vqa, "build", small_build)
    monkeypatch.setenv("VLMO_CACHE", str(tmp_path / "here"))
    builtin.load("easy-vqa", split="train")
    assert (tmp_path / "here" / "builtin").is_dir()


def test_failed_build_leaves_nothing(tmp_path, monkeypatch) -> None:
    def half_build() -> dict:
        return small_build() | {"broken": (FEATURES, {"train": None})}

    monkeypatch.setattr(easy_vqa, "build", half_build)
    with pytest.raises(ValueError, match="Keys mismatch"):
        builtin.load("easy-vqa", split="train", cache_dir=tmp_path)
    assert list((tmp_path / "builtin").iterdir()) == []


def test_missing_package_says_how_to_install_it(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(english, "PACKAGES", ("no-such-package",))
    with pytest.raises(ModuleNotFoundError, match=r"no-such-package.*pip install .*\[quickstart\]'"):
        builtin.load("english-text", split="train", cache_dir=tmp_path)
