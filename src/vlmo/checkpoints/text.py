"""The text side of an import: how long texts may be, and the tokenizer that belongs to the word table."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url
from huggingface_hub.errors import HTTPError, LocalEntryNotFoundError
from torch import Tensor
from transformers import BeitImageProcessor

from vlmo.checkpoints.conversion import Conversion
from vlmo.checkpoints.shapes import DEFAULT_TEXT_LENGTH
from vlmo.model import VLMoConfig
from vlmo.processing import VLMoProcessor, image_processor_for
from vlmo.processing.processor import PAD_MULTIPLE

_BERT_VOCABULARY = ("google-bert/bert-base-uncased", "vocab.txt", 30522)
_PATIENCE = 5.0  # seconds until the hub has answered
# BEiT-3's table has 64,010 rows for the 64,002 tokens of its file.
_MAX_SPARE_ROWS = 8
_TEXT_POSITIONS, _WORDS = "vlmo.text_embeddings.positions", "vlmo.text_embeddings.words.weight"


def fit_text(
    conversion: Conversion,
    config: VLMoConfig,
    weights: dict[str, Tensor],
    *,
    asked: int | None,
    vocabulary: str | Path | None,
    notes: list[str],
) -> int | None:
    """Longest text of the processor, None without a text side; cuts absolute positions to a length that was asked for.

    Raises:
        ValueError: The length cannot be had, or there is no text side to have it.
    """
    if conversion.text is None and vocabulary is None:
        if asked is not None:
            raise ValueError("a text length was given, but this model has no text side; give --vocabulary too")
        return None
    limit = config.max_text_positions
    if asked is None:
        wanted = min(conversion.max_text_length or DEFAULT_TEXT_LENGTH, limit)
        length = wanted - wanted % PAD_MULTIPLE
        if length != wanted:
            notes.append(f"texts of up to {length} tokens: of {wanted} in the file, the multiple of {PAD_MULTIPLE}")
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
    conversion: Conversion,
    config: VLMoConfig,
    *,
    vocabulary: str | Path | None,
    length: int | None,
    notes: list[str],
) -> VLMoProcessor | BeitImageProcessor:
    """The processor of the new folder; of pictures only where `length` is None.

    Raises:
        ValueError: No vocabulary could be had, or it does not belong to the word table.
    """
    if length is None:
        notes.append("no text side in the file and no --vocabulary: the folder's processor takes pictures only")
        return image_processor_for(config.image_size)
    if conversion.text == "sentencepiece":
        if vocabulary is None:
            raise ValueError("this model reads SentencePiece; give the file that came with it: --vocabulary beit3.spm")
        processor = VLMoProcessor.from_sentencepiece(vocabulary, image_size=config.image_size, max_text_length=length)
    else:
        source = _hub_vocabulary(config) if vocabulary is None else vocabulary
        processor = VLMoProcessor.from_vocabulary(source, image_size=config.image_size, max_text_length=length)
    if _WORDS not in conversion.weights:
        config.vocab_size, config.pad_token_id = processor.vocab_size, processor.tokenizer.pad_token_id
        return processor
    spare = config.vocab_size - processor.vocab_size
    allowed = _MAX_SPARE_ROWS if conversion.text == "sentencepiece" else 0
    if not 0 <= spare <= allowed or processor.tokenizer.pad_token_id != config.pad_token_id:
        raise ValueError(
            f"the vocabulary has {processor.vocab_size} tokens, padding is number {processor.tokenizer.pad_token_id};"
            f" the checkpoint's word table has {config.vocab_size} rows, padding is number {config.pad_token_id}. Give"
            " the vocabulary that it was trained with (--vocabulary)"
        )
    return processor


def _hub_vocabulary(config: VLMoConfig) -> Path:
    repository, file, size = _BERT_VOCABULARY
    if config.vocab_size != size:
        raise ValueError(
            f"the checkpoint's word table has {config.vocab_size} rows, not BERT's {size}: give its vocab.txt"
            " (--vocabulary)"
        )
    try:
        with _quiet_hub():
            return Path(_fetch(repository, file))
    except (OSError, HTTPError) as problem:
        raise ValueError(
            f"{file} of {repository} could not be fetched ({type(problem).__name__}): give BERT's vocab.txt, or a"
            " folder that holds it (--vocabulary)"
        ) from None


def _fetch(repository: str, file: str) -> str:
    """The file out of the cache, or else from the hub, if that answers at once: a download tries for half a minute."""
    try:
        return hf_hub_download(repository, file, local_files_only=True)
    except LocalEntryNotFoundError:
        get_hf_file_metadata(hf_hub_url(repository, file), timeout=_PATIENCE)
        return hf_hub_download(repository, file, etag_timeout=_PATIENCE)


@contextmanager
def _quiet_hub() -> Iterator[None]:
    """Keeps the hub's library from logging each try; what comes of them is raised."""
    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
