from __future__ import annotations

import json

import numpy as np
import pytest
from tests.retrieval.toy_index import NUM, build, write_folder

from vlmo.retrieval import Index, approximate
from vlmo.retrieval.approximate import make_approximate
from vlmo.retrieval.embedding import Batch, Encoded
from vlmo.retrieval.sources import Record
from vlmo.retrieval.store import Approximate, Store

DIM = 32


def filled(folder, *, number: int, captions: bool) -> tuple[Store, np.ndarray]:
    """A table of vectors around some centres, as those of images lie."""
    generator = np.random.default_rng(0)
    centres = generator.standard_normal((40, DIM))
    vectors = centres[generator.integers(0, 40, number)] + generator.standard_normal((number, DIM))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    records = [
        Record(
            id=f"{row:024x}",
            place=f"{row}.png",
            origin="/",
            shard=None,
            stamp="",
            hash=f"{row:032x}",
            data=b"",
            path=f"{row}.png",
            keep_bytes=False,
            size=0,
            captions=(f"caption {row}",) if captions else (),
            metadata={"half": row % 2},
        )
        for row in range(number)
    ]
    of_captions = [vector[None] if captions else np.zeros((0, DIM), np.float32) for vector in vectors]
    store = Store(folder, dim=DIM)
    store.write(Batch(records, [Encoded(vector, b"", 1, 1) for vector in vectors], of_captions).as_rows())
    return store, vectors


def made_for(store: Store, before: dict | None = None) -> dict:
    made = make_approximate(store, least=1000, before=before, console=None)
    assert made is not None
    return made


def written(store: Store, approximate: dict | None) -> Index:
    model = {"folder": "nowhere", "fingerprint": "x", "dim": DIM}
    facts = {"version": 2, "model": model, "approximate": approximate}
    (store.folder / "index.json").write_text(json.dumps(facts))
    return Index(store.folder)


@pytest.mark.parametrize("captions", [True, False])
def test_approximate_index_finds_nearly_what_exact_search_does(captions, tmp_path):
    store, vectors = filled(tmp_path, number=3000, captions=captions)
    made = made_for(store)
    assert made["recall"]["asked_with"] == ("captions" if captions else "images")
    assert (made["captions"] is not None) == captions
    index = written(store, made)
    assert index.approximate is not None
    assert index.approximate.nprobes < 55  # not all partitions
    found = []
    for query in vectors[5::150]:
        truth = np.argsort(-(vectors @ query))[:10]
        exact = index.nearest(query, top=10, exact=True)
        assert [int(hit.id, 16) for hit in exact] == truth.tolist()
        nearly = index.nearest(query, top=10)
        found.append(len({int(hit.id, 16) for hit in nearly} & set(truth.tolist())) / 10)
        # Of what is found, the similarities are exact.
        for hit in nearly:
            assert hit.similarity == pytest.approx(float(vectors[int(hit.id, 16)] @ query), abs=1e-5)
        halved = index.nearest(query, top=10, where="half = 1")
        assert len(halved) == 10
        assert all(int(hit.id, 16) % 2 for hit in halved)
    assert np.mean(found) >= 0.95
    assert made["recall"]["value"] == pytest.approx(np.mean(found), abs=0.06)
    if captions:
        assert index.nearest_captions(vectors[7], top=1)[0].captions == ("caption 7",)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """3000 vectors without captions, and their approximate index."""
    store, vectors = filled(tmp_path_factory.mktemp("plain"), number=3000, captions=False)
    made = made_for(store)
    return store, vectors, made


@pytest.mark.parametrize("few", [50_000, 0])
def test_filter_that_few_pass_costs_no_recall(few, plain, monkeypatch):
    """Also where few partitions are looked through: those that pass are compared all, or partitions are added."""
    monkeypatch.setattr("vlmo.retrieval.index._FEW", few)
    store, vectors, made = plain
    index = written(store, {**made, "images": {"partitions": 55, "nprobes": 2, "candidates": 200}})
    shares = []
    for query in vectors[5::300]:
        for where, passing in (
            ("place like '%00.png'", 30),  # one of a hundred
            ("place in ('3.png', '1207.png', '2009.png')", 3),
            ("place like '%7.png'", 300),
            ("place like 'x%'", 0),
        ):
            exact = index.nearest(query, top=10, where=where, exact=True)
            assert len(exact) == min(10, passing)
            found = index.nearest(query, top=10, where=where)
            if passing == 300 and not few:  # ten times as many partitions: nearly all that are near
                assert len(found) == 10
                shares.append(len({hit.id for hit in found} & {hit.id for hit in exact}) / 10)
            else:
                assert [hit.id for hit in found] == [hit.id for hit in exact]
    assert few or np.mean(shares) >= 0.8  # partitions begin at random


def test_recall_is_measured_and_not_assumed(tmp_path, monkeypatch):
    store, _ = filled(tmp_path, number=1500, captions=False)
    monkeypatch.setattr(Store, "nearest", lambda *_, **__: [{"id": "nobody"}])
    made = made_for(store)
    assert made["recall"]["value"] == 0
    assert (made["images"]["nprobes"], made["images"]["candidates"]) == (39, 3200)  # it tried all that there is


def test_candidates_are_added_where_partitions_do_not_help(tmp_path, monkeypatch):
    store, _ = filled(tmp_path, number=1500, captions=False)
    nearest, asked = Store.nearest, []

    def few_candidates(store, table, query, *, top, search, columns):
        asked.append((search.nprobes, search.candidates))
        top = top if search.candidates >= 1000 else 5
        return nearest(store, table, query, top=top, search=search, columns=columns)

    monkeypatch.setattr(Store, "nearest", few_candidates)
    monkeypatch.setattr(approximate, "_QUERIES", 20)
    made = made_for(store)
    assert list(dict.fromkeys(asked)) == [(25, 200), (39, 400), (39, 800), (39, 1600)]
    assert (made["images"]["nprobes"], made["images"]["candidates"]) == (39, 1600)
    assert made["recall"]["value"] >= approximate.ENOUGH
    assert written(store, made).approximate == Approximate(**made["images"])


def test_index_stays_until_the_table_has_doubled(tmp_path, monkeypatch):
    monkeypatch.setattr(approximate, "_QUERIES", 10)
    store, _ = filled(tmp_path, number=1200, captions=False)
    made = made_for(store)
    uuids = [index.index_uuid for index in store.images.list_indices()]
    again = made_for(store, before=made)
    assert [index.index_uuid for index in store.images.list_indices()] == uuids
    assert again["images"]["partitions"] == 35
    made_for(store, before={"images": {"partitions": 24}})
    assert [index.index_uuid for index in store.images.list_indices()] != uuids


def test_small_set_is_searched_exactly(encoder, tmp_path):
    folder = write_folder(tmp_path / "images", numbers=range(3))
    report = build(encoder, folder, out=tmp_path / "index")
    assert report.recall is None
    opened = Index(tmp_path / "index")
    assert opened.approximate is None
    report = build(encoder, write_folder(tmp_path / "more"), out=tmp_path / "index", approximate_from=10)
    facts = json.loads((tmp_path / "index" / "index.json").read_text())
    assert report.recall is not None
    assert facts["approximate"]["recall"]["value"] == report.recall["value"]
    index = Index(tmp_path / "index")
    assert index.approximate is not None
    assert opened.approximate == index.approximate  # a reader asks as the last writer says
    assert len(index.nearest(np.ones(32, dtype=np.float32), top=50)) == NUM + 3
