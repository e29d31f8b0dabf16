"""Pictures with classes, and with the class of each pixel."""

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from PIL import Image
from tests.tasks.toy_vision import (
    IGNORED,
    NAMES,
    PIXELS,
    class_rows,
    png,
    segment_rows,
)

from vlmo.data.examples import Examples
from vlmo.data.schema import FEATURES, SEGMENT_FEATURES, class_features
from vlmo.processing import TransformConfig
from vlmo.processing.segmentation import SegmentTrainTransform, SegmentTransformConfig
from vlmo.recipes import find_recipe
from vlmo.tasks import ClassificationTask, RunContext
from vlmo.tasks.classification import checked_labels, class_names
from vlmo.tasks.segmentation import SegmentExamples

SIZE = 32
SEGMENT_TRANSFORM = SegmentTrainTransform(SegmentTransformConfig(), crop_size=SIZE)


def class_set(count: int = 6) -> Dataset:
    return Dataset.from_list(class_rows("train", count), features=class_features(NAMES))


def labelled(dataset: Dataset, **options) -> Examples:
    recipe = find_recipe("base-imagenet")
    data = replace(recipe.data, transform=TransformConfig(), **options)
    recipe = replace(recipe, data=data, model=replace(recipe.model, image_size=SIZE))
    run = RunContext(Path(), recipe, dataset, processor=None, model={})
    return ClassificationTask().examples(run)


def segment_set(rows: list[dict] | None = None) -> Dataset:
    return Dataset.from_list(segment_rows("train", 6) if rows is None else rows, features=SEGMENT_FEATURES)


def segment_examples(dataset: Dataset, **settings) -> SegmentExamples:
    return SegmentExamples(dataset, transform=SEGMENT_TRANSFORM, num_classes=len(PIXELS), seed=0, **settings)


def test_labels_go_with_their_pictures() -> None:
    examples = labelled(class_set())
    assert len(examples) == 6
    assert class_names(class_set()) == NAMES
    batch = examples.collate([examples[0, row] for row in (4, 0, 2)])
    assert batch["labels"].tolist() == [1, 0, 2]
    assert batch["labels"].dtype == torch.int64
    assert batch["sample_ids"].tolist() == [4, 0, 2]
    assert batch["pixel_values"].shape == (3, 3, SIZE, SIZE)
    assert len(set(batch["image_ids"].tolist())) == 3


def test_augmentation_depends_on_epoch_and_row_alone() -> None:
    first, second = (labelled(class_set()) for _ in range(2))
    assert torch.equal(first[3, 1]["pixel_values"], second[3, 1]["pixel_values"])
    assert not torch.equal(first[3, 1]["pixel_values"], first[4, 1]["pixel_values"])


@pytest.mark.parametrize("label", [None, -1])
def test_rows_without_a_class_are_named(label) -> None:
    rows = class_rows("train", 3)
    rows[1]["label"] = label
    dataset = Dataset.from_list(rows, features=class_features(NAMES))
    with pytest.raises(ValueError, match=r"sample 1 \(image_id 'train/1'\) has label .*from 0 to 2"):
        checked_labels(dataset)


def test_rows_of_another_task_are_refused() -> None:
    plain = class_set().select_columns(list(FEATURES))
    with pytest.raises(ValueError, match="these rows have no classes"):
        labelled(plain)
    with pytest.raises(ValueError, match="these rows have no masks"):
        segment_examples(plain)


def test_masks_go_with_their_pictures() -> None:
    examples = segment_examples(segment_set())
    batch = examples.collate([examples[0, row] for row in range(6)])
    assert batch["labels"].shape == (6, SIZE, SIZE)
    assert batch["labels"].dtype == torch.int64
    assert batch["pixel_values"].shape == (6, 3, SIZE, SIZE)
    assert set(batch["labels"].unique().tolist()) <= {0, 1, 2, 3, IGNORED}
    assert IGNORED in batch["labels"]


def test_augmentation_of_masks_depends_on_epoch_and_row_alone() -> None:
    first, second = segment_examples(segment_set()), segment_examples(segment_set())
    for epoch in (0, 1):
        for name in ("pixel_values", "labels"):
            assert torch.equal(first[epoch, 2][name], second[epoch, 2][name])
    assert not torch.equal(first[0, 2]["pixel_values"], first[1, 2]["pixel_values"])


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.full((64, 80), 4, dtype=np.uint8), "classes up to 4; expected 80 x 64, and 0 to 3 or 255"),
        (np.zeros((64, 64), dtype=np.uint8), "the mask has 64 x 64 pixels and .* expected 80 x 64"),
        (np.zeros((64, 80, 3), dtype=np.uint8), "mode RGB"),
    ],
)
def test_masks_that_cannot_be_used_are_named(mask, message) -> None:
    rows = segment_rows("train", 3)
    rows[2]["mask"] = png(mask)
    examples = segment_examples(segment_set(rows))
    assert examples[0, 1]["labels"].shape == (SIZE, SIZE)
    with pytest.raises(ValueError, match=rf"sample 2 \(image_id 'train/2'\).*{message}"):
        examples[0, 2]


def test_masks_may_be_indices_of_a_palette() -> None:
    rows = segment_rows("train", 1)
    indexed = Image.new("P", (80, 64), 3)
    indexed.putpalette([255, 0, 0] * 256)
    file = io.BytesIO()
    indexed.save(file, format="PNG")
    rows[0]["mask"] = {"bytes": file.getvalue(), "path": None}
    labels = segment_examples(segment_set(rows))[0, 0]["labels"]
    assert set(labels.unique().tolist()) <= {3, IGNORED}
