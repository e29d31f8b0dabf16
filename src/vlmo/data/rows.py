"""Columns and rows of data sets; this file does without `datasets`, which takes a second to import."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset

SUMMARY_FILE = "prepared.json"
"""The summary of a prepared folder, beside the folders of its splits."""


def column(dataset: Dataset, name: str) -> list[Any]:
    """Return every value of one column; no other column is read."""
    return arrow_table(dataset, [name])[name].to_pylist()


def arrow_table(dataset: Dataset, names: Sequence[str]) -> pa.Table:
    """Return columns as they lie in the files; chosen rows are copied. Twenty times as fast as row by row."""
    return cast("Dataset", dataset.select_columns(list(names))).with_format("arrow")[:]


def select_rows(dataset: Dataset, rows: Sequence[int]) -> Dataset:
    """Return these rows in this order; images are not copied."""
    # The library's decorators hide the type of what comes back.
    return cast("Dataset", dataset.select(rows))


def false_captions(rows: Dataset) -> list[list[str]]:
    """Return a false version of each caption of each row, "" where there is none; ValueError for more or fewer."""
    captions = [texts or [] for texts in column(rows, "captions")]
    false = column(rows, "false_captions") if "false_captions" in rows.column_names else [None] * len(captions)
    found = [
        [(text or "").strip() for text in of_row or [""] * len(texts)]
        for of_row, texts in zip(false, captions, strict=True)
    ]
    for row, (of_row, texts) in enumerate(zip(found, captions, strict=True)):
        if len(of_row) != len(texts):
            raise ValueError(
                f"sample {row} has {len(texts)} captions and {len(of_row)} false_captions; expected as many or none"
            )
    return found
