"""Search by words in captions, file names and albums, alone and beside vectors."""

import itertools
from datetime import timedelta
from pathlib import Path

import lancedb
import pytest
from tests.integrations.toy_gallery import CAPTIONS, drawings
from tests.retrieval.toy_index import NAMES, build, encoded, write_tar

from vlmo.retrieval import Index, PhotoFilter, Searcher
from vlmo.retrieval import index as index_module
from vlmo.retrieval.fusion import fuse_ranks
from vlmo.retrieval.store import Store
from vlmo.retrieval.words import (
    image_texts,
    image_words,
    join_rows,
    own_words,
    query_words,
    split_words,
)

NAMED = {  # by the number of a drawing: its path; captions name color and shape
    0: "Rome/trevi_fountain-01.png",
    1: "Rome/IMG_0002.png",
    2: "Rome/Old/spanishSteps2.png",
    3: "Oslo/fountain.png",
    4: "Oslo/the Old Harbour.png",
    5: "Oslo/Fjörd.PNG",
}


@pytest.fixture(scope="module")
def cities(encoder, tmp_path_factory):
    base = tmp_path_factory.mktemp("cities")
    for number, name in NAMED.items():
        (base / "Pictures" / name).parent.mkdir(parents=True, exist_ok=True)
        (base / "Pictures" / name).write_bytes(encoded(drawings()[number]))
    table = "image,caption,year\nIMG_0002.png,Room 101 in two cities,2001\n"
    (base / "Pictures" / "captions.csv").write_text(table)
    build(encoder, base / "Pictures", out=base / "index")
    return base / "index"


@pytest.fixture(params=["disk", "memory"])
def found(request, encoder, cities):
    """Return the numbers of the drawings that a search finds, in the order of these numbers."""
    searcher = Searcher(encoder, Index(cities, in_memory=request.param == "memory"))

    def found(query, mode="words", **settings):
        return sorted(number_of(hit) for hit in searcher.search(query, mode=mode, **settings).hits)

    return found


def number_of(hit):
    names = list((NAMED if "Pictures" in hit.path else dict(enumerate(NAMES))).items())
    return next(number for number, name in names if hit.path.endswith(name))


def test_words_of_texts_and_names():
    assert split_words("The Été in  SÃO-Paulo, x2") == ["ete", "sao", "paulo", "x2"]
    row = {"path": "/a/b/redStar_02.final.png", "shard": None, "captions": ("Two stars",)}
    row["metadata"] = {"album": "Rome/2021"}
    assert image_words(row) == "rome 2021 red star final two stars"
    row |= {"path": "/a/00000.tar#sub/blueMoon", "shard": "/a/00000.tar", "captions": ()}
    assert image_words(row | {"metadata": {}}) == "blue moon"
    columns = {"album": "Rome", "ocr_text": "BAKERY | 24 hours"}
    lines = image_texts("/a/b.tar#DSC1.png", ("A bakery",), columns)
    assert lines == [["rome"], ["dsc"], ["bakery"], ["bakery"], ["24", "hours"]]
    assert image_texts("/a/red.TAR#blue/kite.png", (), {}) == image_texts("kite.png", (), {})
    assert image_texts("/a/red.TAR#kite.png", (), {}) == image_texts("kite.png", (), {})


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("fountain", [0, 3]),
        ("FOUNTAINS", [0, 3]),
        ("spanish steps", [2]),
        ("rome", [0, 1, 2]),
        ("fountain in Rome", [0, 1, 2, 3]),
        ("fjord", [5]),
        ("harbour", [4]),
        ("101", [1]),
        ("city", [1]),
        ("0002", []),
        ("the of", []),
        ("giraffe", []),
        ("png", []),
        ("'; drop table images", []),
    ],
)
def test_any_word_of_a_query_finds_names_captions_and_albums(query, expected, found):
    assert found(query) == expected


def test_kept_words_find_what_lancedb_finds_also_after_a_change(encoder, tmp_path, monkeypatch):
    monkeypatch.setattr("vlmo.retrieval.store._READ_EVERY", timedelta(0))
    monkeypatch.setattr(index_module, "_KEPT_WORDS", 3)
    names = ["redStar", "stars on a red moon", "MOON moon old", "Old city star", "blue"]
    for name in [*names, "oldRedCity moons"]:
        (tmp_path / f"{name}.png").write_bytes(encoded(drawings()[len(name) % 24]))
    build(encoder, tmp_path, out=tmp_path / "index")
    index, store = Index(tmp_path / "index", in_memory=True), Store(tmp_path / "index")

    def check():
        assert index.nearest(encoder.embed_texts(["a"])[0], top=1)  # sees the change
        images = index._memory.exact
        counts = set()
        for number, every in itertools.product(range(1, 5), (True, False)):
            for words in itertools.combinations(["red", "stars", "moon", "cities", "zyqx"], number):
                wanted = store.matching(words, every=every, most=100, columns=["id"])
                matches = [images.find_word(word) for word in words]
                rows, scores, shares = join_rows(matches, every=every)
                found = dict(zip(images.table["id"].take(rows).to_pylist(), scores, strict=True))
                pairs = zip(wanted["id"].to_pylist(), wanted["_score"].to_pylist(), strict=True)
                assert found == pytest.approx(dict(pairs), abs=1e-5)
                least = number if every else 1
                assert set(shares) <= {share / number for share in range(least, number + 1)}
                counts.add(len(found))
        assert counts >= {0, 1, 2, 3, 4}
        assert images.find_word.cache_info().currsize == 3
        (vector,) = encoder.embed_texts(["moon"])
        queries = (["moon"], ["old", "red"], ["zyqx", "city"])
        for where, words in itertools.product((None, "path like '%d%'"), queries):
            disk, memory = (
                each.nearest(vector, top=4, where=where, words=words)
                for each in (Index(tmp_path / "index"), index)
            )
            assert [(hit.id, hit.words) for hit in memory] == [(hit.id, hit.words) for hit in disk]
            assert len(memory) > (where is None)

    check()
    (tmp_path / "old blue star.png").write_bytes(encoded(drawings()[3]))
    (tmp_path / "redStar.png").unlink()
    (tmp_path / "blue.png").rename(tmp_path / "blue moon red old city.png")
    build(encoder, out=tmp_path / "index")
    check()


def test_words_that_the_index_leaves_out_are_not_looked_up():
    assert query_words(f"Red {'x' * 40} {'ж' * 20} {'y' * 39} red") == ["red", "y" * 39]


@pytest.mark.parametrize("mode", ["words", "hybrid", "auto"])
@pytest.mark.parametrize(
    ("settings", "passing"),
    [
        ({"where": "year = 2001"}, {1}),
        ({"photos": PhotoFilter(album="Oslo")}, {3, 4, 5}),
        ({"photos": PhotoFilter(album="Old"), "where": "year is null"}, {2}),
        ({"photos": PhotoFilter(until="1999")}, set()),
        ({"photos": PhotoFilter(album="rome"), "sort": "date"}, {0, 1, 2}),
    ],
)
def test_filters_hold_in_all_modes(mode, settings, passing, found):
    if mode == "words":
        passing = passing & set(found("old fountain", "words"))
    assert found("old fountain", mode, **settings) == sorted(passing)


def test_order_by_words_is_the_share_of_rare_words_then_similarity(encoder, cities):
    searcher = Searcher(encoder, cities)
    hits = searcher.search("trevi fountain rome", mode="words").hits
    assert [round(hit.words, 2) for hit in hits] == [1.0, 0.33, 0.33, 0.33]
    assert number_of(hits[0]) == 0
    rome = searcher.search("rome", mode="words").hits
    same = [hit for hit in rome if number_of(hit) in {0, 1}]
    assert same[0].similarity >= same[1].similarity


@pytest.mark.parametrize("rerank", [0, 4])
@pytest.mark.parametrize("mode", ["auto", "hybrid"])
def test_orders_are_fused_by_reciprocal_ranks(mode, rerank, searcher):
    query = "green circle"
    plain = searcher.search(query, top=24, rerank=rerank, mode="vectors").hits
    words = searcher.search(query, top=24, mode="words").hits
    words = [hit for hit in words if mode == "hybrid" or hit.words == 1]
    assert {hit.captions for hit in words if hit.words == 1} == {tuple(CAPTIONS[5])}
    scores = {hit.id: 1 / (60 + rank) for rank, hit in enumerate(plain, start=1)}
    for rank, hit in enumerate(words, start=1):
        # An image of all words has no others.
        scores[hit.id] += (3 if hit.words == 1 else 2 * hit.words**2) / (60 + rank)
    result = searcher.search(query, top=24, rerank=rerank, mode=mode)
    assert [hit.id for hit in result.hits] == sorted(scores, key=lambda each: -scores[each])
    ordered = sorted(scores.values(), reverse=True)
    assert [hit.score for hit in result.hits] == pytest.approx(ordered)
    assert (result.num_matched, result.num_reranked) == (len(words), rerank)


@pytest.mark.parametrize(
    ("named", "expected"),
    [
        # By words b and d: one of two, and both of d's. By the model a first: 2/61 + 1/62 of b, which a takes.
        ({"a": "IMG_1", "b": "red kite", "c": "IMG_2", "d": "blue kite"}, "abcd"),
        ({"a": "IMG_1", "b": "kites", "c": "IMG_2", "d": "blue kite"}, "badc"),
        ({"a": "big lake", "b": "red kite", "c": "the old town", "d": "blue kite"}, "bdac"),
        ({"a": "red kite", "b": "IMG_1", "c": "blue kite", "d": "IMG_2"}, "abcd"),
        ({"a": "red kite", "b": "IMG_1", "c": "IMG_2", "d": "blue kite"}, "abdc"),
        ({"a": "IMG_1_HDR", "b": "red kite", "c": "WhatsApp Image 2", "d": "blue kite"}, "abcd"),
        ({"a": "8f14e45f-ceea-467e", "b": "red kite", "c": "PXL_1.MP", "d": "blue kite"}, "abcd"),
    ],
)
def test_images_without_words_keep_their_place_before_those_with_others(named, expected):
    words = {each: own_words(f"/{name}.jpg", (), {}) for each, name in named.items()}
    shares = {each: 1.0 for each, name in named.items() if "kite" in name}
    assert "".join(fuse_ranks("abcd", shares, ["kite"], words.__getitem__)) == expected


@pytest.mark.parametrize("query", ["giraffe", "green giraffe", "the", "a zyqx"])
def test_query_that_no_image_has_all_words_of_loses_nothing(query, searcher):
    plain, fused = searcher.search(query, mode="vectors"), searcher.search(query)
    assert (fused.hits, fused.num_matched, fused.no_match) == (plain.hits, 0, plain.no_match)


def test_words_of_nonsense_that_are_found_are_a_match(encoder, tmp_path):
    for number, name in enumerate(["zyqxwv.png", "b.png"]):
        (tmp_path / "images").mkdir(exist_ok=True)
        (tmp_path / "images" / name).write_bytes(encoded(drawings()[number]))
    build(encoder, tmp_path / "images", out=tmp_path / "index")
    result = Searcher(encoder, tmp_path / "index").search("zyqxwv")
    assert Path(result.hits[0].path).name == "zyqxwv.png"
    assert not result.no_match
    (tmp_path / "images" / "zyqxwv.png").rename(tmp_path / "images" / "other.png")
    build(encoder, out=tmp_path / "index")
    assert Searcher(encoder, tmp_path / "index").search("zyqxwv", mode="words").hits == []


def test_captions_of_shards_are_found(encoder, tmp_path):
    build(encoder, write_tar(tmp_path / "1.tar"), out=tmp_path / "index")
    hits = Searcher(encoder, tmp_path / "index").search("crosses", mode="words", top=24).hits
    crosses = {captions[0] for captions in CAPTIONS if "cross" in captions[0]}
    assert {hit.captions[0] for hit in hits} == crosses


def test_index_of_an_earlier_version_finds_words_after_its_next_run(encoder, indexed, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("vlmo.retrieval.sources._LAYOUT", 1)
        folder, out = indexed(range(4))
    table = lancedb.connect(out).open_table("images")
    table.drop_index("full_text_idx")
    table.drop_columns(["full_text"])
    searcher = Searcher(encoder, out)
    plain = searcher.search("red square", mode="vectors").hits
    assert searcher.search("red square").hits == plain
    with pytest.raises(ValueError, match=r"^the index knows no words"):
        searcher.search("red square", mode="words")
    report = build(encoder, folder, out=out)
    assert (report.encoded, report.reused) == (0, 4)
    monkeypatch.setattr("vlmo.retrieval.store._READ_EVERY", timedelta(0))
    assert len(Searcher(encoder, out).search("square", mode="words").hits) == 1


def test_more_matches_than_are_compared_still_fill_the_results(encoder, cities, monkeypatch):
    monkeypatch.setattr(index_module, "_MATCHED", 1)
    assert len(Searcher(encoder, cities).search("rome", mode="words").hits) == 3  # 100 are fused


def test_mode_without_a_text_is_refused(searcher):
    for mode in ("words", "hybrid"):
        with pytest.raises(ValueError, match=f"mode {mode} looks up words, but there is no text"):
            searcher.search(drawings()[0], mode=mode)
    with pytest.raises(ValueError, match="leave rerank at 0"):
        searcher.search("red", mode="words", rerank=3)
