"""WordPiece vocabularies: read from BERT's files or trained on a corpus, and the tokenizer that uses them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

from vlmo.processing.sentencepiece import WORD_START

if TYPE_CHECKING:
    from transformers import BertTokenizer, PreTrainedTokenizerBase

# 8 keeps matrix shapes friendly to tensor cores, and the number of distinct shapes small.
PAD_MULTIPLE = 8
SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
CONTINUATION_PREFIX = "##"


def load_vocabulary(path: str | Path) -> dict[str, int]:
    """Tokens and ids of BERT's `vocab.txt` (a token a line), or of a folder with one; ValueError if it is not whole."""
    path = Path(path)
    file = path / "vocab.txt" if path.is_dir() else path
    if not file.is_file():
        raise ValueError(f"no vocabulary at {path}: expected BERT's vocab.txt, or a folder that holds it")
    tokens = file.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    vocabulary = {token: number for number, token in enumerate(tokens)}
    if len(vocabulary) != len(tokens):
        raise ValueError(f"{file} lists {len(tokens) - len(vocabulary)} tokens more than once: ids would be ambiguous")
    if missing := [token for token in SPECIAL_TOKENS if token not in vocabulary]:
        raise ValueError(f"{file} lacks {', '.join(missing)}: expected a WordPiece vocabulary in BERT's form")
    return vocabulary


def train_vocabulary(corpus: Iterable[str], *, vocab_size: int, min_frequency: int = 2) -> dict[str, int]:
    """A lower-cased WordPiece vocabulary, the same for the same corpus every time.

    Args:
        corpus: Texts; held in memory, because training reads them twice.
        vocab_size: The most tokens to learn, special tokens included. A small corpus may yield fewer.
        min_frequency: Pairs of pieces seen less often are not joined.

    Raises:
        ValueError: an empty corpus, or a size below the number of special tokens and characters.
    """
    texts = list(corpus)
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    words = {
        word
        for text in texts
        for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(tokenizer.normalizer.normalize_str(text))
    }
    if not words:
        raise ValueError(f"cannot train a vocabulary: the corpus of {len(texts)} texts holds no word")
    continuations = sorted({CONTINUATION_PREFIX + character for word in words for character in word[1:]})
    smallest = len(SPECIAL_TOKENS) + len(continuations) + len({character for word in words for character in word})
    if vocab_size < smallest:
        raise ValueError(f"vocab_size is {vocab_size}, but special tokens and single characters alone are {smallest}")
    # The trainer numbers continuation characters in the order of a randomly seeded hash table and breaks ties by
    # number, so two runs differ. Declared as special tokens, they are numbered first, and nothing random is left.
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        min_frequency=min_frequency,
        special_tokens=[*SPECIAL_TOKENS, *continuations],
        continuing_subword_prefix=CONTINUATION_PREFIX,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return dict(sorted(tokenizer.get_vocab().items(), key=lambda item: item[1]))


def build_tokenizer(vocabulary: dict[str, int], *, max_text_length: int) -> BertTokenizer:
    """BERT's lower-casing tokenizer: `[CLS]` first, `[SEP]` last, texts cut; ValueError for a length below 3."""
    if max_text_length < 3:
        raise ValueError(f"max_text_length is {max_text_length}: expected at least 3 ([CLS], one token, [SEP])")
    from transformers import BertTokenizer

    return BertTokenizer(
        vocab=vocabulary,
        do_lower_case=True,
        model_max_length=max_text_length,
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
    )


def continuation_flags(tokenizer: PreTrainedTokenizerBase) -> Bool[np.ndarray, "vocab"]:
    """True for ids whose token continues a word: `##...` of WordPiece, or no leading space mark of SentencePiece."""
    from transformers import BertTokenizer  # slow to import, and the settings of a recipe are shown without it

    flags = np.zeros(len(tokenizer), dtype=bool)
    wordpiece = isinstance(tokenizer, BertTokenizer)
    for token, number in tokenizer.get_vocab().items():
        if wordpiece:
            flags[number] = token.startswith(CONTINUATION_PREFIX) and len(token) > len(CONTINUATION_PREFIX)
        else:
            flags[number] = not token.startswith(WORD_START)
    return flags & ~special_flags(tokenizer)


def special_flags(tokenizer: PreTrainedTokenizerBase) -> Bool[np.ndarray, "vocab"]:
    """True for ids of special tokens (padding, unknown, first, last, mask)."""
    flags = np.zeros(len(tokenizer), dtype=bool)
    flags[tokenizer.all_special_ids] = True
    return flags
