"""Vectors for the search benchmark: what is made, what is read, and their exact neighbours."""

from __future__ import annotations

import numpy as np

from vectors import MadeVectors, Neighbours


def made(rows: int, *, dim: int = 32) -> np.ndarray:
    return np.concatenate(list(MadeVectors(dim=dim).blocks(rows)))


def test_neighbours_are_those_of_all_blocks_together() -> None:
    among, queries = made(500), MadeVectors(dim=32).queries(20)["texts"]
    neighbours = Neighbours(queries)
    for start, end in ((0, 4), (4, 200), (200, 500)):
        neighbours.see(among[start:end])
    expected = np.argsort(-(queries @ among.T), axis=1)[:, :10]
    np.testing.assert_array_equal(neighbours.rows.numpy(), expected)
