import json
from datetime import timedelta
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
from tests.folder.test_atomic import full_disk
from tests.retrieval.toy_index import NUM, build, write_folder

from vlmo.retrieval import Index, approximate
from vlmo.retrieval import index as index_module
from vlmo.retrieval import store as store_module
from vlmo.retrieval.approximate import make_approximate
from vlmo.retrieval.in_memory import FILE, MemoryVectors, write_memory
from vlmo.retrieval.store import Approximate, Store

DIM = 32
HALF = 1e-3  # half floats, and their sums


def filled(folder, *, number: int, captions: bool = False) -> tuple[Store, np.ndarray]:
    """A table of vectors around some centres, as those of images lie."""
    generator = np.random.default_rng(0)
    centres = generator.standard_normal((40, DIM))
    vectors = centres[generator.integers(0, 40, number)] + generator.standard_normal((number, DIM))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    rows = []
    for row, vector in enumerate(vectors):
        facts = {"id": f"{row:024x}", "path": f"{row}.png", "vector": vector}
        texts = [f"caption {row}"] if captions else []
        rows.append(facts | {"captions": texts, "metadata": {"half": row % 2}})
    store = Store(folder, dim=DIM)
    store.write(rows)
    return store, vectors


def opened(folder, made: dict, **options) -> Index:
    model = {"folder": "nowhere", "fingerprint": "x", "dim": DIM}
    facts = {"version": 3, "model": model, "approximate": made}
    (folder / "index.json").write_text(json.dumps(facts))
    return Index(folder, **options)


def positions(hits: list) -> list[int]:
    return [int(hit.id, 16) for hit in hits]


def truth(vectors: np.ndarray, query: np.ndarray) -> list[int]:
    return np.argsort(-(vectors @ query)).tolist()


def odd(rows: list[int], number: int) -> list[int]:
    return [row for row in rows if row % 2][:number]


def made_for(store: Store, vectors: np.ndarray, before: dict | None = None) -> dict:

    def rows_of(texts):
        return [int(text.removeprefix("caption ")) for text in texts]

    encoder = SimpleNamespace(embed_texts=lambda texts: vectors[rows_of(texts)])
    made = make_approximate(store, encoder, least=1000, before=before, console=None)
    assert made is not None
    return made


@pytest.mark.parametrize("captions", [True, False])
def test_approximate_index_finds_nearly_what_exact_search_does(captions, tmp_path):
    store, vectors = filled(tmp_path, number=3000, captions=captions)
    made = made_for(store, vectors)
    assert made["recall"]["asked_with"] == ("captions" if captions else "images")
    assert made["search"]["nprobes"] < 55  # not all partitions
    index, found = opened(tmp_path, made), []
    for query in vectors[5::150]:
        best = truth(vectors, query)
        exact = index.nearest(query, top=10, where="half >= 0")
        assert positions(exact) == best[:10]
        nearly = index.nearest(query, top=10)
        found.append(len({*positions(nearly)} & {*best[:10]}) / 10)
        # Of what is found, the similarities are exact.
        expected = vectors[positions(nearly)] @ query
        assert [hit.similarity for hit in nearly] == pytest.approx(expected, abs=1e-5)
        halved = index.nearest(query, top=10, where="half = 1")  # those that pass are all compared
        assert positions(halved) == odd(best, 10)
    assert np.mean(found) >= 0.95
    assert made["recall"]["value"] == pytest.approx(np.mean(found), abs=0.06)
    assert len(index.nearest(vectors[0], top=2900)) == 2900  # more than the partitions hold


def test_large_index_is_searched_in_memory_until_its_table_changes(tmp_path, monkeypatch):
    monkeypatch.setattr(store_module, "_READ_EVERY", timedelta(0))
    for module in (index_module, approximate):
        # Of 3000 vectors in float32, or their columns.
        monkeypatch.setattr(module, "MAX_BYTES", 400_000)
    store, vectors = filled(tmp_path, number=3200)
    made = made_for(store, vectors)
    assert made["memory"]["recall"] >= 0.98
    index, asked, nearest = opened(tmp_path, made, in_memory=True), [], Store.nearest

    def noted(*a, **options):
        asked.append(a)
        return nearest(*a, **options)

    monkeypatch.setattr(Store, "nearest", noted)
    queries, found = vectors[5::200], 0
    for query in queries:
        hits, best = index.nearest(query, top=10), truth(vectors, query)[:10]
        rows = positions(hits)
        assert rows[0] == best[0]
        assert hits[0].path == f"{rows[0]}.png"
        found += len({*rows} & {*best})
        similarities = [hit.similarity for hit in hits]
        np.testing.assert_allclose(similarities, vectors[rows] @ query, atol=HALF)
    assert found >= 0.95 * 10 * len(queries)
    assert not asked
    assert len(index.nearest(vectors[0], top=3200)) == 3200
    halved = index.nearest(vectors[0], top=5, where="half = 1")
    assert positions(halved) == odd(truth(vectors, vectors[0]), 5)
    few = Approximate(partitions=57, nprobes=1, candidates=10)
    assert len(MemoryVectors(tmp_path).nearest(vectors[0], top=3200, search=few)[0]) < 3200 / 4
    before = (tmp_path / FILE).read_bytes()
    refused = pytest.raises(OSError, match=r"File too large.+vectors\.faiss")
    with full_disk(len(before) - 1), refused:
        write_memory(store, partitions=57)
    assert (tmp_path / FILE).read_bytes() == before
    asked.clear()
    new = {"id": "f" * 24, "path": "new.png", "vector": queries[0], "captions": [], "metadata": {}}
    store.write([new])
    assert "new.png" in {hit.path for hit in index.nearest(queries[0], top=2)}
    assert asked


def test_recall_is_measured_and_not_assumed(tmp_path, monkeypatch):
    store, vectors = filled(tmp_path, number=1500)

    def wrong(*_, search, **__):
        return pa.table({"id": ["a" if search else "b"]})

    monkeypatch.setattr(Store, "nearest", wrong)
    made = made_for(store, vectors)
    assert made["recall"]["value"] == 0
    # It tried all that there is.
    assert made["search"] == {"partitions": 39, "nprobes": 39, "candidates": 3200}


def test_search_in_memory_is_widened_until_it_finds_98_of_100(tmp_path, monkeypatch):
    monkeypatch.setattr(approximate, "MAX_BYTES", 0)
    nearest = MemoryVectors.nearest

    def loses_one_of_ten(self, vector, *, top, search):
        positions, cosines = nearest(self, vector, top=top, search=search)
        number = top if search.candidates >= 1600 else top - 1
        return positions[:number], cosines[:number]

    monkeypatch.setattr(MemoryVectors, "nearest", loses_one_of_ten)
    memory = made_for(*filled(tmp_path, number=1200))["memory"]
    assert memory["search"]["candidates"] == 1600
    assert memory["recall"] >= 0.98


def test_index_stays_until_the_table_has_doubled(tmp_path, monkeypatch):
    monkeypatch.setattr(approximate, "_QUERIES", 10)
    store, vectors = filled(tmp_path, number=1200)
    made = made_for(store, vectors)
    uuids = [index.index_uuid for index in store.table.list_indices()]
    again = made_for(store, vectors, before=made)
    assert [index.index_uuid for index in store.table.list_indices()] == uuids
    assert again["search"]["partitions"] == 35
    made_for(store, vectors, before={"search": {"partitions": 24}})
    assert [index.index_uuid for index in store.table.list_indices()] != uuids


def test_small_set_is_searched_exactly(encoder, tmp_path, monkeypatch):
    monkeypatch.setattr(store_module, "_READ_EVERY", timedelta(0))
    folder = write_folder(tmp_path / "images", numbers=range(3))
    assert build(encoder, folder, out=tmp_path / "index").recall is None
    opened, asked, nearest = Index(tmp_path / "index"), [], Store.nearest
    more = write_folder(tmp_path / "more")
    report = build(encoder, more, out=tmp_path / "index", approximate_from=10)
    facts = json.loads((tmp_path / "index" / "index.json").read_text())
    assert report.recall is not None
    assert facts["approximate"]["recall"]["value"] == report.recall["value"]

    def noted(store, vector, **options):
        asked.append(options["search"])
        return nearest(store, vector, **options)

    monkeypatch.setattr(Store, "nearest", noted)
    assert len(opened.nearest(np.ones(32, dtype=np.float32), top=50)) == NUM + 3
    # A reader asks as the last writer says.
    assert asked[0] == Approximate(**facts["approximate"]["search"])
