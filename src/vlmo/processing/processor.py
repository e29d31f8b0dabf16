"""Images and texts as the model takes them."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, Self

import numpy as np
from PIL import Image
from transformers import BatchFeature, BeitImageProcessor, PreTrainedTokenizerBase
from transformers.image_utils import get_image_size
from transformers.processing_utils import ProcessorMixin

from vlmo.processing.images import open_upright, to_rgb
from vlmo.processing.tokenizers import (
    PAD_MULTIPLE,
    build_tokenizer,
    load_sentencepiece,
    load_vocabulary,
    train_vocabulary,
)
from vlmo.processing.transforms import EvalTransform, Shape
from vlmo.released import find_model

_TEXT_DEFAULTS = {"padding": True, "truncation": True, "pad_to_multiple_of": PAD_MULTIPLE}


def image_processor_for(
    image_size: int, *, aspect_patch_size: int | None = None
) -> BeitImageProcessor:
    """Return the image half of `VLMoProcessor`, for a model that reads no text; ValueError for a size below 1.

    With `aspect_patch_size`, the model's patch size, images nearly keep their aspect ratio
    (`patch_shapes`).
    """
    if image_size < 1:
        raise ValueError(f"image_size is {image_size}: expected a positive number of pixels")
    # ViT's processor does the same to images, but cannot make segments of logits.
    processor: Any = BeitImageProcessor(
        do_convert_rgb=True,
        size={"height": image_size, "width": image_size},
        resample=Image.Resampling.BICUBIC,
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
    )
    if aspect_patch_size is not None:
        processor.aspect_patch_size = aspect_patch_size
    return processor


class VLMoProcessor(ProcessorMixin):
    """Resize for images, WordPiece (VLMo, "Input Representations") or SentencePiece (BEiT-3) for texts.

    `processor(images=..., text=..., return_tensors="pt")` gives `pixel_values`, `input_ids` and
    `attention_mask`. Images are resized by bicubic interpolation without a crop, to a square if the
    image processor does not say otherwise (`size`, or `aspect_patch_size`), mean = std = 0.5;
    transparency is put on white. Texts are cut to `max_text_length` tokens (the first and the last
    one stay: `[CLS]` and `[SEP]`, or `<s>` and `</s>`) and padded to the longest one, rounded up to
    8. WordPiece lower-cases, SentencePiece does not.

    Args:
        image_processor: A `BeitImageProcessor` or one that gives the same keys.
        tokenizer: A `BertTokenizer` or what `load_sentencepiece` gives; its `model_max_length`, a
            multiple of 8, is `max_text_length`.

    Raises:
        ValueError: `max_text_length` is no multiple of 8, or the tokenizer has special tokens
            alone, as transformers makes it where the vocabulary is missing.
    """

    def __init__(
        self, image_processor: BeitImageProcessor, tokenizer: PreTrainedTokenizerBase
    ) -> None:
        if len(tokenizer) <= len(tokenizer.all_special_tokens):
            raise ValueError(
                f"the tokenizer knows no words beside its {len(tokenizer)} special tokens; its vocabulary "
                "(tokenizer.json or vocab.txt) is missing"
            )
        length = tokenizer.model_max_length
        # Padding could make a text longer than the model has positions for.
        if length < 1 or length % PAD_MULTIPLE:
            raise ValueError(
                f"max_text_length is {length}: expected a multiple of {PAD_MULTIPLE} above 0"
            )
        if not {"input_ids", "attention_mask"} <= {*tokenizer.model_input_names}:
            raise ValueError("model_input_names lacks input_ids or attention_mask")
        super().__init__(image_processor, tokenizer)

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | PathLike, *args: Any, **kwargs: Any
    ) -> Self:
        """Load from a folder, the hub, or by a model's name, such as "vlmo-small"; OSError without such a model.

        Arguments are those of transformers. Code in the folder is not run unless
        `trust_remote_code=True` is given.
        """
        # transformers would ask on a terminal, and wait.
        kwargs.setdefault("trust_remote_code", False)
        return super().from_pretrained(find_model(pretrained_model_name_or_path), *args, **kwargs)

    @classmethod
    def from_vocabulary(
        cls, path: str | Path, *, image_size: int = 224, max_text_length: int = 40
    ) -> Self:
        """A processor with BERT's `vocab.txt`, given as a file or its folder; ValueError if it or a size is wrong."""
        tokenizer = build_tokenizer(load_vocabulary(path), max_text_length=max_text_length)
        return cls(image_processor_for(image_size), tokenizer)

    @classmethod
    def from_sentencepiece(
        cls, path: str | Path, *, image_size: int = 224, max_text_length: int = 64
    ) -> Self:
        """A processor with BEiT-3's tokenizer (`load_sentencepiece`); ValueError for a wrong file or size."""
        return cls(
            image_processor_for(image_size),
            load_sentencepiece(path, max_text_length=max_text_length),
        )

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
        """A processor whose WordPiece vocabulary is learned from `corpus`; see `train_vocabulary`."""
        vocabulary = train_vocabulary(corpus, vocab_size=vocab_size, min_frequency=min_frequency)
        tokenizer = build_tokenizer(vocabulary, max_text_length=max_text_length)
        return cls(image_processor_for(image_size), tokenizer)

    def with_sizes(self, *, image_size: int, max_text_length: int) -> Self:
        """The same tokenizer with another image size and text length."""
        tokenizer = copy.deepcopy(self.tokenizer)
        tokenizer.model_max_length = max_text_length
        # What a saved tokenizer was last asked for would win over the new length, also when it is saved again.
        tokenizer.init_kwargs.pop("max_length", None)
        tokenizer.backend_tokenizer.no_truncation()
        return type(self)(image_processor_for(image_size), tokenizer)

    @property
    def image_size(self) -> int:
        """Height of `pixel_values`, and of squares the width; with `aspect_patch_size` those of a square image."""
        return self.image_processor.size["height"]

    @property
    def max_text_length(self) -> int:
        """The most tokens of a text, the first and the last one included."""
        return self.tokenizer.model_max_length

    @property
    def vocab_size(self) -> int:
        """Number of tokens."""
        return len(self.tokenizer)

    def __call__(self, images: Any = None, text: Any = None, **kwargs: Any) -> BatchFeature:
        """`pixel_values` for images, `input_ids` and `attention_mask` for texts; keyword arguments as in transformers.

        Args:
            images: A PIL image, an array, a tensor or the path of a file, or a list of these.

        Raises:
            ValueError: Neither is given, a list is empty, a file has more than 64 million pixels,
                or images that keep their aspect ratio have several shapes.
            OSError: A file cannot be read, or holds no image.
        """
        has_empty_list = any(isinstance(inputs, list) and not inputs for inputs in (images, text))
        if has_empty_list or (images is None and text is None):
            raise ValueError(
                "got neither images nor text, or an empty list: give at least one of them"
            )
        if isinstance(images, (str, PathLike, Image.Image)):
            images = [images]
        if isinstance(images, (list, tuple)):
            # Upright and on white: transformers knows neither EXIF nor transparency.
            images = [_rgb_image(image) for image in images]
        if (
            images is not None
            and "size" not in kwargs
            and getattr(self.image_processor, "aspect_patch_size", None)
        ):
            height, width = self._common_shape(
                images if isinstance(images, (list, tuple)) else [images]
            )
            kwargs["size"] = {"height": height, "width": width}
        text_kwargs = {name: value for name, value in _TEXT_DEFAULTS.items() if name not in kwargs}
        text_kwargs |= kwargs.pop("text_kwargs", {})
        return super().__call__(images=images, text=text, text_kwargs=text_kwargs, **kwargs)

    def _common_shape(self, images: Sequence[object]) -> Shape:
        """Return the shape that images which keep their aspect ratio get; ValueError for several."""
        transform = EvalTransform.of(self)
        shapes = {transform.shape(_size(image)) for image in images}
        if len(shapes) > 1:
            raise ValueError(
                f"images keep their aspect and get several shapes, {sorted(shapes)}; pass one size"
            )
        return shapes.pop()


def _rgb_image(image: object) -> object:
    """Return a file or a PIL image as one in RGB, and arrays and tensors as they are."""
    if isinstance(image, (str, PathLike)):
        image = open_upright(image)
    return to_rgb(image) if isinstance(image, Image.Image) else image


def _size(image: object) -> tuple[int, int]:
    # Pillow has width first.
    if isinstance(image, Image.Image):
        return image.size
    height, width = get_image_size(np.asarray(image))
    return width, height
