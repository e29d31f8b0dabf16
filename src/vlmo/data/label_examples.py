"""Training examples of the vision tasks: pictures of a class each, and pictures with the class of each pixel."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from datasets import ClassLabel, Dataset
from jaxtyping import Float, Int64, UInt8
from PIL import Image
from torch import Tensor

from vlmo.data import builtin
from vlmo.data.decoding import decode_image, decode_mask
from vlmo.data.examples import Example, Images, ImageTransform, collate
from vlmo.data.prepare import labels_of
from vlmo.data.sampler import Key, sample_generator, stable_id
from vlmo.data.schema import column
from vlmo.processing.segmentation import IGNORED_CLASS
from vlmo.types import Batch


class SegmentTransform(Protocol):
    """A picture and its mask to pixel values and classes, as `SegmentTrainTransform` makes them."""

    def __call__(
        self, picture: Image.Image, mask: UInt8[np.ndarray, "height width"], generator: np.random.Generator
    ) -> tuple[Float[Tensor, "3 size size"], Int64[Tensor, "size size"]]:
        """Both after the same augmentation."""
        ...


class LabelledExamples:
    """Images with the number of their class.

    Args:
        dataset: Rows of `class_features`.
        transform: Makes pixel values.
        seed: The run's.
        cache_images: Decode every picture now and keep it, at the transform's size where that is fixed.

    Raises:
        ValueError: Rows without classes, or with a number that is none.
    """

    def __init__(self, dataset: Dataset, *, transform: ImageTransform, seed: int, cache_images: bool = False) -> None:
        self._labels = checked_labels(dataset)
        self._pictures = Images(dataset, transform=transform, seed=seed, cache=cache_images)

    def __len__(self) -> int:
        return len(self._pictures)

    def __getitem__(self, key: Key) -> Example:
        epoch, row = key
        return Example(
            sample_id=row,
            image_id=self._pictures.image_id(row),
            pixel_values=self._pictures.pixel_values(row, epoch=epoch),
            labels=torch.tensor(self._labels[row], dtype=torch.int64),
        )

    def collate(self, examples: list[Example]) -> Batch:
        """`pixel_values`, `labels`, `image_ids` and `sample_ids`."""
        return collate(examples)


class SegmentExamples:
    """Images with the class of each pixel.

    Args:
        dataset: Rows of `SEGMENT_FEATURES`.
        transform: Augments picture and mask together.
        num_classes: Of the set; masks hold numbers below it, and 255 for pixels that do not count.
        seed: The run's.
        cache_images: Decode every picture and mask now and keep them.

    Raises:
        ValueError: Rows without masks or, where they are kept, a mask that cannot be used. Others are refused when they
            are read.
    """

    def __init__(
        self,
        dataset: Dataset,
        *,
        transform: SegmentTransform,
        num_classes: int,
        seed: int,
        cache_images: bool = False,
    ) -> None:
        self._rows = SegmentRows(dataset, num_classes=num_classes)
        self._image_ids = [stable_id(name) for name in column(dataset, "image_id")]
        self._transform = transform
        self._seed = seed
        self._cache = [self._rows[row] for row in range(len(self))] if cache_images else None

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, key: Key) -> Example:
        epoch, row = key
        picture, mask = self._rows[row] if self._cache is None else self._cache[row]
        generator = sample_generator(self._seed, epoch=epoch, index=row, purpose="image")
        pixel_values, classes = self._transform(picture, mask, generator)
        return Example(sample_id=row, image_id=self._image_ids[row], pixel_values=pixel_values, labels=classes)

    def collate(self, examples: list[Example]) -> Batch:
        """`pixel_values`, `labels` (batch, height, width), `image_ids` and `sample_ids`."""
        return collate(examples)


class SegmentRows:
    """Decoded pictures with their masks by row number; arguments and errors as in `SegmentExamples`.

    Raises:
        ValueError: The rows have no masks.
    """

    def __init__(self, dataset: Dataset, *, num_classes: int) -> None:
        if "mask" not in dataset.column_names:
            raise ValueError(
                f"these rows have no masks (their columns: {', '.join(dataset.column_names)}); give a set for "
                "segmentation, such as ade20k (vlmo data prepare)"
            )
        self.names: list[str] = column(dataset, "image_id")
        self._rows = dataset.select_columns(["image", "mask"])
        self._num_classes = num_classes

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, row: int) -> tuple[Image.Image, UInt8[np.ndarray, "height width"]]:
        cells: Any = self._rows[row]
        try:
            picture, mask = decode_image(cells["image"]), decode_mask(cells["mask"])
            if picture.size != mask.shape[::-1]:
                raise ValueError(
                    f"the mask has {mask.shape[1]} x {mask.shape[0]} pixels, its picture {picture.width} x "
                    f"{picture.height}"
                )
            counted = mask[mask != IGNORED_CLASS]
            if counted.size and counted.max() >= self._num_classes:
                raise ValueError(
                    f"the mask holds class {counted.max()}; the set has {self._num_classes} classes, 0 to "
                    f"{self._num_classes - 1}, and {IGNORED_CLASS} for pixels that do not count"
                )
        except ValueError as error:
            raise ValueError(f"sample {row} (image_id {self.names[row]!r}): {error}") from error
        return picture, mask


def class_names(dataset: Dataset) -> list[str]:
    """Names of the classes of pictures, in the order of their numbers.

    Raises:
        ValueError: The rows have no classes.
    """
    feature = dataset.features.get("label")
    if not isinstance(feature, ClassLabel):
        raise ValueError(
            f"these rows have no classes (a column label of type ClassLabel; their columns: "
            f"{', '.join(dataset.column_names)}); give a set for classification, such as imagenet (vlmo data prepare)"
        )
    return list(feature.names)


def segment_names(source: str) -> list[str]:
    """Names of the classes of pixels of a source, built-in or prepared, in the order of their numbers.

    Raises:
        ValueError: It has none.
    """
    return builtin.labels(source) if source in builtin.NAMES else labels_of(Path(source).expanduser())


def checked_labels(dataset: Dataset) -> list[int]:
    """Class numbers of all rows.

    Raises:
        ValueError: Rows without classes, or a number that is none.
    """
    num_classes = len(class_names(dataset))
    labels: list[int | None] = column(dataset, "label")
    checked = []
    for row, label in enumerate(labels):
        if label is None or not 0 <= label < num_classes:
            name = column(dataset, "image_id")[row]
            raise ValueError(
                f"sample {row} (image_id {name!r}) has label {label}; expected a class from 0 to {num_classes - 1}. "
                "Leave rows without a class out"
            )
        checked.append(label)
    return checked
