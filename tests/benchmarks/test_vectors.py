"""Vectors for the search benchmark: what is made, what is read, and their exact neighbours."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

import vectors
from vectors import FileVectors, MadeVectors, Neighbours, hardness, read_vectors

ROUNDING = 1e-5


def made(rows: int, *, dim: int = 32) -> np.ndarray:
    return np.concatenate(list(MadeVectors(dim=dim).blocks(rows)))


def test_a_larger_set_begins_with_the_smaller_one(monkeypatch) -> None:
    monkeypatch.setattr(vectors, "BLOCK", 50)
    small, large = made(70), made(130)
    assert (small.shape, large.shape, large.dtype) == ((70, 32), (130, 32), np.float32)
    np.testing.assert_array_equal(small, large[:70])
    np.testing.assert_allclose(np.linalg.norm(large, axis=1), 1, atol=ROUNDING)
    assert len(np.unique(large, axis=0)) == 130


def test_texts_are_further_away_than_pictures() -> None:
    among, queries = made(2000), MadeVectors(dim=32).queries(100)
    texts, pictures = (hardness(queries[kind], among) for kind in ("texts", "pictures"))
    assert texts["cosine_of_the_nearest"] < pictures["cosine_of_the_nearest"] - 0.1
    assert texts["contrast"] < pictures["contrast"]
    assert texts["local_intrinsic_dimension"] > pictures["local_intrinsic_dimension"]
    assert not np.isin(queries["pictures"][:, 0], among[:, 0]).any()


def test_hardness_of_noise_is_its_dimension() -> None:
    random = np.random.default_rng(0)
    noise = random.standard_normal((20_000, 4)).astype(np.float32)
    noise /= np.linalg.norm(noise, axis=1, keepdims=True)
    found = hardness(noise[:200], noise[200:])
    assert found["local_intrinsic_dimension"] == pytest.approx(3, rel=0.1)  # a sphere in 4 dimensions has 3
    assert found["mean_cosine"] == pytest.approx(0, abs=0.02)


def test_neighbours_are_those_of_all_blocks_together() -> None:
    among, queries = made(500), MadeVectors(dim=32).queries(20)["texts"]
    neighbours = Neighbours(queries)
    for start, end in ((0, 4), (4, 200), (200, 500)):
        neighbours.see(among[start:end])
    expected = np.argsort(-(queries @ among.T), axis=1)[:, :10]
    np.testing.assert_array_equal(neighbours.rows.numpy(), expected)


@pytest.mark.parametrize("name", ["some.npy", "some.parquet"])
def test_vectors_of_a_file_are_normalised_and_its_last_rows_are_queries(tmp_path, name) -> None:
    rows = np.random.default_rng(0).standard_normal((30, 8)).astype(np.float32)
    if name.endswith("npy"):
        np.save(tmp_path / name, rows)
    else:
        parquet.write_table(pa.table({"id": list(range(30)), "vector": list(rows)}), tmp_path / name)
    source = FileVectors(read_vectors(tmp_path / name))
    expected = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    np.testing.assert_allclose(np.concatenate(list(source.blocks(25))), expected[:25], atol=ROUNDING)
    np.testing.assert_allclose(source.queries(5)["rows"], expected[25:], atol=ROUNDING)
    asked = FileVectors(source.vectors, asked=rows[:3])
    np.testing.assert_allclose(asked.queries(5)["file"], expected[:3], atol=ROUNDING)
