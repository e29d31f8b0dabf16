"""BEiT-3's tokenizer, built from the SentencePiece file that its authors publish (`beit3.spm`).

The file is a unigram model whose first pieces are `<unk>`, `<s>` and `</s>`. The model's ids follow fairseq's habit:
`<s>` 0, `<pad>` 1, `</s>` 2, `<unk>` 3, then every other piece one above its number in the file, and `<mask>` last. A
file of 64,000 pieces thus gives 64,002 tokens; BEiT-3's table has 64,010 rows, of which eight were never used
(microsoft/unilm, issue 1318).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from vlmo.lazy import install_command

if TYPE_CHECKING:
    from transformers import TokenizersBackend

WORD_START = "\u2581"
"""Stands for the space before a word, as the first character of its first piece."""

_FIRST_PIECES = ["<unk>", "<s>", "</s>"]
_SPECIAL_TOKENS = ("<s>", "<pad>", "</s>", "<unk>")
_UNIGRAM, _USER_DEFINED = 1, 4  # numbers of SentencePiece's format


def load_sentencepiece(path: str | Path, *, max_text_length: int) -> TokenizersBackend:
    """A tokenizer that gives `<s> pieces </s>`, without lower-casing, cut to `max_text_length` tokens with both.

    It cuts texts as the `sentencepiece` package does. Where a combining mark follows a character that the file's
    normalisation replaces (a fraction sign with a cedilla), the mark may be lost: a known limit of `tokenizers`.

    Raises:
        ValueError: No such file, or not a unigram model of this layout.
        ModuleNotFoundError: `protobuf`, which reads the file, is not installed.
    """
    from transformers import TokenizersBackend

    proto = _read(Path(path))
    pieces = [(piece.piece, piece.score) for piece in proto.pieces]
    vocabulary = [(token, 0.0) for token in _SPECIAL_TOKENS] + pieces[len(_FIRST_PIECES) :] + [("<mask>", 0.0)]
    unknown = _SPECIAL_TOKENS.index("<unk>")
    tokenizer = Tokenizer(models.Unigram(vocabulary, unknown, byte_fallback=proto.trainer_spec.byte_fallback))
    # The file's own character map, then its treatment of spaces.
    spec = proto.normalizer_spec
    steps: list[normalizers.Normalizer] = []
    if spec.precompiled_charsmap:
        steps.append(normalizers.Precompiled(spec.precompiled_charsmap))
    if spec.remove_extra_whitespaces:
        steps += [normalizers.Replace(Regex(r"\A +| +\z"), ""), normalizers.Replace(Regex(" {2,}"), " ")]
    tokenizer.normalizer = normalizers.Sequence(steps)
    # Spaces as `WORD_START`, not split into words: pieces of some files hold several. Pieces that the file's maker
    # declared are cut out whole, the longest first.
    prepend = "always" if spec.add_dummy_prefix else "never"
    cuts: list[pre_tokenizers.PreTokenizer] = [
        pre_tokenizers.Metaspace(replacement=WORD_START, prepend_scheme=prepend, split=False)
    ]
    declared: list[str] = [piece.piece for piece in proto.pieces if piece.type == _USER_DEFINED]
    if declared:
        pattern = Regex("|".join(re.escape(piece) for piece in sorted(declared, key=len, reverse=True)))
        cuts.append(pre_tokenizers.Split(pattern, behavior="isolated"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(cuts)
    spaces: decoders.Decoder = decoders.Metaspace(replacement=WORD_START, prepend_scheme=prepend)
    bytes_first = proto.trainer_spec.byte_fallback
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), spaces]) if bytes_first else spaces
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> </s> $B </s>",
        special_tokens=[(token, _SPECIAL_TOKENS.index(token)) for token in ("<s>", "</s>")],
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


def _read(path: Path) -> Any:
    """The file's message, checked to be of the layout that this module knows."""
    if not path.is_file():
        raise ValueError(f"no SentencePiece file at {path}: expected beit3.spm, which BEiT-3's authors publish")
    try:
        from google.protobuf.message import DecodeError
        from transformers.convert_slow_tokenizer import import_protobuf

        messages: Any = import_protobuf()  # a module whose classes are made when it is imported
    except ImportError as error:
        raise ModuleNotFoundError(
            f"reading {path} needs the package protobuf. Install it with: {install_command('beit3')}"
        ) from error
    proto = messages.ModelProto()
    try:
        proto.ParseFromString(path.read_bytes())
    except DecodeError as error:
        raise ValueError(f"{path} is no SentencePiece file, or it is cut off; expected BEiT-3's beit3.spm") from error
    first = [piece.piece for piece in proto.pieces[: len(_FIRST_PIECES)]]
    if first != _FIRST_PIECES or proto.trainer_spec.model_type != _UNIGRAM:
        raise ValueError(
            f"{path} has model type {proto.trainer_spec.model_type} and begins with {', '.join(first) or 'no piece'}; "
            f"expected a unigram model (type {_UNIGRAM}) that begins with {', '.join(_FIRST_PIECES)}"
        )
    return proto
