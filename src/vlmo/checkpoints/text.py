"""Text side of an import: the longest text, and the tokenizer that belongs to the word table."""

from __future__ import annotations

import logging
from pathlib import Path

from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url
from huggingface_hub.errors import HTTPError, LocalEntryNotFoundError
from transformers import BeitImageProcessor

from vlmo.checkpoints.layout import DEFAULT_TEXT_LENGTH, Conversion
from vlmo.processing import VLMoProcessor, image_processor_for
from vlmo.processing.processor import PAD_MULTIPLE

_BERT_VOCABULARY = ("google-bert/bert-base-uncased", "vocab.txt", 30522)
_PATIENCE = 5.0  # seconds until the hub has answered
# BEiT-3's table has 64,010 rows for the 64,002 tokens of its file.
_MAX_SPARE_ROWS = 8
_TEXT_POSITIONS, _WORDS = "vlmo.text_embeddings.positions", "vlmo.text_embeddings.words.weight"


def fit_text(conversion: Conversion, *, asked: int | None, vocabulary: str | Path | None) -> int | None:
    """Return the longest text of the processor, None without a text side; cut absolute positions to `asked`.

    Raises:
        ValueError: The model cannot read texts of this length, or has no text side.
    """
    config, weights = conversion.config, conversion.weights
    if conversion.text is None and vocabulary is None:
        if asked is not None:
            raise ValueError("a text length was given, but this model has no text side; give --vocabulary too")
        return None
    limit = config.max_text_positions
    if asked is None:
        wanted = min(conversion.max_text_length or DEFAULT_TEXT_LENGTH, limit)
        length = wanted - wanted % PAD_MULTIPLE
        if length != wanted:
            conversion.notes.append(
                f"texts of up to {length} tokens: of {wanted} in the file, the multiple of {PAD_MULTIPLE}"
            )
        return length
    if asked > limit:
        raise ValueError(f"text length {asked} is longer than the {limit} positions of the model")
    if asked < PAD_MULTIPLE or asked % PAD_MULTIPLE:
        raise ValueError(f"text length {asked} is no multiple of {PAD_MULTIPLE}")
    if config.position_embedding == "absolute":
        config.max_text_positions = asked
        if _TEXT_POSITIONS in weights:
            weights[_TEXT_POSITIONS] = weights[_TEXT_POSITIONS][:asked]
    return asked


def make_processor(
    conversion: Conversion, *, vocabulary: str | Path | None, length: int | None
) -> VLMoProcessor | BeitImageProcessor:
    """Return the processor of the new folder, of images alone where `length` is None.

    Raises:
        ValueError: There is no vocabulary, or it does not belong to the word table.
    """
    config = conversion.config
    if length is None:
        conversion.notes.append("no text side in the file and no --vocabulary: the processor takes images only")
        return image_processor_for(config.image_size)
    sizes = {"image_size": config.image_size, "max_text_length": length}
    allowed = 0
    if conversion.text == "sentencepiece":
        if vocabulary is None:
            raise ValueError("this model reads SentencePiece; give the file that came with it: --vocabulary beit3.spm")
        allowed = _MAX_SPARE_ROWS
        processor = VLMoProcessor.from_sentencepiece(vocabulary, **sizes)
    else:
        processor = VLMoProcessor.from_vocabulary(vocabulary or _hub_vocabulary(config.vocab_size), **sizes)
    padding = processor.tokenizer.pad_token_id
    if _WORDS not in conversion.weights:
        config.vocab_size, config.pad_token_id = processor.vocab_size, padding
    elif not 0 <= config.vocab_size - processor.vocab_size <= allowed or padding != config.pad_token_id:
        raise ValueError(
            f"the vocabulary has {processor.vocab_size} tokens, padding is number {padding}; the checkpoint's word"
            f" table has {config.vocab_size} rows, padding is number {config.pad_token_id}. Give the vocabulary of its"
            " training (--vocabulary)"
        )
    return processor


def _hub_vocabulary(num_words: int) -> str:
    """Return BERT's vocabulary from the cache, or else from the hub if that answers within seconds."""
    repository, file, size = _BERT_VOCABULARY
    if num_words != size:
        raise ValueError(
            f"the checkpoint's word table has {num_words} rows, not BERT's {size}: give its vocab.txt (--vocabulary)"
        )
    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    logger.setLevel(logging.CRITICAL)  # it logs each try; the outcome is raised
    try:
        try:
            return hf_hub_download(repository, file, local_files_only=True)
        except LocalEntryNotFoundError:
            get_hf_file_metadata(hf_hub_url(repository, file), timeout=_PATIENCE)
            return hf_hub_download(repository, file, etag_timeout=_PATIENCE)
    except (OSError, HTTPError) as problem:
        raise ValueError(
            f"{file} of {repository} could not be fetched ({type(problem).__name__}): give BERT's vocab.txt, or a"
            " folder that holds it (--vocabulary)"
        ) from None
    finally:
        logger.setLevel(level)
