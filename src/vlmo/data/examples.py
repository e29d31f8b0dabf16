"""Training examples out of rows or stream samples, and batches out of examples.

An example is a pure function of (seed, epoch, row or sample id), in any process. The choice of a caption, the
augmentation and the masks have generators of their own: a change to one leaves the others.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypedDict

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor
from torch.utils.data import default_collate

from vlmo.data.decoding import EncodedImage
from vlmo.data.listing import is_remote
from vlmo.data.masking import (
    IGNORED,
    BlockMaskConfig,
    MaskingVocabulary,
    WordMaskConfig,
    whole_word_mask,
)
from vlmo.data.rows import arrow_table, column
from vlmo.data.sampler import Key, sample_generator, stable_id
from vlmo.data.tables import cut_text
from vlmo.processing.tokenizers import PAD_MULTIPLE
from vlmo.processing.transforms import EvalTransform, Shape, TrainTransform, nearest_shapes
from vlmo.types import Batch

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset
    from transformers import BertTokenizer

    from vlmo.data.stream.records import Sample

_IDS = ("input_ids", "false_input_ids", "mlm_input_ids")
_FILLS = {"mlm_labels": IGNORED, "attention_mask": 0, "false_attention_mask": 0}
"""Padding of texts in a batch; `_IDS` have that of the vocabulary."""


class Example(TypedDict, total=False):
    """One row of a batch; all examples of a batch have the same keys."""

    pixel_values: UInt8[Tensor, "*images 3 height width"] | Float[Tensor, "*images 3 height width"]
    input_ids: Int64[np.ndarray, "text"]
    false_input_ids: Int64[np.ndarray, "text"]
    mlm_input_ids: Int64[np.ndarray, "text"]
    mlm_labels: Int64[np.ndarray, "text"]
    bool_masked_pos: Bool[np.ndarray, "patch"]
    labels: Tensor
    image_id: int
    sample_id: int


class Examples(Protocol):
    """Examples by key (epoch, number), as the loader reads them; the length is their number in an epoch."""

    def __len__(self) -> int: ...

    def __getitem__(self, key: Key) -> Example: ...

    def collate(self, examples: list[Example]) -> Batch:
        """Return a batch of such examples."""
        ...


@dataclass(frozen=True)
class Contents:
    """Contents of an example, whatever it is made of; what is None is left out."""

    seed: int
    transform: TrainTransform | EvalTransform | None = None
    mask: BlockMaskConfig | None = None  # of patches
    tokenizer: BertTokenizer | None = None
    words: WordMaskConfig | None = None  # that are masked in a copy of the text
    shapes: tuple[Shape, ...] = ()  # of rows' images that nearly keep their aspect; () for squares


class _Examples:
    """Parts of an example by its `contents`."""

    def __init__(self, contents: Contents) -> None:
        self.contents = contents
        self.seed = contents.seed
        tokenizer = contents.tokenizer
        self.pad_token_id: int = 0 if tokenizer is None else tokenizer.pad_token_id
        if tokenizer is not None:
            self._backend = copy.deepcopy(
                tokenizer.backend_tokenizer
            )  # half as slow as the tokenizer
            self._backend.no_padding()
            self._backend.enable_truncation(tokenizer.model_max_length)
            if contents.words is not None:
                self._vocabulary = MaskingVocabulary.of(tokenizer, only=contents.words.only)

    def collate(self, examples: list[Example]) -> Batch:
        """Return a batch of such examples."""
        return collate(examples, pad_token_id=self.pad_token_id)

    def _ids(self, text: str) -> Int64[np.ndarray, "text"]:
        return np.array(self._backend.encode(cut_text(text)).ids if text else [], dtype=np.int64)

    def _generator(self, example: Example, epoch: int, purpose: str) -> np.random.Generator:
        index = example["sample_id"]
        return sample_generator(self.seed, epoch=epoch, index=index, purpose=purpose)

    def _choose_caption(self, count: int, *, epoch: int, index: int) -> int:
        if count == 1:
            return 0
        generator = sample_generator(self.seed, epoch=epoch, index=index, purpose="caption")
        # Uniform over the captions, another one at every visit.
        return int(generator.integers(count))

    def _add_masks(self, example: Example, *, epoch: int) -> Example:
        if self.contents.words is not None:
            example["mlm_input_ids"], example["mlm_labels"] = whole_word_mask(
                example["input_ids"],
                vocabulary=self._vocabulary,
                config=self.contents.words,
                generator=self._generator(example, epoch, "words"),
            )
        if self.contents.mask is not None:
            generator = self._generator(example, epoch, "patches")
            example["bool_masked_pos"] = self.contents.mask.sample(generator)
        return example


class RowExamples(_Examples):
    """Images, texts, or images with one of their captions, by (epoch, number).

    Args:
        unit: "image": an example a row, with another of its captions every epoch. "pair": an example a caption, as in
            VLMo's published code; an image with five is then seen five times an epoch.
        texts: Texts of the rows; by default their captions.
        false_texts: False versions of the texts, "" where there is none; None leaves them out.
        columns: Columns of images. Several, which have augmentations of their own, are stacked.
        labels: Returns the label of a row; None leaves labels out.

    Raises:
        ValueError: A row has no text, or an empty one; or several images or masked patches are to keep their aspect.
    """

    def __init__(
        self,
        dataset: Dataset,
        contents: Contents,
        *,
        unit: Literal["image", "pair"] = "image",
        texts: Sequence[Sequence[str]] | None = None,
        false_texts: Sequence[Sequence[str]] | None = None,
        columns: Sequence[str] = ("image",),
        labels: Callable[[int], Tensor] | None = None,
    ) -> None:
        super().__init__(contents)
        self._labels = labels
        self._length = len(dataset)
        self._images: list[_Images] = []
        self._texts: Any = None
        self._false_texts: Any = None
        # Without texts there are no pairs: an example is an image.
        self._by_pair = unit == "pair" and contents.tokenizer is not None
        self._shapes = list(contents.shapes)
        if contents.shapes and (len(columns) > 1 or contents.mask is not None):
            raise ValueError(
                "data.transform.keep_aspect is for one image without masked patches; leave it out here"
            )
        if contents.transform is not None:
            self._images = [_Images(dataset, contents.transform, name) for name in columns]
        if contents.tokenizer is not None:
            captions = arrow_table(dataset, ["captions"])["captions"]
            self._texts = _Texts(captions if texts is None else texts)
            self._texts.check()
            if self._by_pair:
                self._length = len(self._texts.texts)
            if false_texts is not None:
                self._false_texts = _Texts(false_texts)

    def __len__(self) -> int:
        return self._length

    def fit_shapes(self, batch_size: int) -> Int64[np.ndarray, "example"] | None:
        """Choose shapes that have a batch or more, by the images' headers; return numbers by example, or None."""
        if not self.contents.shapes:
            return None
        sizes = self._images[0].sizes()
        rows = np.arange(self._length)
        if self._by_pair:
            rows = self._texts.row(rows)
        while True:
            self._shape_of_row = nearest_shapes(sizes, self._shapes)
            counts = np.bincount(self._shape_of_row[rows], minlength=len(self._shapes))
            if len(counts) == 1 or counts.min() >= batch_size:
                return self._shape_of_row[rows]
            del self._shapes[int(counts.argmin())]  # its images get the next nearest shape

    def __getitem__(self, key: Key) -> Example:
        epoch, index = key
        example = Example(sample_id=index)
        row = index
        if self._texts is not None:
            text = index
            if self._by_pair:
                row = int(self._texts.row(text))
            else:
                # Texts of a row stand together in the flat array of all texts.
                first, end = self._texts.first_of_row[row : row + 2].tolist()
                text = first + self._choose_caption(end - first, epoch=epoch, index=row)
            example["input_ids"] = self._ids(self._texts.texts[text].as_py())
            if self._false_texts is not None:
                example["false_input_ids"] = self._ids(self._false_texts.texts[text].as_py())
        if self._images:
            shape = self._shapes[self._shape_of_row[row]] if self._shapes else None
            pixels = []
            for images in self._images:
                # By column: two images of a row are augmented independently (NLVR2).
                generator = self._generator(example, epoch, images.column)
                pixels.append(images.pixel_values(row, generator, shape))
            example["image_id"] = int(self._images[0].image_ids[row])
            example["pixel_values"] = pixels[0] if len(pixels) == 1 else torch.stack(pixels)
        if self._labels is not None:
            example["labels"] = self._labels(row)
        return self._add_masks(example, epoch=epoch)


class StreamExamples(_Examples):
    """The same out of one sample of a stream at a time."""

    def __call__(self, sample: Sample, epoch: int) -> Example:
        """Return the example of a visit to the sample in `epoch`; ValueError without the image or text it needs."""
        number = sample.sample_id
        example = Example(sample_id=number)
        if self.contents.tokenizer is not None:
            if not sample.captions:
                raise ValueError("it has no caption, or an empty one")
            choice = self._choose_caption(len(sample.captions), epoch=epoch, index=number)
            example["input_ids"] = self._ids(sample.captions[choice])
        if self.contents.transform is not None:
            if sample.image is None and (sample.path is None or is_remote(sample.shard)):
                raise ValueError("it has no image")
            path = None if sample.path is None else str(Path(sample.shard).parent / sample.path)
            image = EncodedImage({"bytes": sample.image, "path": path})
            generator = self._generator(example, epoch, "image")
            example["image_id"] = number
            example["pixel_values"] = self.contents.transform.pixels(image, generator)
        return self._add_masks(example, epoch=epoch)


class _Images:
    def __init__(
        self, dataset: Dataset, transform: TrainTransform | EvalTransform, column_name: str
    ) -> None:
        self.column = column_name
        self._names: list[str] = column(dataset, "image_id")
        self._rows: Any = dataset.select_columns([column_name])
        self._transform: Any = transform
        # Equal images have equal ids: ITC and ITM take them for positives, not negatives.
        self.image_ids = np.array(list(map(stable_id, self._names)), dtype=np.int64)

    def sizes(self) -> list[tuple[int, int]]:
        """Return width and height of all images."""
        return [EncodedImage(row[self.column]).size for row in self._rows]

    def pixel_values(
        self, row: int, generator: np.random.Generator, shape: Shape | None
    ) -> UInt8[Tensor, "3 height width"]:
        """Return the row's image as the generator augments it, not yet normalized."""
        cell = self._rows[row][self.column]
        try:
            if cell is None:
                raise ValueError(f"the row holds no {self.column}")
            if shape is None:
                return self._transform.pixels(EncodedImage(cell), generator)
            return self._transform.pixels(EncodedImage(cell), generator, shape=shape)
        except ValueError as error:
            raise ValueError(
                f"sample {row} (image_id {self._names[row]!r}): {error}. "
                "Validate the data set before training: invalid rows go to quarantine.jsonl"
            ) from error


class _Texts:
    """Texts of all rows, in Arrow's memory, which workers forked from here share."""

    def __init__(self, texts: pa.ChunkedArray | Sequence[Sequence[str]]) -> None:
        import pyarrow as pa  # of an extra, and prediction goes without it
        import pyarrow.compute

        compute: Any = pyarrow.compute  # its functions are made when it is imported
        lists: Any = texts
        if not isinstance(texts, pa.ChunkedArray):
            lists = pa.chunked_array([pa.array(texts, pa.large_list(pa.large_string()))])
        lengths = compute.list_value_length(lists)
        self._lengths = compute.fill_null(lengths, 0).to_numpy()
        # (row + 1,): texts of row i are those from first_of_row[i] up to first_of_row[i + 1].
        self.first_of_row = np.cumsum([0, *self._lengths])
        flat = [chunk.flatten().cast(pa.large_string()) for chunk in lists.chunks]
        self.texts = pa.concat_arrays(flat)

    def check(self) -> None:
        """Raise ValueError if a row has no text, or an empty one."""
        import pyarrow.compute

        compute: Any = pyarrow.compute
        trimmed = compute.utf8_length(compute.utf8_trim_whitespace(self.texts))
        empty_texts = np.flatnonzero(compute.fill_null(trimmed, 0).to_numpy() == 0)
        rows = [*np.flatnonzero(self._lengths == 0), *self.row(empty_texts)]
        if rows:
            raise ValueError(f"sample {min(rows)} has no text or an empty one")

    def row(self, text: int | np.ndarray) -> np.ndarray:
        """Return the row of a text, or of several, by their numbers."""
        return np.searchsorted(self.first_of_row, text, side="right") - 1


def collate(examples: list[Example], *, pad_token_id: int = 0) -> Batch:
    """Stack the examples to one batch; texts are padded to the longest of them, rounded up to 8.

    Padding is `pad_token_id` in ids, 0 in attention masks and -100 in `mlm_labels`.
    """
    rows: list[Any] = list(examples)
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    for kind in ("", "false_"):
        if f"{kind}input_ids" in columns:
            ids = columns[f"{kind}input_ids"]
            columns[f"{kind}attention_mask"] = [np.ones_like(text) for text in ids]
    batch: Any = {}
    for name, values in columns.items():
        if name in _IDS or name in _FILLS:
            batch[name] = pad(values, value=_FILLS.get(name, pad_token_id))
        elif name in ("sample_id", "image_id"):
            batch[f"{name}s"] = torch.tensor(values, dtype=torch.int64)
        elif name == "pixel_values" and values[0].dtype == torch.uint8:
            # As they lie in memory, channels last: normalizing brings the channels forward in the same pass.
            channels_last = default_collate([image.movedim(-3, -1) for image in values])
            batch[name] = channels_last.movedim(-1, -3)
        else:
            batch[name] = default_collate(values)
    return batch


def pad(rows: Sequence[Int64[np.ndarray, "text"]], *, value: int) -> Int64[Tensor, "batch longest"]:
    """Fill rows up on the right with `value`, to the longest one's length rounded up to 8, and 8 at least."""
    longest = max(1, *map(len, rows))
    # A multiple of 8: few lengths for compiled kernels, and whole tiles of tensor cores.
    padded = np.full((len(rows), -(-longest // PAD_MULTIPLE) * PAD_MULTIPLE), value, dtype=np.int64)
    for target, row in zip(padded, rows, strict=True):
        target[: len(row)] = row
    return torch.from_numpy(padded)


def merge(parts: list[Batch], *, pad_token_id: int = 0) -> Batch:
    """Join the rows of several batches, padded to the longest text."""
    if len(parts) == 1:
        return parts[0]
    batches: list[Any] = list(parts)
    merged: Any = {}
    for name in batches[0]:
        columns = [batch[name] for batch in batches]
        if name in _IDS or name in _FILLS:
            rows = [row for column in columns for row in column.numpy()]
            merged[name] = pad(rows, value=_FILLS.get(name, pad_token_id))
        else:
            merged[name] = torch.cat(columns)
    return merged
