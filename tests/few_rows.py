"""Built-in sets thinned to a few rows: for tests of what is done with data, not of the data."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from datasets import Dataset

from vlmo.data import builtin


@contextmanager
def few_rows(number: int) -> Iterator[None]:
    """Give about `number` rows of each built-in set, as many of each of its sources; a smaller set stays whole."""
    load = builtin.load

    def thinned(name: str, *, split: str, cache_dir: Path | None = None) -> Dataset:
        rows = load(name, split=split, cache_dir=cache_dir)
        places: dict[str, list[int]] = defaultdict(list)
        for place, source in enumerate(rows["source"]):
            places[source].append(place)
        share = number // len(places)
        return rows.select(
            sorted(place for own in places.values() for place in own[:: max(1, len(own) // share)][:share])
        )

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(builtin, "load", thinned)
        yield
