"""Searches from memory find what searches of the tables find, and see what writers change."""

from __future__ import annotations

import os
from datetime import timedelta

import numpy as np
import pytest
from tests.retrieval.toy_index import NAMES, NUM, build, write_folder

from vlmo.retrieval import Hit, Index, Searcher, memory, store
from vlmo.retrieval.memory import PixelMemory


@pytest.fixture
def quick(monkeypatch) -> None:
    """Readers see the writes of others at once."""
    monkeypatch.setattr(store, "_READ_EVERY", timedelta(0))


@pytest.fixture
def asked(monkeypatch) -> list[str]:
    """What LanceDB was asked to compare vectors with."""
    tables: list[str] = []
    nearest = store.Store.nearest
    monkeypatch.setattr(
        store.Store, "nearest", lambda self, table, *a, **k: (tables.append(table), nearest(self, table, *a, **k))[1]
    )
    return tables


def vectors(number: int, dim: int = 32) -> np.ndarray:
    drawn = np.random.default_rng(number).normal(size=dim).astype(np.float32)
    return drawn / np.linalg.norm(drawn)


def test_hits_are_those_of_the_table(gallery, asked):
    plain, quick = Index(gallery[1]), Index(gallery[1], in_memory=True)
    for number in range(5):
        for top in (1, 3, NUM, 10_000):
            wanted, found = (index.nearest(vectors(number), top=top) for index in (plain, quick))
            assert [hit.id for hit in found] == [hit.id for hit in wanted]
            np.testing.assert_allclose([h.score for h in found], [h.score for h in wanted], atol=1e-6)
            assert [(h.captions, h.metadata, h.place) for h in found] == [
                (h.captions, h.metadata, h.place) for h in wanted
            ]
    assert len(asked) == 20
    with pytest.raises(ValueError, match="top is 0"):
        quick.nearest(vectors(0), top=0)
    with pytest.raises(ValueError, match="expected 32 numbers"):
        quick.nearest(vectors(0, dim=8), top=1)


def test_filters_and_large_indexes_ask_the_table(gallery, asked, monkeypatch):
    index = Index(gallery[1], in_memory=True)
    assert {hit.metadata["year"] for hit in index.nearest(vectors(0), top=NUM, where="year < 2003")} == {
        2000,
        2001,
        2002,
    }
    assert len(asked) == 1
    monkeypatch.setattr(memory, "MAX_BYTES", 4 * 32 * NUM - 1)
    assert len(Index(gallery[1], in_memory=True).nearest(vectors(0), top=NUM)) == NUM
    assert len(asked) == 2


def test_changes_of_a_writer_are_seen(encoder, quick, asked, tmp_path):
    folder = write_folder(tmp_path / "images", numbers=range(6))
    build(encoder, folder, out=tmp_path / "index")
    index = Index(tmp_path / "index", in_memory=True)
    before = {hit.place for hit in index.nearest(vectors(0), top=NUM)}
    (folder / NAMES[0]).unlink()
    write_folder(tmp_path / "new", numbers=range(6, 9))
    for name in NAMES[6:9]:
        (tmp_path / "new" / name).rename(folder / name)
    build(encoder, folder, out=tmp_path / "index")
    after = {hit.place for hit in index.nearest(vectors(0), top=NUM)}
    assert before - after == {str(folder / NAMES[0])}
    assert after - before == {str(folder / name) for name in NAMES[6:9]}
    assert not asked


def test_rows_that_move_while_they_are_asked_for_are_found_in_the_table(encoder, quick, asked, tmp_path, monkeypatch):
    folder = write_folder(tmp_path / "images", numbers=range(6))
    build(encoder, folder, out=tmp_path / "index")
    index = Index(tmp_path / "index", in_memory=True)
    version = index.version
    (folder / NAMES[0]).unlink()
    build(encoder, folder, out=tmp_path / "index")
    monkeypatch.setattr(store.Store, "version", lambda _: version)  # as if the writer had come a moment later
    assert {hit.place for hit in index.nearest(vectors(0), top=NUM)} == {str(folder / name) for name in NAMES[1:6]}
    assert asked


def test_images_are_read_again_when_their_files_change(encoder, gallery, tmp_path, monkeypatch):
    folder = write_folder(tmp_path / "images", numbers=range(4))
    build(encoder, folder, out=tmp_path / "index")
    searcher = Searcher(encoder, tmp_path / "index")
    read: list[Hit] = []
    loaders = Index.loaders
    monkeypatch.setattr(Index, "loaders", lambda self, hits: (read.extend(hits), loaders(self, hits))[1])
    first = searcher.search("a red circle", rerank=4)
    assert len(read) == 4
    assert [hit.match for hit in searcher.search("a red circle", rerank=4).hits] == [hit.match for hit in first.hits]
    assert len(read) == 4
    one, gone = (folder / NAMES[number] for number in (1, 2))
    os.utime(one, ns=(0, 0))
    gone.unlink()
    found = searcher.search("a red circle", rerank=4)
    assert len(read) == 6
    assert [hit.place for hit in found.unreadable] == [str(gone)]


def test_images_in_the_index_are_known_until_it_changes(encoder, quick, tmp_path, monkeypatch):
    folder = write_folder(tmp_path / "images", numbers=range(4))
    build(encoder, folder, out=tmp_path / "index", store_bytes=True)
    searcher = Searcher(encoder, tmp_path / "index")
    read: list[Hit] = []
    loaders = Index.loaders
    monkeypatch.setattr(Index, "loaders", lambda self, hits: (read.extend(hits), loaders(self, hits))[1])
    for _ in range(2):
        searcher.search("a red circle", rerank=4)
    assert len(read) == 4
    write_folder(tmp_path / "new", numbers=range(4, 5))
    (tmp_path / "new" / NAMES[4]).rename(folder / NAMES[4])
    build(encoder, folder, out=tmp_path / "index", store_bytes=True)
    searcher.search("a red circle", rerank=5)
    assert len(read) == 9


def test_pixels_have_a_limit():
    kept = PixelMemory(max_bytes=3 * 12)
    for number in range(4):
        if number == 3:
            kept.get(("0", 1))
        kept.add((str(number), 1), np.zeros((3, 2, 2), np.uint8))
    assert [kept.get((str(number), 1)) is not None for number in range(4)] == [True, False, True, True]
    kept.add(None, np.zeros((3, 2, 2), np.uint8))
    kept.add(("5", 1), None)
    assert kept.get(None) is None
    assert kept.get(("5", 1)) is None
