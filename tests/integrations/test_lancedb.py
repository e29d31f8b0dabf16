import lancedb
import pyarrow as pa
import pytest
from lancedb.index import FTS
from tests.integrations.toy_gallery import CAPTIONS, drawings, trained_folder
from tests.retrieval.toy_index import encoded

from vlmo.integrations.lancedb import VLMoReranker
from vlmo.retrieval import Encoder, Searcher, build_index

QUERY = "a red circle"


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> Encoder:
    return Encoder(trained_folder(tmp_path_factory.mktemp("model") / "model"))


@pytest.fixture(scope="module")
def table(encoder, tmp_path_factory):
    """Drawings as LanceDB's users store them: bytes, a caption and a vector."""
    images = [encoded(drawing) for drawing in drawings()]
    captions = [caption for caption, _ in CAPTIONS]
    numbers = encoder.embed_images(drawings()).ravel()
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(numbers), encoder.dim)
    rows = pa.table({"image": images, "caption": captions, "vector": vectors})
    table = lancedb.connect(tmp_path_factory.mktemp("lancedb")).create_table("drawings", rows)
    table.create_index("caption", config=FTS())
    return table


@pytest.fixture(scope="module")
def expected(encoder, tmp_path_factory) -> dict[str, float]:
    """Scores by the captions of all drawings, as `Searcher` gives them."""
    folder = tmp_path_factory.mktemp("searched")
    for drawing, (caption, _) in zip(drawings(), CAPTIONS, strict=True):
        drawing.save(folder / f"{caption}.png")
    build_index(encoder, [folder], out=folder / "index")
    hits = Searcher(encoder, folder / "index").search(QUERY, top=24, rerank=24, mode="vectors").hits
    return {hit.path.rpartition("/")[2].removesuffix(".png"): hit.score for hit in hits}


def vector_search(table, encoder):
    return table.search(encoder.embed_texts([QUERY])[0]).distance_type("cosine").limit(24)


def test_results_of_a_vector_search_come_in_the_order_of_a_searcher(
    table, encoder, expected
) -> None:
    found = vector_search(table, encoder).rerank(VLMoReranker(encoder), QUERY).to_arrow()
    assert found["caption"].to_pylist() == sorted(expected, key=expected.get, reverse=True)
    scores = found["_relevance_score"].to_pylist()
    assert scores == pytest.approx(sorted(expected.values(), reverse=True), abs=1e-3)
    assert "_distance" not in found.column_names


def test_words_alone_and_both_searches_are_reranked(table, encoder, expected) -> None:
    words = table.search("circle", query_type="fts").limit(24)
    assert len(words.rerank(VLMoReranker(encoder)).to_arrow()) == 6
    vector = encoder.embed_texts([QUERY])[0]
    hybrid = table.search(query_type="hybrid").vector(vector).text(QUERY).limit(5)
    for how in ("relevance", "all"):
        found = hybrid.rerank(VLMoReranker(encoder, return_score=how)).to_arrow()
        assert found["caption"].to_pylist()[0] == max(expected, key=expected.get)
        scores = found["_relevance_score"].to_pylist()
        assert scores == sorted(scores, reverse=True)
        assert ("_distance" in found.column_names) is (how == "all")


def test_images_of_an_index_are_read_from_their_paths_and_missing_ones_come_last(
    encoder, tmp_path
) -> None:
    for number, drawing in enumerate(drawings()[:4]):
        drawing.save(tmp_path / f"{number}.png")
    build_index(encoder, [tmp_path], out=tmp_path / "index")
    (tmp_path / "1.png").unlink()
    table = lancedb.connect(tmp_path / "index").open_table("images")
    reranker = VLMoReranker(encoder, column="path")
    found = vector_search(table, encoder).rerank(reranker, QUERY).to_arrow()
    assert found["path"].to_pylist()[-1].endswith("1.png")
    assert found["_relevance_score"].to_pylist()[-1] == -float("inf")


def test_nothing_found_is_nothing_reranked(table, encoder) -> None:
    none = vector_search(table, encoder).where("caption = 'none'")
    assert len(none.rerank(VLMoReranker(encoder), QUERY).to_arrow()) == 0


def test_wrong_use_says_what_is_right(table, encoder, monkeypatch) -> None:
    reranker = VLMoReranker(encoder, column="picture")
    with pytest.raises(ValueError, match="'picture'"):
        vector_search(table, encoder).rerank(reranker, QUERY).to_arrow()
    with pytest.raises(ValueError, match="weight 2"):
        VLMoReranker(encoder, weight=2)
    monkeypatch.setattr(encoder, "can_match", False)
    with pytest.raises(ValueError, match="matching head"):
        VLMoReranker(encoder)
