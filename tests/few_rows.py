"""Built-in sets thinned to a few rows: for tests of what is done with data, not of the data."""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from datasets import Dataset

from vlmo.data import builtin
from vlmo.data.builtin import shapes


@contextmanager
def few_rows(number: int) -> Iterator[None]:
    """Give about `number` rows of each built-in set, as many of each of its sources; a smaller set stays whole.

    Of scenes of shapes no more are built, in a folder of their own.
    """
    load = builtin.load

    def thinned(name: str, *, split: str, cache_dir: Path | None = None) -> Dataset:
        if name.startswith("shapes"):
            with _few_scenes(number):
                return load(name, split=split, cache_dir=Path(folder))
        rows = load(name, split=split, cache_dir=cache_dir)
        places: dict[str, list[int]] = defaultdict(list)
        for place, source in enumerate(rows["source"]):
            places[source].append(place)
        share, kept = number // len(places), []
        for of_source in places.values():
            kept += of_source[:: max(1, len(of_source) // share)][:share]
        return rows.select(sorted(kept))

    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(builtin, "load", thinned)
        yield


@contextmanager
def _few_scenes(rows: int) -> Iterator[None]:
    """Let each set of scenes that is built have about `rows` rows in each split."""
    with pytest.MonkeyPatch.context() as patch:
        rows_of_one = dict.fromkeys(
            ("NUM_SCENES", "NUM_CROWDED", "NUM_HALF_TRUTHS", "NUM_QUESTIONS"), 1
        )
        rows_of_one["NUM_STATEMENTS"] = 4
        rows_of_one["NUM_BINDING"] = 2 * len(shapes.BINDING_KINDS)
        for name, divisor in rows_of_one.items():
            counts = vars(shapes)[name]
            few = {split: min(count, rows // divisor) for split, count in counts.items()}
            patch.setattr(shapes, name, few)
        yield
