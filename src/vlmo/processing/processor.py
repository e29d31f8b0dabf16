"""Images and texts as the model takes them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from PIL import Image
from transformers import BatchFeature, ViTImageProcessor
from transformers.processing_utils import ProcessorMixin

from vlmo.processing.wordpiece import build_tokenizer, load_vocabulary, train_vocabulary

# 8 keeps matrix shapes friendly to tensor cores, and the number of distinct shapes small.
PAD_MULTIPLE = 8
_TEXT_DEFAULTS = {"padding": True, "truncation": True, "pad_to_multiple_of": PAD_MULTIPLE}


class VLMoProcessor(ProcessorMixin):
    """Square resize for images, lower-cased WordPiece for texts (VLMo, "Input Representations").

    `processor(images=..., text=..., return_tensors="pt")` gives `pixel_values`, `input_ids` and `attention_mask`.
    Images are resized by bicubic interpolation without a crop, mean = std = 0.5; transparency is put on white. Texts
    are cut to `max_text_length` tokens (`[CLS]` and `[SEP]` stay) and padded to the longest one, rounded up to 8.

    Args:
        image_processor: A `ViTImageProcessor` or one that gives the same keys.
        tokenizer: A `BertTokenizer`; its `model_max_length` is `max_text_length`, a multiple of 8.
    """

    def __init__(self, image_processor: Any, tokenizer: Any) -> None:
        super().__init__(image_processor, tokenizer)

    @classmethod
    def from_vocabulary(cls, path: str | Path, *, image_size: int = 224, max_text_length: int = 40) -> Self:
        """A processor with BERT's vocabulary, from a `vocab.txt` or a folder that holds one.

        Raises:
            ValueError: the vocabulary or a size cannot be used.
        """
        return cls._from_tokens(load_vocabulary(path), image_size=image_size, max_text_length=max_text_length)

    @classmethod
    def train(
        cls,
        corpus: Iterable[str],
        *,
        vocab_size: int,
        min_frequency: int = 2,
        image_size: int = 224,
        max_text_length: int = 40,
    ) -> Self:
        """A processor whose WordPiece vocabulary is learnt from `corpus`; see `train_vocabulary`."""
        vocabulary = train_vocabulary(corpus, vocab_size=vocab_size, min_frequency=min_frequency)
        return cls._from_tokens(vocabulary, image_size=image_size, max_text_length=max_text_length)

    def with_sizes(self, *, image_size: int, max_text_length: int) -> Self:
        """The same vocabulary with another image size and text length."""
        return self._from_tokens(self.tokenizer.get_vocab(), image_size=image_size, max_text_length=max_text_length)

    @classmethod
    def _from_tokens(cls, vocabulary: dict[str, int], *, image_size: int, max_text_length: int) -> Self:
        if image_size < 1:
            raise ValueError(f"image_size is {image_size}: expected a positive number of pixels")
        if max_text_length < 1 or max_text_length % PAD_MULTIPLE:
            # Otherwise padding could make a text longer than the model has positions for.
            raise ValueError(f"max_text_length is {max_text_length}: expected a multiple of {PAD_MULTIPLE}")
        image_processor = ViTImageProcessor(
            do_convert_rgb=True,
            size={"height": image_size, "width": image_size},
            resample=Image.Resampling.BICUBIC,
            image_mean=[0.5, 0.5, 0.5],
            image_std=[0.5, 0.5, 0.5],
        )
        return cls(image_processor, build_tokenizer(vocabulary, max_text_length=max_text_length))

    @property
    def image_size(self) -> int:
        """Height and width of `pixel_values`."""
        return self.image_processor.size["height"]

    @property
    def max_text_length(self) -> int:
        """The most tokens of a text, `[CLS]` and `[SEP]` included."""
        return self.tokenizer.model_max_length

    @property
    def vocab_size(self) -> int:
        """Number of tokens."""
        return len(self.tokenizer)

    def __call__(self, images: Any = None, text: Any = None, **kwargs: Any) -> BatchFeature:
        """`pixel_values` for images, `input_ids` and `attention_mask` for texts; keyword arguments as in transformers.

        Args:
            images: A PIL image, an array or a tensor, or a list of these.
            text: A string or a list of strings.

        Raises:
            ValueError: neither is given, or one is of another type.
        """
        if images is None and text is None:
            raise ValueError("got neither images nor text: give at least one of them")
        if images is not None:
            _check_images(images)
        if text is not None:
            _check_text(text)
        defaults = {key: value for key, value in _TEXT_DEFAULTS.items() if key not in kwargs}
        text_kwargs: Any = {**defaults, **kwargs.pop("text_kwargs", {})}
        return super().__call__(images=images, text=text, text_kwargs=text_kwargs, **kwargs)


def _check_images(images: Any) -> None:
    entries = images if isinstance(images, (list, tuple)) else [images]
    if not entries:
        raise ValueError("images is an empty list: expected at least one image")
    for entry in entries:
        if not isinstance(entry, (Image.Image, np.ndarray, torch.Tensor)):
            raise ValueError(
                f"images holds a {type(entry).__name__}: expected PIL images, arrays or tensors; open files with PIL"
            )


def _check_text(text: Any) -> None:
    if isinstance(text, str):
        return
    if not isinstance(text, list) or not text:
        raise ValueError(f"text is {text!r:.80}: expected a string or a list of at least one string")
    for entry in text:
        if not isinstance(entry, str):
            raise ValueError(f"text holds a {type(entry).__name__}: expected strings only")
