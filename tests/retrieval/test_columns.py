from __future__ import annotations

from datetime import date
from decimal import Decimal

import numpy as np
import pytest

from vlmo.retrieval.columns import Kind, clean_metadata, converted, merged_kind, read_texts


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([1, None, 2], Kind.INT),
        ([1, 2.5], Kind.FLOAT),
        ([True, False], Kind.BOOL),
        ([True, 1], Kind.TEXT),
        (["a", 1], Kind.TEXT),
        ([None], None),
        ([], None),
    ],
)
def test_kind_is_the_narrowest_that_holds_all(values, kind):
    assert merged_kind(values) is kind


def test_values_fit_their_column():
    assert [converted(value, Kind.TEXT) for value in (True, 1, 0.5, "a", None)] == ["true", "1", "0.5", "a", None]
    assert converted(1, Kind.FLOAT) == 1.0


@pytest.mark.parametrize(
    ("cells", "values"),
    [
        (["1", "-20", ""], [1, -20, None]),
        (["1", "2.5", "1e3"], [1.0, 2.5, 1000.0]),
        (["007", "12"], ["007", "12"]),
        (["true", "false"], [True, False]),
        (["1", "n/a"], ["1", "n/a"]),
        (["1", "-"], ["1", "-"]),
        (["", " "], [None, None]),
        (["12345678901234567890"], ["12345678901234567890"]),
    ],
)
def test_cells_of_a_column_are_read_alike(cells, values):
    assert read_texts(cells) == values


def test_metadata_becomes_plain():
    given = {
        "Price (EUR)": Decimal("2.5"),
        "2nd": np.int32(3),
        "id": "x",
        "größe": 1,
        "day": date(2020, 1, 2),
        "tags": ["a", {"b": 1}],
        "huge": 2**70,
        "raw": b"bytes",
        "nan": float("nan"),
        "none": None,
        "!": "?",
        "wide": 1,
        "Wide__wider": 2,
    }
    assert clean_metadata(given, reserved={"id"}) == {
        "price_eur": 2.5,
        "_2nd": 3,
        "id_": "x",
        "größe": 1,
        "day": "2020-01-02",
        "tags": '["a", {"b": 1}]',
        "huge": str(2**70),
        "column": "?",
        "wide": 1,
        "wide__wider_": 2,
    }
