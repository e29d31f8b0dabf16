import json
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta

import numpy as np
import pytest
from tests.integrations.toy_gallery import drawings
from tests.retrieval.toy_index import NAMES, NUM, build, encoded, write_folder

from vlmo.retrieval import Index, Searcher, build_index, store
from vlmo.retrieval import index as index_module
from vlmo.retrieval import search as search_module
from vlmo.retrieval.sources import image_id


@pytest.fixture(scope="module")
def index(gallery):
    return Index(gallery[1])


@pytest.mark.parametrize("unknown", ["", "nobody", "' or 1=1 --", "\n"])
def test_unknown_id_is_one_line(unknown, index):
    for ask in (index.thumbnail, index.image, index.vector):
        with pytest.raises(ValueError, match="no image has the id"):
            ask(unknown)


@pytest.mark.parametrize(
    ("where", "words"),
    [
        ("year > 2000; drop table x", "';' at character 12"),
        ("year in (" + "1, " * 7000 + "2)", "at most 20000"),
        ("year" + "-1" * 9000 + " = 2", "too many operators"),
        ("(" * 21 + "year = 1" + ")" * 21, "nested too deeply"),
        ("year > ", "sql parser error"),
        ("year", "cannot be used"),
        ("kind = 3", "cannot be used"),
        ("", "cannot be used"),
        ("yeer > 3", "names yeer, which is no column"),
        ("array_has(year, 1)", "cannot be used"),
    ],
)
def test_filter_that_is_no_condition_is_one_line(where, words, index):
    with pytest.raises(ValueError, match=words) as caught:
        index.nearest(np.ones(32, dtype=np.float32), top=1, where=where)
    assert "Columns: album, captions, hash, height, id, kind" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_long_lists_and_quoted_signs_pass(index):
    quoted = "`kind` != ';)repeat(' and \"kind\" != 'it''s ('"
    for where in ("year in (" + "1, " * 6000 + "2000)", quoted):
        assert index.nearest(np.ones(32, dtype=np.float32), top=NUM, where=where)


WITHOUT_SEARCH = {"version": 3, "model": {"fingerprint": "", "folder": "", "dim": 8}}
DAMAGED = [
    ("index.json", None, "is no index"),
    ("index.json", "{", r"index\.json is no JSON .*build the index anew"),
    ("index.json", "[" * 100_000, r"index\.json is no JSON .*build the index anew"),
    ("index.json", '{"version": 2}', "has version 2; this program reads 3. Index the images again"),
    ("index.json", '{"version": 3}', "the index is damaged"),
    ("index.json", '{"version": 3, "model": 3}', "the index is damaged"),
    ("index.json", json.dumps(WITHOUT_SEARCH | {"approximate": {}}), "the index is damaged"),
    ("images.lance", None, "the index is damaged"),
    ("images.lance/_versions", None, "the index is damaged"),
]


@pytest.mark.parametrize(("file", "content", "words"), DAMAGED)
def test_damaged_index_is_one_line(file, content, words, gallery, tmp_path):
    path = shutil.copytree(gallery[1], tmp_path / "index") / file
    if content is not None:
        path.write_text(content)
    else:
        path.rename(tmp_path / "gone")
    with pytest.raises(ValueError, match=words) as caught:
        Index(tmp_path / "index")
    assert "\n" not in str(caught.value)


def test_damaged_data_is_one_line(gallery, tmp_path):
    copy = shutil.copytree(gallery[1], tmp_path / "index")
    for file in (copy / "images.lance" / "data").rglob("*.lance"):
        file.write_bytes(file.read_bytes()[:100])
    index = Index(copy)
    with pytest.raises(ValueError, match="the index is damaged") as caught:
        index.nearest(np.ones(32, dtype=np.float32), top=1)
    assert "\n" not in str(caught.value)
    assert ".rs" not in str(caught.value)


@pytest.fixture
def quick(monkeypatch) -> None:
    """Readers see the writes of others at once."""
    monkeypatch.setattr(store, "_READ_EVERY", timedelta(0))


@pytest.fixture
def asked(monkeypatch) -> list[int]:
    """Numbers of images that LanceDB was asked for."""
    tops, nearest = list[int](), store.Store.nearest

    def noted(self, *a, **k):
        tops.append(k["top"])
        return nearest(self, *a, **k)

    monkeypatch.setattr(store.Store, "nearest", noted)
    return tops


def vectors(number: int, dim: int = 32) -> np.ndarray:
    drawn = np.random.default_rng(number).normal(size=dim).astype(np.float32)
    return drawn / np.linalg.norm(drawn)


def same_hits(one: Index, other: Index, vector: np.ndarray, *, top: int) -> None:
    found, wanted = (index.nearest(vector, top=top) for index in (one, other))
    for hit, expected in zip(found, wanted, strict=True):
        score, similarity = expected.score, expected.similarity
        assert (hit.score, hit.similarity) == pytest.approx((score, similarity), abs=1e-6)
        assert replace(hit, score=score, similarity=similarity) == expected


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


def test_filters_are_exact_and_large_indexes_ask_the_table(gallery, asked, monkeypatch):
    index = Index(gallery[1], in_memory=True)
    found = index.nearest(vectors(0), top=NUM, where="year < 2003")
    assert sorted(hit.metadata["year"] for hit in found) == [2000, 2001, 2002]
    assert index.nearest(vectors(0), top=NUM, where="year < 0") == asked == []
    for count, size in ((1, 4 * 32 * NUM - 1), (2, 4 * 32 * NUM)):  # then the columns are too many
        monkeypatch.setattr(index_module, "MAX_BYTES", size)
        assert len(Index(gallery[1], in_memory=True).nearest(vectors(0), top=NUM)) == NUM
        assert len(asked) == count


def paths(index: Index) -> set[str]:
    return {hit.path for hit in index.nearest(vectors(0), top=NUM)}


def test_another_index_in_the_folder_is_noticed(encoder, quick, asked, tmp_path):
    """Built by the same steps, so that its table has the same versions and row ids."""
    for name, numbers in (("old", range(4)), ("new", range(4, 8))):
        images = write_folder(tmp_path / f"{name} images", numbers=numbers)
        build(encoder, images, out=tmp_path / name)
    index = Index(tmp_path / "old", in_memory=True)
    assert len(paths(index)) == 4
    (tmp_path / "old").rename(tmp_path / "gone")
    (tmp_path / "new").rename(tmp_path / "old")
    same_hits(index, Index(tmp_path / "old"), vectors(0), top=NUM)
    assert len(asked) == 1  # the second index reads no vectors into memory


def test_index_of_another_model_in_the_folder_is_refused(gallery, tmp_path):
    index = Index(shutil.copytree(gallery[1], tmp_path / "index"))
    facts = json.loads((tmp_path / "index" / "index.json").read_text())
    facts["model"]["fingerprint"] = "0" * 64
    (tmp_path / "index" / "index.json").write_text(json.dumps(facts))
    for _ in range(2):
        with pytest.raises(ValueError, match="is now an index of another model"):
            index.nearest(vectors(0), top=1)


def test_index_without_images_has_no_groups(indexed, encoder):
    folder, out = indexed(range(1))
    assert [group["name"] for group in Index(out).groups()["albums"]] == ["images"]
    build_index(encoder, out=out, remove=[folder])
    assert Index(out).groups() == {"albums": [], "months": [], "num_undated": 0}


def test_threads_search_beside_a_writer(indexed, encoder, quick, tmp_path):
    folder, _ = indexed(range(6))
    index, stop = Index(tmp_path / "index", in_memory=True), threading.Event()

    def search() -> set[frozenset[str]]:
        seen = set()
        while not stop.is_set():
            hits = index.nearest(vectors(0), top=NUM)
            seen.add(frozenset(hit.path for hit in hits))
            assert [load().size for load in index.loaders([hit.id for hit in hits[:2]], least=8)]
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
    assert paths(index) == every[-1]


@pytest.fixture
def read(monkeypatch) -> list[str]:
    """Ids of images that were read."""
    read, loaders = list[str](), Index.loaders

    def noted(self, ids, **how):
        read.extend(ids)
        return loaders(self, ids, **how)

    monkeypatch.setattr(Index, "loaders", noted)
    return read


def test_pixels_have_a_limit(gallery, encoder, read, monkeypatch):
    monkeypatch.setattr(search_module, "_PIXEL_BYTES", 4 * 3 * 64 * 64)
    searcher = Searcher(encoder, gallery[1])
    # The first two of five were dropped, and with each that is read again another one.
    for wanted in (4, 8):
        searcher.search("a red circle", rerank=4)
        searcher.search("a blue square", rerank=4)
        assert len(searcher._pixels) == 4
        assert len(read) >= wanted


@pytest.mark.parametrize("store_bytes", [True, False])
def test_images_are_read_again_when_they_change(
    store_bytes, indexed, encoder, quick, read, tmp_path
):
    folder, _ = indexed(range(4), store_bytes=store_bytes)
    searcher = Searcher(encoder, tmp_path / "index")
    before = {hit.id: hit.match for hit in searcher.search("a red circle", rerank=4).hits}
    searcher.search("a red circle", rerank=4)
    assert len(read) == 4
    (folder / NAMES[1]).write_bytes(encoded(drawings()[9]))
    build(encoder, folder, out=tmp_path / "index")
    after = {hit.id: hit.match for hit in searcher.search("a red circle", rerank=4).hits}
    assert read[4:] == [image_id(str(folder / NAMES[1]))]
    # The order of the others in their batch may have changed, and with it their rounding.
    assert sum(abs(before[name] - match) > 1e-4 for name, match in after.items()) == 1
