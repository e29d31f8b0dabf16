"""Searches from memory find what searches of the tables find, and see what writers change."""

from __future__ import annotations

import os
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import numpy as np
import pytest
from tests.integrations.toy_gallery import drawings
from tests.retrieval.toy_index import NAMES, NUM, build, encoded, write_folder

from vlmo.retrieval import Hit, Index, Searcher, store
from vlmo.retrieval import index as index_module
from vlmo.retrieval import search as search_module


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


def same_hits(one: Index, other: Index, vector: np.ndarray, *, top: int) -> None:
    found, wanted = (index.nearest(vector, top=top) for index in (one, other))
    same = [[(hit.id, hit.captions, hit.metadata, hit.place) for hit in hits] for hits in (found, wanted)]
    assert same[0] == same[1]
    np.testing.assert_allclose([hit.score for hit in found], [hit.score for hit in wanted], atol=1e-6)


def test_hits_are_those_of_the_table(gallery, asked):
    plain, quick = Index(gallery[1]), Index(gallery[1], in_memory=True)
    for number in range(5):
        for top in (1, 3, NUM, 10_000):
            same_hits(quick, plain, vectors(number), top=top)
    assert len(asked) == 20
    with pytest.raises(ValueError, match="top is 0"):
        quick.nearest(vectors(0), top=0)
    with pytest.raises(ValueError, match="expected 32 numbers"):
        quick.nearest(vectors(0, dim=8), top=1)


def test_filters_and_large_indexes_ask_the_table(gallery, asked, monkeypatch):
    index = Index(gallery[1], in_memory=True)
    found = index.nearest(vectors(0), top=NUM, where="year < 2003")
    assert sorted(hit.metadata["year"] for hit in found) == [2000, 2001, 2002]
    assert len(asked) == 1
    for count, size in enumerate([4 * 32 * NUM - 1, 4 * 32 * NUM], start=2):  # then the columns are too many
        monkeypatch.setattr(index_module, "MAX_BYTES", size)
        assert len(Index(gallery[1], in_memory=True).nearest(vectors(0), top=NUM)) == NUM
        assert len(asked) == count


def places(index: Index) -> set[str]:
    return {hit.place for hit in index.nearest(vectors(0), top=NUM)}


def wait_until_read(index: Index, asked: list[str]) -> None:
    """Ask until the answer is from memory."""
    for _ in range(200):
        before = len(asked)
        index.nearest(vectors(0), top=1)
        if len(asked) == before:
            return
        time.sleep(0.05)
    raise AssertionError("the vectors are not read again")


def test_another_index_in_the_folder_is_noticed(encoder, quick, asked, tmp_path):
    """Built by the same steps, so that its table has the same versions and row ids."""
    for name, numbers in (("old", range(4)), ("new", range(4, 8))):
        build(encoder, write_folder(tmp_path / f"{name} images", numbers=numbers), out=tmp_path / name)
    index = Index(tmp_path / "old", in_memory=True)
    assert len(places(index)) == 4
    (tmp_path / "old").rename(tmp_path / "gone")
    (tmp_path / "new").rename(tmp_path / "old")
    for _ in range(2):
        same_hits(index, Index(tmp_path / "old"), vectors(0), top=NUM)
        wait_until_read(index, asked)


def test_an_index_that_is_gone_ends_no_thread(encoder, quick, tmp_path):
    build(encoder, write_folder(tmp_path / "images", numbers=range(3)), out=tmp_path / "index")
    index = Index(tmp_path / "index", in_memory=True)
    shutil.rmtree(tmp_path / "index")
    index._memory.read((0,))
    assert index._memory.nearest(vectors(0), top=1, version=(0,)) is None


def test_threads_search_beside_a_writer(indexed, encoder, quick, tmp_path):
    folder, _ = indexed(range(6))
    index, stop = Index(tmp_path / "index", in_memory=True), threading.Event()

    def search() -> set[frozenset[str]]:
        seen = set()
        while not stop.is_set():
            hits = index.nearest(vectors(0), top=NUM)
            seen.add(frozenset(hit.place for hit in hits))
            assert [load().size for load in index.loaders(hits[:2])]
        return seen

    every = [frozenset(str(folder / name) for name in NAMES[:6])]
    with ThreadPoolExecutor(3) as pool:
        searches = [pool.submit(search) for _ in range(3)]
        for number in range(6, 9):
            write_folder(tmp_path / f"new {number}", numbers=range(number, number + 1))
            (tmp_path / f"new {number}" / NAMES[number]).rename(folder / NAMES[number])
            build(encoder, folder, out=tmp_path / "index")
            every.append(every[-1] | {str(folder / NAMES[number])})
        stop.set()
        assert set().union(*(each.result() for each in searches)) <= set(every)
    assert places(index) == every[-1]


@pytest.fixture
def read(monkeypatch) -> list[Hit]:
    """Hits whose images were read."""
    hits: list[Hit] = []
    loaders = Index.loaders
    monkeypatch.setattr(Index, "loaders", lambda self, found: (hits.extend(found), loaders(self, found))[1])
    return hits


def test_images_are_read_again_when_their_files_change(indexed, encoder, read, tmp_path):
    folder, _ = indexed(range(4))
    searcher = Searcher(encoder, Index(tmp_path / "index", in_memory=True))
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


def test_pixels_have_a_limit(gallery, encoder, read, monkeypatch):
    monkeypatch.setattr(search_module, "_PIXEL_BYTES", 4 * 3 * 64 * 64)
    searcher = Searcher(encoder, gallery[1])
    for wanted in (4, 8):  # the first two of five were dropped, and with each that is read again another one
        searcher.search("a red circle", rerank=4)
        searcher.search("a blue square", rerank=4)
        assert len(searcher._pixels) == 4
        assert len(read) >= wanted


def test_images_in_the_index_are_known_until_they_change_there(indexed, encoder, quick, read, tmp_path):
    folder, _ = indexed(range(4), store_bytes=True)
    searcher = Searcher(encoder, tmp_path / "index")
    before = {hit.id: hit.match for hit in searcher.search("a red circle", rerank=4).hits}
    searcher.search("a red circle", rerank=4)
    assert len(read) == 4
    place = folder / NAMES[1]
    place.write_bytes(encoded(drawings()[9]))
    build(encoder, folder, out=tmp_path / "index", store_bytes=True)
    after = {hit.id: hit.match for hit in searcher.search("a red circle", rerank=4).hits}
    assert [hit.place for hit in read[4:]] == [str(place)]
    # The order of the others in their batch may have changed, and with it their rounding.
    assert sum(abs(before[name] - match) > 1e-4 for name, match in after.items()) == 1
