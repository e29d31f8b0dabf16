"""Samples of streams to examples: pictures alone, texts alone, and pairs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from vlmo.data.collate import Example, collate
from vlmo.data.decoding import EncodedPicture
from vlmo.data.examples import ImageTransform, WordMasks
from vlmo.data.masking import BlockMaskConfig
from vlmo.data.sampler import sample_generator
from vlmo.data.stream.records import Sample
from vlmo.types import Batch

if TYPE_CHECKING:
    from transformers import BertTokenizer


class StreamExamples:
    """What `ImageExamples`, `TextExamples` and `PairExamples` make of rows, out of one sample at a time.

    Args:
        seed: The run's.
        transform: Makes pixel values; None leaves pictures out.
        mask: What masked image modelling hides; None hides nothing.
        tokenizer: The processor's; None leaves texts out.
        mlm_probability: Share of the tokens to mask; None leaves the masked copy out.
        max_length: Tokens that are kept of a text; None: the tokenizer's own limit.
    """

    def __init__(
        self,
        *,
        seed: int,
        transform: ImageTransform | None = None,
        mask: BlockMaskConfig | None = None,
        tokenizer: BertTokenizer | None = None,
        mlm_probability: float | None = None,
        max_length: int | None = None,
    ) -> None:
        self._seed, self._transform, self._mask, self._tokenizer = seed, transform, mask, tokenizer
        self.pad_token_id: int = 0
        if tokenizer is not None:
            self._words = WordMasks(tokenizer, probability=mlm_probability, seed=seed)
            self._max_length = max_length or tokenizer.model_max_length
            self.pad_token_id = tokenizer.pad_token_id

    @property
    def reads_pictures(self) -> bool:
        """Whether a sample needs a picture."""
        return self._transform is not None

    def __call__(self, sample: Sample, epoch: int) -> Example:
        """The example that a visit to the sample in `epoch` gives.

        Raises:
            ValueError: It has no picture or text where one is needed, or they cannot be read.
        """
        number = sample.sample_id
        example = Example()
        if self._tokenizer is not None:
            example |= self._text(sample, self._tokenizer, epoch=epoch, number=number)
        if self._transform is not None:
            if sample.image is None:
                raise ValueError("it has no picture")
            picture = EncodedPicture({"bytes": sample.image, "path": None})
            generator = sample_generator(self._seed, epoch=epoch, index=number, purpose="image")
            example["image_id"] = number
            example["pixel_values"] = self._transform.pixels(picture, generator)
        if self._mask is not None:
            generator = sample_generator(self._seed, epoch=epoch, index=number, purpose="patches")
            example["bool_masked_pos"] = self._mask.draw(generator)
        example["sample_id"] = number
        return example

    def collate(self, examples: list[Example]) -> Batch:
        """A batch of such examples."""
        return collate(examples, pad_token_id=self.pad_token_id)

    def _text(self, sample: Sample, tokenizer: BertTokenizer, *, epoch: int, number: int) -> Example:
        captions = sample.captions
        if not captions:
            raise ValueError("it has no caption, or an empty one")
        choice = 0
        if len(captions) > 1:
            generator = sample_generator(self._seed, epoch=epoch, index=number, purpose="caption")
            choice = int(generator.integers(len(captions)))
        ids = tokenizer(captions[choice], truncation=True, max_length=self._max_length)["input_ids"]
        return self._words.example(np.array(ids, dtype=np.int64), epoch=epoch, index=number)
