"""Tokenizers: BERT's WordPiece, read from a vocabulary or trained on a corpus, and BEiT-3's SentencePiece."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

from vlmo.lazy import install_command

if TYPE_CHECKING:
    from transformers import BertTokenizer, PreTrainedTokenizerBase, TokenizersBackend

WORD_START = "\u2581"
"""SentencePiece's stand-in for the space before a word, as the first character of its first piece."""
# 8 keeps matrix shapes friendly to tensor cores, and the number of distinct shapes small.
PAD_MULTIPLE = 8
SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
CONTINUATION_PREFIX = "##"


def load_vocabulary(path: str | Path) -> dict[str, int]:
    """Tokens and ids of BERT's `vocab.txt` (a token a line), or of a folder with one; ValueError if it is not whole."""
    path = Path(path)
    file = path / "vocab.txt" if path.is_dir() else path
    if not file.is_file():
        raise ValueError(
            f"no vocabulary at {path}: expected BERT's vocab.txt, or a folder that holds it"
        )
    try:
        tokens = file.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not text in UTF-8: {error}") from error
    vocabulary = {token: number for number, token in enumerate(tokens)}
    if len(vocabulary) != len(tokens):
        raise ValueError(
            f"{file} lists {len(tokens) - len(vocabulary)} tokens more than once: ids would be ambiguous"
        )
    missing = [token for token in SPECIAL_TOKENS if token not in vocabulary]
    if missing:
        raise ValueError(
            f"{file} lacks {', '.join(missing)}: expected a WordPiece vocabulary in BERT's form"
        )
    return vocabulary


def train_vocabulary(
    corpus: Iterable[str], *, vocab_size: int, min_frequency: int = 2
) -> dict[str, int]:
    """Learn a lower-cased WordPiece vocabulary, the same for the same corpus every time.

    ValueError for an empty corpus, or a size below the number of special tokens and characters.

    Args:
        corpus: Texts; held in memory, because training reads them twice.
        vocab_size: Most tokens to learn, special tokens included. A small corpus may yield fewer.
        min_frequency: Pairs of pieces seen less often are not joined.
    """
    texts = list(corpus)
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    words = set()
    for text in texts:
        normalized = tokenizer.normalizer.normalize_str(text)
        words.update(word for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(normalized))
    if not words:
        raise ValueError(
            f"cannot train a vocabulary: the corpus of {len(texts)} texts holds no word"
        )
    later_characters = set().union(*(word[1:] for word in words))
    continuations = sorted(CONTINUATION_PREFIX + character for character in later_characters)
    characters = later_characters | {word[0] for word in words}
    smallest = len(SPECIAL_TOKENS) + len(continuations) + len(characters)
    if vocab_size < smallest:
        raise ValueError(
            f"vocab_size is {vocab_size}, but special tokens and single characters alone are {smallest}"
        )
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
    """BERT's lower-casing tokenizer: `[CLS]` first, `[SEP]` last, texts cut."""
    from transformers import BertTokenizer

    return BertTokenizer(
        vocab=vocabulary,
        do_lower_case=True,
        model_max_length=max_text_length,
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
    )


def load_sentencepiece(path: str | Path, *, max_text_length: int) -> TokenizersBackend:
    """BEiT-3's tokenizer from `beit3.spm`: `<s> pieces </s>`, cased, cut to `max_text_length` tokens with both.

    Ids follow fairseq: `<s>` 0, `<pad>` 1, `</s>` 2, `<unk>` 3, then every other piece one above
    its number in the file, and `<mask>` last. The file's 64,000 pieces give 64,002 tokens; BEiT-3's
    table has 64,010 rows, of which eight were never used (microsoft/unilm, issue 1318). Texts are
    cut as the `sentencepiece` package does; `tokenizers` may lose a combining mark behind a
    character that the file's normalization replaces.

    Raises:
        ValueError: No such file, or not a unigram model that begins with `<unk>`, `<s>`, `</s>`.
        ModuleNotFoundError: `protobuf`, which reads the file, is not installed.
    """
    from transformers import TokenizersBackend
    from transformers.convert_slow_tokenizer import SpmConverter

    proto = _read_sentencepiece(Path(path))
    _number_as_fairseq(proto)
    vocabulary = [(piece.piece, piece.score) for piece in proto.pieces]
    tokenizer: Any = SpmConverter.build_tokenizer_from_spm_proto(proto, vocabulary)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> </s> $B </s>",
        special_tokens=[("<s>", 0), ("</s>", 2)],
    )
    return TokenizersBackend(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        cls_token="<s>",
        sep_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>",
        mask_token="<mask>",
        model_max_length=max_text_length,
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
    )


def _number_as_fairseq(proto: Any) -> None:
    """Put the special tokens of a SentencePiece model in fairseq's order, and a mask at the end."""
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    pieces = list(proto.pieces)[3:]  # behind <unk>, <s>, </s>
    del proto.pieces[:]
    for token in special:
        proto.pieces.add(piece=token)
    proto.pieces.extend(pieces)
    proto.pieces.add(piece="<mask>")
    proto.trainer_spec.unk_id = special.index("<unk>")


def _read_sentencepiece(path: Path) -> Any:
    if not path.is_file():
        raise ValueError(
            f"no SentencePiece file at {path}: expected beit3.spm, which BEiT-3's authors publish"
        )
    try:
        from google.protobuf.message import DecodeError
        from transformers.convert_slow_tokenizer import import_protobuf

        # The classes of this module are made when it is imported.
        messages: Any = import_protobuf()
    except ImportError as error:
        command = install_command("beit3")
        raise ModuleNotFoundError(
            f"reading {path} needs the package protobuf. Install it with: {command}"
        ) from error
    proto = messages.ModelProto()
    try:
        proto.ParseFromString(path.read_bytes())
    except DecodeError as error:
        raise ValueError(
            f"{path} is no SentencePiece file, or it is cut off; expected BEiT-3's beit3.spm"
        ) from error
    kind = proto.trainer_spec.model_type
    first = [piece.piece for piece in proto.pieces[:3]]
    if first != ["<unk>", "<s>", "</s>"] or kind != 1:
        raise ValueError(
            f"{path} has model type {kind} and begins with {', '.join(first) or 'no piece'}; expected a unigram "
            "model (type 1) that begins with <unk>, <s>, </s>"
        )
    return proto


def continuation_flags(tokenizer: PreTrainedTokenizerBase) -> Bool[np.ndarray, "vocab"]:
    """True for ids whose token continues a word: `##...` of WordPiece, or no leading space mark of SentencePiece."""
    from transformers import (
        BertTokenizer,
        # This import is slow, and the settings of a recipe are shown without it.
    )

    is_wordpiece = isinstance(tokenizer, BertTokenizer)
    flags = np.zeros(len(tokenizer), dtype=bool)
    for token, number in tokenizer.get_vocab().items():
        if is_wordpiece:
            flags[number] = token.startswith(CONTINUATION_PREFIX) and token != CONTINUATION_PREFIX
        else:
            flags[number] = not token.startswith(WORD_START)
    return flags & ~special_flags(tokenizer)


def special_flags(tokenizer: PreTrainedTokenizerBase) -> Bool[np.ndarray, "vocab"]:
    """True for ids of special tokens (padding, unknown, first, last, mask)."""
    flags = np.zeros(len(tokenizer), dtype=bool)
    flags[tokenizer.all_special_ids] = True
    return flags
