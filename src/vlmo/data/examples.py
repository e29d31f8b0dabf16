"""Training examples out of rows or stream samples, and batches out of examples.

An example is a pure function of (seed, epoch, row or sample id), in any process. The choice of a caption, the
augmentation and the masks have generators of their own: a change to one leaves the others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypedDict, TypeVar, cast

import numpy as np
import torch
from datasets import Dataset
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor
from torch.nn.functional import pad as pad_to
from torch.utils.data import default_collate

from vlmo.data.decoding import EncodedImage, ImageCell
from vlmo.data.masking import IGNORED, BlockMaskConfig, MaskingVocabulary, whole_word_mask
from vlmo.data.sampler import Key, sample_generator, stable_id
from vlmo.processing.processor import PAD_MULTIPLE
from vlmo.processing.transforms import EvalTransform, TrainTransform
from vlmo.types import Batch

if TYPE_CHECKING:
    from transformers import BertTokenizer

    from vlmo.data.stream.records import Sample

ImageTransform = TrainTransform | EvalTransform
Result = TypeVar("Result")

# Texts that are tokenised in one call: enough to be fast, few enough to keep Python's lists of ids small.
_CHUNK = 10_000


class Example(TypedDict, total=False):
    """One row of a batch; all examples of a batch have the same keys."""

    pixel_values: UInt8[Tensor, "*images 3 height width"] | Float[Tensor, "*images 3 height width"]
    input_ids: Int64[np.ndarray, "text"]
    mlm_input_ids: Int64[np.ndarray, "text"]
    mlm_labels: Int64[np.ndarray, "text"]
    bool_masked_pos: Bool[np.ndarray, "patch"]
    labels: Tensor
    image_id: int
    sample_id: int


class Examples(Protocol):
    """Examples by key, as the loader reads them."""

    def __len__(self) -> int:
        """Return the number of rows."""
        ...

    def __getitem__(self, key: Key) -> Example:
        """Return the example for (epoch, row number)."""
        ...

    def collate(self, examples: list[Example]) -> Batch:
        """Return a batch of such examples."""
        ...


class RowExamples:
    """Images, texts, or images with one of their captions, by (epoch, row number).

    Args:
        dataset: Rows.
        texts: Texts of each row; by default its captions.
        columns: Columns of images. Several, which have augmentations of their own, are stacked.
        labels: Returns the label of a row; None leaves labels out.
        seed: The run's.
        transform: Makes pixel values; None leaves images out.
        mask: Samples `bool_masked_pos` for masked image modelling; None leaves it out.
        tokenizer: The processor's; None leaves texts out.
        mlm_probability: Share of the tokens to mask; None leaves the masked copy out.
        max_length: Tokens that are kept of a text; None: the tokenizer's own limit.
        cache_images: Decode every image now and keep it, at the transform's size where that is fixed.
    """

    def __init__(
        self,
        dataset: Dataset,
        *,
        seed: int,
        transform: ImageTransform | None = None,
        mask: BlockMaskConfig | None = None,
        tokenizer: BertTokenizer | None = None,
        mlm_probability: float | None = None,
        max_length: int | None = None,
        cache_images: bool = False,
        texts: Sequence[Sequence[str]] | None = None,
        columns: Sequence[str] = ("image",),
        labels: Callable[[int], Tensor] | None = None,
    ) -> None:
        self._images, self._texts, self._labels = [], None, labels
        if transform is not None:
            self._images = [
                Images(dataset, transform=transform, seed=seed, cache=cache_images, column=column) for column in columns
            ]
        if tokenizer is not None:
            texts = list(dataset["captions"]) if texts is None else texts
            self._texts = Texts(
                texts, tokenizer=tokenizer, seed=seed, max_length=max_length, mlm_probability=mlm_probability
            )
        self._seed, self._mask, self._length = seed, mask, len(dataset)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, key: Key) -> Example:
        epoch, row = key
        example = Example(sample_id=row) if self._texts is None else self._texts.example(row, epoch=epoch)
        example["sample_id"] = row
        if self._images:
            pixels = [images.pixel_values(row, epoch=epoch) for images in self._images]
            example["image_id"] = self._images[0].image_id(row)
            example["pixel_values"] = pixels[0] if len(pixels) == 1 else torch.stack(pixels)
        if self._labels is not None:
            example["labels"] = self._labels(row)
        if self._mask is not None:
            example["bool_masked_pos"] = self._mask.sample(_patch_generator(self._seed, epoch=epoch, index=row))
        return example

    def collate(self, examples: list[Example]) -> Batch:
        """Return a batch of such examples."""
        return collate(examples, pad_token_id=0 if self._texts is None else self._texts.pad_token_id)


class StreamExamples:
    """The same out of one sample of a stream at a time; arguments as in `RowExamples`."""

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
        self.reads_images = transform is not None
        self.pad_token_id: int = 0
        if tokenizer is not None:
            self._word_masks = _WordMasks(tokenizer, probability=mlm_probability, seed=seed)
            self._max_length = max_length or tokenizer.model_max_length
            self.pad_token_id = tokenizer.pad_token_id

    def __call__(self, sample: Sample, epoch: int) -> Example:
        """Return the example that a visit to the sample in `epoch` gives.

        Raises:
            ValueError: It has no image or text where one is needed, or they cannot be read.
        """
        number = sample.sample_id
        example = Example()
        if self._tokenizer is not None:
            if not sample.captions:
                raise ValueError("it has no caption, or an empty one")
            choice = _choose_caption(len(sample.captions), seed=self._seed, epoch=epoch, index=number)
            text = sample.captions[choice]
            ids = self._tokenizer(text, truncation=True, max_length=self._max_length)["input_ids"]
            example |= self._word_masks.example(np.array(ids, dtype=np.int64), epoch=epoch, index=number)
        if self._transform is not None:
            if sample.image is None:
                raise ValueError("it has no image")
            generator = sample_generator(self._seed, epoch=epoch, index=number, purpose="image")
            example["image_id"] = number
            example["pixel_values"] = self._transform.pixels(
                EncodedImage({"bytes": sample.image, "path": None}), generator
            )
        if self._mask is not None:
            example["bool_masked_pos"] = self._mask.sample(_patch_generator(self._seed, epoch=epoch, index=number))
        example["sample_id"] = number
        return example

    def collate(self, examples: list[Example]) -> Batch:
        """Return a batch of such examples."""
        return collate(examples, pad_token_id=self.pad_token_id)


class Images:
    """Decoded and transformed images by row number.

    Args:
        dataset: Rows with `image_id` and `column`.
        transform: Makes pixel values.
        seed: The run's.
        cache: Decode every image now and keep it, at the transform's size where that is fixed; rows that show one image
            share it.
        column: Name of the column of images. Those of each column have augmentations of their own.
    """

    def __init__(
        self, dataset: Dataset, *, transform: ImageTransform, seed: int, cache: bool, column: str = "image"
    ) -> None:
        self._names: list[str] = list(dataset["image_id"])
        self._rows = dataset.select_columns([column])
        self._column = column
        self._transform = transform
        self._seed = seed
        self._image_ids = np.array([stable_id(name) for name in self._names], dtype=np.int64)
        self._cache = self._decode_all() if cache else None

    def __len__(self) -> int:
        return len(self._names)

    def image_id(self, row: int) -> int:
        """Return a hash of the row's `image_id`."""
        return int(self._image_ids[row])

    def pixel_values(self, row: int, *, epoch: int) -> UInt8[Tensor, "3 size size"]:
        """Return the row's image as it looks in `epoch`, not yet normalised."""
        generator = sample_generator(self._seed, epoch=epoch, index=row, purpose=self._column)
        if self._cache is not None:
            return self._transform.pixels(self._cache[row], generator)
        return self._apply(lambda image: self._transform.pixels(image, generator), row=row)

    def _decode_all(self) -> list[UInt8[np.ndarray, "height width 3"]]:
        kept: dict[Any, UInt8[np.ndarray, "height width 3"]] = {}
        cache = []
        for row in range(len(self)):
            cell = self._cell(row)
            key = (cell["bytes"] or cell["path"]) if cell else None
            if key not in kept:
                kept[key] = self._apply(self._transform.resize, row=row)
            cache.append(kept[key])
        return cache

    def _cell(self, row: int) -> ImageCell | None:
        columns: Any = self._rows[row]
        return columns[self._column]

    def _apply(self, function: Callable[[EncodedImage], Result], *, row: int) -> Result:
        """Apply a function to the row's image; errors name the row."""
        try:
            if (cell := self._cell(row)) is None:
                raise ValueError(f"the row holds no {self._column}")
            return function(EncodedImage(cell))
        except ValueError as error:
            raise ValueError(
                f"sample {row} (image_id {self._names[row]!r}): {error}. "
                "Validate the data set before training: invalid rows go to quarantine.jsonl"
            ) from error


class Texts:
    """Tokenised texts of all rows, chosen and masked on demand.

    Args:
        texts: The texts of each row.
        tokenizer: The processor's.
        seed: The run's.
        max_length: As in `RowExamples`.
        mlm_probability: As in `RowExamples`.

    Raises:
        ValueError: A row has no text, or an empty one.
    """

    def __init__(
        self,
        texts: Sequence[Sequence[str]],
        *,
        tokenizer: BertTokenizer,
        seed: int,
        max_length: int | None,
        mlm_probability: float | None,
    ) -> None:
        for row, of_row in enumerate(texts):
            if not of_row or not all(text.strip() for text in of_row):
                raise ValueError(f"sample {row} has no text or an empty one: {of_row!r:.80}")
        # Flat arrays instead of lists of lists: an eighth of the memory, and workers forked from here share them.
        self._first_text = np.cumsum([0, *map(len, texts)])
        flat = [text for of_row in texts for text in of_row]
        pieces, lengths = [], [0]
        for start in range(0, len(flat), _CHUNK):
            ids = tokenizer(
                flat[start : start + _CHUNK], truncation=True, max_length=max_length or tokenizer.model_max_length
            )["input_ids"]
            lengths += map(len, ids)
            pieces.append(np.concatenate([np.array(text, dtype=np.int32) for text in ids]))
        self._ids, self._first_id = np.concatenate(pieces), np.cumsum(lengths)
        self._word_masks = _WordMasks(tokenizer, probability=mlm_probability, seed=seed)
        self.pad_token_id: int = tokenizer.pad_token_id
        self._seed = seed

    def __len__(self) -> int:
        return len(self._first_text) - 1

    def example(self, row: int, *, epoch: int) -> Example:
        """Return the ids of one of the row's texts, and their masked copy."""
        first, end = self._first_text[row : row + 2]
        text = first + _choose_caption(end - first, seed=self._seed, epoch=epoch, index=row)
        input_ids = self._ids[self._first_id[text] : self._first_id[text + 1]].astype(np.int64)
        return self._word_masks.example(input_ids, epoch=epoch, index=row)


class _WordMasks:
    """Ids of a text, and their masked copy; `probability=None` leaves the copy out."""

    def __init__(self, tokenizer: BertTokenizer, *, probability: float | None, seed: int) -> None:
        self._vocabulary = MaskingVocabulary.of(tokenizer)
        self._probability, self._seed = probability, seed

    def example(self, input_ids: Int64[np.ndarray, "token"], *, epoch: int, index: int) -> Example:
        example = Example(input_ids=input_ids)
        if self._probability is not None:
            example["mlm_input_ids"], example["mlm_labels"] = whole_word_mask(
                input_ids,
                vocabulary=self._vocabulary,
                probability=self._probability,
                generator=sample_generator(self._seed, epoch=epoch, index=index, purpose="words"),
            )
        return example


def _choose_caption(count: int, *, seed: int, epoch: int, index: int) -> int:
    if count == 1:
        return 0
    return int(sample_generator(seed, epoch=epoch, index=index, purpose="caption").integers(count))


def _patch_generator(seed: int, *, epoch: int, index: int) -> np.random.Generator:
    return sample_generator(seed, epoch=epoch, index=index, purpose="patches")


def collate(examples: list[Example], *, pad_token_id: int = 0) -> Batch:
    """Stack the examples to one batch; texts are padded to the longest of them, rounded up to 8.

    Padding is `pad_token_id` in ids, 0 in `attention_mask` and -100 in `mlm_labels`.
    """
    first = examples[0]
    batch: Batch = {"sample_ids": torch.tensor([example["sample_id"] for example in examples], dtype=torch.int64)}
    if "image_id" in first:
        batch["image_ids"] = torch.tensor([example["image_id"] for example in examples], dtype=torch.int64)
    if "pixel_values" in first:
        images = [example["pixel_values"] for example in examples]
        if images[0].dtype == torch.uint8:
            # As they lie in memory, channels last: normalising brings the channels forward in the same pass.
            batch["pixel_values"] = default_collate([image.movedim(-3, -1) for image in images]).movedim(-1, -3)
        else:
            batch["pixel_values"] = default_collate(images)
    if "labels" in first:
        batch["labels"] = torch.stack([example["labels"] for example in examples])
    if "bool_masked_pos" in first:
        batch["bool_masked_pos"] = torch.from_numpy(np.stack([example["bool_masked_pos"] for example in examples]))
    if "input_ids" in first:
        texts = [example["input_ids"] for example in examples]
        batch["input_ids"] = pad(texts, value=pad_token_id)
        batch["attention_mask"] = pad([np.ones_like(text) for text in texts], value=0)
    if "mlm_labels" in first:
        batch["mlm_input_ids"] = pad([example["mlm_input_ids"] for example in examples], value=pad_token_id)
        batch["mlm_labels"] = pad([example["mlm_labels"] for example in examples], value=IGNORED)
    return batch


def pad(rows: list[Int64[np.ndarray, "text"]], *, value: int) -> Int64[Tensor, "batch longest"]:
    """Fill rows up on the right with `value`, to the longest one's length rounded up to 8."""
    longest = max(len(row) for row in rows)
    padded = np.full((len(rows), -(-longest // PAD_MULTIPLE) * PAD_MULTIPLE), value, dtype=np.int64)
    for target, row in zip(padded, rows, strict=True):
        target[: len(row)] = row
    return torch.from_numpy(padded)


def merge(parts: list[Batch], *, pad_token_id: int = 0) -> Batch:
    """Join the rows of several batches, padded to the longest text."""
    if len(parts) == 1:
        return parts[0]
    fills = {"input_ids": pad_token_id, "mlm_input_ids": pad_token_id, "attention_mask": 0, "mlm_labels": IGNORED}
    tensors = cast(list[dict[str, Tensor]], parts)
    merged: dict[str, Tensor] = {}
    for name in tensors[0]:
        columns = [part[name] for part in tensors]
        if name in fills:
            longest = max(column.shape[1] for column in columns)
            columns = [pad_to(column, (0, longest - column.shape[1]), value=fills[name]) for column in columns]
        merged[name] = torch.cat(columns)
    return cast(Batch, merged)
