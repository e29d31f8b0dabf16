import pytest
from datasets import Dataset, DatasetDict

from vlmo.data import builtin
from vlmo.data.builtin import easy_vqa, english
from vlmo.data.builtin.english import prose_sentences
from vlmo.data.schema import FEATURES, text_row
from vlmo.data.sources import decode_image, open_source


@pytest.fixture(scope="module")
def cache_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


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
    sentences = [captions[0] for captions in [*train["captions"], *test["captions"]]]
    assert len(set(sentences)) == len(sentences)
    assert len({*train["image_id"], *test["image_id"]}) == len(sentences)
    assert set(train["source"]) == {"python", "easy-vqa"}
    assert not any(character in sentence for sentence in sentences for character in "`*\n_=<>{}")
    assert all(4 <= len(sentence.split()) <= 50 for sentence in sentences)


def test_easy_vqa(cache_dir) -> None:
    train = open_source("easy-vqa", split="train", cache_dir=cache_dir)
    test = open_source("easy-vqa", split="test", cache_dir=cache_dir)
    assert (len(train), len(test)) == (38_575, 9_673)
    assert len(set(train["image_id"])) == 4_000
    assert len(set(test["image_id"])) == 1_000
    assert not set(train["image_id"]) & set(test["image_id"])
    assert set(FEATURES) < set(train.features)
    assert train[0]["captions"] == []
    assert (train[0]["question"], train[0]["answer"]) == ("what is the blue shape?", "rectangle")
    assert len(set(train["answer"])) == 13
    picture = decode_image(train[0]["image"])
    assert picture.size == (64, 64)
    # The blue rectangle of the first question is there.
    assert any(blue > red + 60 and blue > green + 60 for _, (red, green, blue) in picture.getcolors(4096))


def test_easy_vqa_questions(cache_dir) -> None:
    train = open_source("easy-vqa-questions", split="train", cache_dir=cache_dir)
    test = open_source("easy-vqa-questions", split="test", cache_dir=cache_dir)
    assert len(train) + len(test) == 107
    assert not {captions[0] for captions in train["captions"]} & {captions[0] for captions in test["captions"]}
    everything = open_source("english-text", split="test", cache_dir=cache_dir)
    assert {captions[0] for captions in test["captions"]} <= {captions[0] for captions in everything["captions"]}


def test_unknown_split_of_a_built_in_set(cache_dir) -> None:
    with pytest.raises(ValueError, match="easy-vqa: no split 'val'; it has test, train"):
        open_source("easy-vqa", split="val", cache_dir=cache_dir)


def small_build() -> dict[str, DatasetDict]:
    rows = [text_row("a text", image_id="1", source="test", licence="CC0")]
    return {"easy-vqa": DatasetDict({"train": Dataset.from_list(rows, features=FEATURES)})}


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
        return small_build() | {"broken": {"train": None}}

    monkeypatch.setattr(easy_vqa, "build", half_build)
    with pytest.raises(AttributeError):
        builtin.load("easy-vqa", split="train", cache_dir=tmp_path)
    assert list((tmp_path / "builtin").iterdir()) == []


def test_missing_package_says_how_to_install_it(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(english, "PACKAGES", ("no-such-package",))
    with pytest.raises(ModuleNotFoundError, match=r"no-such-package.*pip install 'vlmo\[quickstart\]'"):
        builtin.load("english-text", split="train", cache_dir=tmp_path)
