"""Training examples out of rows: pictures alone, texts alone, and pairs.

Each class is read by (epoch, row number), gives the same example for the same key and seed in any process, and draws
the choice of a caption, the augmentation and the masks from generators of their own: a change to one leaves the others.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from datasets import Dataset
from jaxtyping import Int64, UInt8
from torch import Tensor

from vlmo.data.collate import Example, collate
from vlmo.data.decoding import EncodedPicture, ImageCell
from vlmo.data.masking import BlockMaskConfig, MaskingVocabulary, whole_word_mask
from vlmo.data.sampler import Key, sample_generator, stable_id
from vlmo.processing.transforms import Encoded, Picture
from vlmo.processing.wordpiece import continuation_flags, special_flags
from vlmo.types import Batch

if TYPE_CHECKING:
    from transformers import BertTokenizer

# Texts that are tokenised in one call: enough to be fast, few enough to keep Python's lists of ids small.
_CHUNK = 10_000


class ImageTransform(Protocol):
    """A picture to pixels, as `train_transform` and `eval_transform` make them."""

    def resize(self, picture: Picture | Encoded) -> UInt8[np.ndarray, "height width 3"]:
        """The part that never varies."""
        ...

    def pixels(self, picture: Picture | Encoded, generator: np.random.Generator) -> UInt8[Tensor, "3 size size"]:
        """All but the normalisation, on a picture or on what `resize` gave."""
        ...


class Examples(Protocol):
    """What the loader reads."""

    def __len__(self) -> int:
        """Number of rows."""
        ...

    def __getitem__(self, key: Key) -> Example:
        """The example for (epoch, row number)."""
        ...

    def collate(self, examples: list[Example]) -> Batch:
        """A batch of such examples."""
        ...


class ImageExamples:
    """Pictures, with or without a mask over their patches; captions are not read.

    Args:
        dataset: Rows with `image` and `image_id`.
        transform: Makes pixel values.
        seed: The run's.
        mask: What masked image modelling hides; None leaves `bool_masked_pos` out (training a tokenizer).
        cache_images: Decode every picture now and keep it, at the transform's size where that is fixed.
    """

    def __init__(
        self,
        dataset: Dataset,
        *,
        transform: ImageTransform,
        seed: int,
        mask: BlockMaskConfig | None = None,
        cache_images: bool = False,
    ) -> None:
        self._pictures = Pictures(dataset, transform=transform, seed=seed, cache=cache_images)
        self._mask = mask
        self._seed = seed

    def __len__(self) -> int:
        return len(self._pictures)

    def __getitem__(self, key: Key) -> Example:
        epoch, row = key
        example = Example(
            sample_id=row,
            image_id=self._pictures.image_id(row),
            pixel_values=self._pictures.pixel_values(row, epoch=epoch),
        )
        if self._mask is not None:
            generator = sample_generator(self._seed, epoch=epoch, index=row, purpose="patches")
            example["bool_masked_pos"] = self._mask.draw(generator)
        return example

    def collate(self, examples: list[Example]) -> Batch:
        """`pixel_values`, `image_ids`, `sample_ids` and perhaps `bool_masked_pos`."""
        return collate(examples)


class TextExamples:
    """Texts with whole words masked.

    Args:
        dataset: Rows with `captions`; each visit to a row reads one of them.
        tokenizer: The processor's.
        seed: The run's.
        max_length: Tokens that are kept of a text; None: the tokenizer's own limit.
        mlm_probability: Share of the tokens to mask.
    """

    def __init__(
        self,
        dataset: Dataset,
        *,
        tokenizer: BertTokenizer,
        seed: int,
        max_length: int | None = None,
        mlm_probability: float | None = 0.15,
    ) -> None:
        self._texts = Texts(
            list(dataset["captions"]),
            tokenizer=tokenizer,
            seed=seed,
            max_length=max_length,
            mlm_probability=mlm_probability,
        )

    def __len__(self) -> int:
        return len(self._texts)

    def __getitem__(self, key: Key) -> Example:
        epoch, row = key
        example = self._texts.example(row, epoch=epoch)
        example["sample_id"] = row
        return example

    def collate(self, examples: list[Example]) -> Batch:
        """`input_ids`, `attention_mask`, `mlm_input_ids`, `mlm_labels` and `sample_ids`."""
        return collate(examples, pad_token_id=self._texts.pad_token_id)


class PairExamples:
    """Pictures, each with one of its captions; arguments as in `ImageExamples` and `TextExamples`.

    `mlm_probability=None` leaves the masked copy of the text out (training by contrast alone).
    """

    def __init__(
        self,
        dataset: Dataset,
        *,
        transform: ImageTransform,
        tokenizer: BertTokenizer,
        seed: int,
        max_length: int | None = None,
        mlm_probability: float | None = 0.15,
        cache_images: bool = False,
    ) -> None:
        self._pictures = Pictures(dataset, transform=transform, seed=seed, cache=cache_images)
        self._texts = Texts(
            list(dataset["captions"]),
            tokenizer=tokenizer,
            seed=seed,
            max_length=max_length,
            mlm_probability=mlm_probability,
        )

    def __len__(self) -> int:
        return len(self._pictures)

    def __getitem__(self, key: Key) -> Example:
        epoch, row = key
        example = self._texts.example(row, epoch=epoch)
        example["sample_id"] = row
        example["image_id"] = self._pictures.image_id(row)
        example["pixel_values"] = self._pictures.pixel_values(row, epoch=epoch)
        return example

    def collate(self, examples: list[Example]) -> Batch:
        """All keys of a batch but `bool_masked_pos` and `step_seed`."""
        return collate(examples, pad_token_id=self._texts.pad_token_id)


class Pictures:
    """Decoded and transformed pictures by row number.

    Args:
        dataset: Rows with `image_id` and `column`.
        transform: Makes pixel values.
        seed: The run's.
        cache: Decode every picture now and keep it, at the transform's size where that is fixed; rows that show one
            picture share it.
        column: Where the pictures are. Those of each column have augmentations of their own.
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
        self._cache = self._keep() if cache else None

    def __len__(self) -> int:
        return len(self._names)

    def image_id(self, row: int) -> int:
        """Hash of the row's `image_id`."""
        return int(self._image_ids[row])

    def pixel_values(self, row: int, *, epoch: int) -> UInt8[Tensor, "3 size size"]:
        """The row's picture as it looks in `epoch`, not yet normalised."""
        generator = sample_generator(self._seed, epoch=epoch, index=row, purpose=self._column)
        if self._cache is not None:
            return self._transform.pixels(self._cache[row], generator)
        with self._naming(row):
            return self._transform.pixels(self._open(row), generator)

    def _keep(self) -> list[UInt8[np.ndarray, "height width 3"]]:
        kept: dict[Any, UInt8[np.ndarray, "height width 3"]] = {}
        cache = []
        for row in range(len(self)):
            cell = self._cell(row)
            key = (cell["bytes"] or cell["path"]) if cell else None
            if key not in kept:
                with self._naming(row):
                    kept[key] = self._transform.resize(self._open(row))
            cache.append(kept[key])
        return cache

    def _cell(self, row: int) -> ImageCell | None:
        columns: Any = self._rows[row]
        return columns[self._column]

    def _open(self, row: int) -> EncodedPicture:
        image = self._cell(row)
        if image is None:
            raise ValueError(f"the row holds no {self._column}")
        return EncodedPicture(image)

    @contextlib.contextmanager
    def _naming(self, row: int) -> Iterator[None]:
        """Adds the row to what is said of its picture."""
        try:
            yield
        except ValueError as error:
            raise ValueError(
                f"sample {row} (image_id {self._names[row]!r}): {error}. "
                "Check the data set before training: it moves such rows to quarantine.jsonl"
            ) from error


class Texts:
    """Tokenised texts of all rows, chosen and masked on demand; `texts` are those that each row has.

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
        self._ids, self._first_id = _tokenize(
            [text for of_row in texts for text in of_row],
            tokenizer=tokenizer,
            max_length=max_length or tokenizer.model_max_length,
        )
        self._words = WordMasks(tokenizer, probability=mlm_probability, seed=seed)
        self.pad_token_id: int = tokenizer.pad_token_id
        self._seed = seed

    def __len__(self) -> int:
        return len(self._first_text) - 1

    def example(self, row: int, *, epoch: int) -> Example:
        """Ids of one of the row's texts, whole and masked."""
        first, end = self._first_text[row : row + 2]
        text = first
        if end - first > 1:
            text += sample_generator(self._seed, epoch=epoch, index=row, purpose="caption").integers(end - first)
        input_ids = self._ids[self._first_id[text] : self._first_id[text + 1]].astype(np.int64)
        return self._words.example(input_ids, epoch=epoch, index=row)


class WordMasks:
    """Ids of a text, and their masked copy; `probability=None` leaves the copy out."""

    def __init__(self, tokenizer: BertTokenizer, *, probability: float | None, seed: int) -> None:
        self._vocabulary = MaskingVocabulary(
            special=special_flags(tokenizer),
            continuation=continuation_flags(tokenizer),
            mask_token_id=tokenizer.mask_token_id,
        )
        self._probability = probability
        self._seed = seed

    def example(self, input_ids: Int64[np.ndarray, "token"], *, epoch: int, index: int) -> Example:
        """The ids as they are, and as visit `epoch` to sample `index` masks them."""
        example = Example(input_ids=input_ids)
        if self._probability is not None:
            example["mlm_input_ids"], example["mlm_labels"] = whole_word_mask(
                input_ids,
                vocabulary=self._vocabulary,
                probability=self._probability,
                generator=sample_generator(self._seed, epoch=epoch, index=index, purpose="words"),
            )
        return example


def _tokenize(
    texts: list[str], *, tokenizer: Callable[..., dict[str, list[list[int]]]], max_length: int
) -> tuple[Int64[np.ndarray, "token"], Int64[np.ndarray, "text_plus_1"]]:
    """All ids in one row, and where each text begins (and the last one ends)."""
    pieces, lengths = [], [0]
    for start in range(0, len(texts), _CHUNK):
        ids = tokenizer(texts[start : start + _CHUNK], truncation=True, max_length=max_length)["input_ids"]
        lengths += map(len, ids)
        pieces.append(np.concatenate([np.array(text, dtype=np.int32) for text in ids]))
    return np.concatenate(pieces), np.cumsum(lengths)
