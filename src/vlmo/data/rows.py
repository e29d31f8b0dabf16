"""Columns and rows of data sets; this file does without `datasets`, which takes a second to import."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from datasets import Dataset


def column(dataset: Dataset, name: str) -> list[Any]:
    """Return every value of one column; no other column is read."""
    return list(cast(Iterable[Any], dataset[name]))


def select_rows(dataset: Dataset, rows: Sequence[int]) -> Dataset:
    """Return these rows in this order; images are not copied."""
    # The library's decorators hide the type of what comes back.
    return cast("Dataset", dataset.select(rows))
