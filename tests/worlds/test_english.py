import pytest

from vlmo.data.schema import FEATURES
from vlmo.data.sources import open_source
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
