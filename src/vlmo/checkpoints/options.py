"""Options of an import; the command line imports them, and so they stand without torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class ImportOptions:
    """Options of an import, the same in Python and of `vlmo import`.

    Attributes:
        image_size: Pixels of an image's side; position tables are resized to it.
        text_length: Longest text in tokens, a multiple of 8; by default that of the file.
        num_attention_heads: For tensors that do not tell it.
        vocabulary: BERT's vocab.txt or a folder with it, by default from the model hub; for BEiT-3 its SentencePiece
            file.
        labels: Names of the answers or classes: a JSON list, JSON lines, one a line, or a prepared set.
        imagenet_pixels: The file takes pixels normalized by ImageNet's mean and deviation; by default as published
            files and folders need it, whatever a preprocessor_config.json says.
    """

    image_size: int | None = None
    text_length: int | None = None
    num_attention_heads: int | None = None
    vocabulary: Path | None = None
    labels: Path | None = None
    imagenet_pixels: bool = False
