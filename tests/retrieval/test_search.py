import io
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from rich.console import Console
from tests.checkpoints.toy_folder import folder_writer, text_processor
from tests.folder.test_atomic import full_disk
from tests.integrations.toy_gallery import CAPTIONS, NUM_IMAGES, drawings, retrieval_set
from tests.retrieval.toy_index import NAMES, build, write_folder

from vlmo import VLMoForImageTextRetrieval
from vlmo.checkpoints.loading import load_retrieval_model
from vlmo.evaluation import evaluate_retrieval
from vlmo.retrieval import Index, Searcher, SearchResult
from vlmo.retrieval.hits import NO_RANKING, Ranking
from vlmo.retrieval.results import as_json, as_table, write_sheet
from vlmo.retrieval.search import SearchOptions, SearchQuery

CLOSE = 1e-4  # sums in another order; scores are some units large
QUERY, TITLE = CAPTIONS[8][0], "a red <b>square</b> [bold]"


def numbers(result) -> list[int]:
    """Numbers of the drawings that were found."""
    by_name = {Path(name).name: number for number, name in enumerate(NAMES)}
    return [by_name[Path(hit.path).name] for hit in result.hits]


def assert_scores(result, expected) -> None:
    np.testing.assert_allclose([hit.score for hit in result.hits], expected, atol=CLOSE)


@pytest.fixture(scope="module")
def evaluated(model):
    """Results of our evaluation for every caption."""
    own, processor = load_retrieval_model(model)
    with torch.inference_mode():
        return evaluate_retrieval(own, retrieval_set(processor), rerank=10, rerank_weight=0.3)


@pytest.mark.parametrize("text", range(0, 2 * NUM_IMAGES, 7))
def test_order_is_that_of_the_evaluation(text, searcher, evaluated):
    query = CAPTIONS[text // 2][text % 2]
    dual = evaluated.dual.text_to_image
    plain = searcher.search(query, top=10, rerank=0, mode="vectors")
    assert numbers(plain) == dual.indices[text, :10].tolist()
    assert_scores(plain, dual.scores[text, :10])
    assert plain.num_reranked == 0
    assert all(hit.match is None and hit.score == hit.similarity for hit in plain.hits)
    expected = evaluated.reranked.text_to_image
    reranked = searcher.search(query, top=10, rerank=10, weight=0.3, mode="vectors")
    assert numbers(reranked) == expected.indices[text, :10].tolist()
    assert_scores(reranked, expected.scores[text, :10])
    assert (reranked.num_reranked, reranked.note) == (10, None)


def test_texts_are_reranked_by_default_and_images_are_not(searcher):
    assert searcher.search(QUERY).num_reranked >= 10
    assert searcher.search(drawings()[0]).num_reranked == 0
    assert searcher.search(QUERY, parts=[(drawings()[0], 1.0)]).num_reranked == 0


def test_weight_comes_from_the_model_if_none_is_given(searcher):
    own = searcher.search(QUERY, top=5, rerank=5)
    named = searcher.search(QUERY, top=5, rerank=5, weight=searcher.encoder.rerank_weight)
    assert [hit.score for hit in own.hits] == [hit.score for hit in named.hits]
    alone = searcher.search(QUERY, top=5, rerank=5, weight=1.0, mode="vectors")
    assert [hit.score for hit in alone.hits] == [hit.match for hit in alone.hits]


def test_texts_of_few_words_are_reranked_only_where_asked_for(searcher, monkeypatch):
    for least, expected in ((len(QUERY.split()), True), (len(QUERY.split()) + 1, False)):
        monkeypatch.setattr(searcher.encoder, "rerank_min_words", least)
        assert (searcher.search(QUERY).num_reranked > 0) == expected
        assert searcher.search(QUERY, rerank=4, mode="vectors").num_reranked == 4


def test_shorter_rerank_moves_only_its_candidates(searcher):
    plain = searcher.search(QUERY, top=10, rerank=0)
    reranked = searcher.search(QUERY, top=10, rerank=4, weight=1.0)
    assert sorted(numbers(reranked)[:4]) == sorted(numbers(plain)[:4])
    assert numbers(reranked)[4:] == numbers(plain)[4:]
    assert reranked.num_reranked == 4
    assert searcher.search(QUERY, top=2, rerank=10, weight=1.0).num_reranked == 10


@pytest.mark.parametrize(
    ("logits", "scored"),
    [
        ([9.0] + [0.0] * 11, [8]),  # 4 of e^10 + 7 e + 4 are left
        ([0.0] * 12, [8, 4]),  # 4 of 8 e + 4 are left: 0.155, too much for two images
    ],
)
def test_candidates_that_hardly_matter_are_not_scored(logits, scored, searcher):
    row = {"path": "", "captions": [], "width": 1, "height": 1, "hash": ""}
    rows = pa.Table.from_pylist([{"id": f"{number}", **row} for number in range(len(logits))])
    similar = np.array(logits) / searcher.encoder.inverse_temperature
    found, sizes = [(NO_RANKING, Ranking(rows, np.arange(len(logits)), similar))], list[int]()

    def answer(kind, rows):
        if kind == "index":
            return [found.pop() if found else ["pixels"] * len(rows[0].args[0])]
        sizes.extend([len(rows)] * (kind == "pairs"))
        answers = {"texts": np.eye(1, 8), "tokens": [5], "load": rows, "pairs": [1.0] * len(rows)}
        return answers[kind]

    def run(steps, answers=None):
        while True:
            answers = {kind: answer(kind, rows) for kind, rows in steps.send(answers).items()}

    options = SearchOptions(top=2, rerank=12, weight=0.5, mode="vectors")
    with pytest.raises(StopIteration) as end:
        run(searcher.steps(SearchQuery(text=QUERY), options))
    assert sizes == scored
    assert [hit.id for hit in end.value.value.hits] == ["0", "1"]


def test_fewer_scored_candidates_give_the_same_first_image(searcher):
    for texts in CAPTIONS[::4]:
        some, full = (searcher.search(texts[0], top=top) for top in (1, NUM_IMAGES))
        assert numbers(some) == numbers(full)[:1]
        assert some.num_reranked < full.num_reranked == NUM_IMAGES


def test_images_that_were_reranked_are_not_read_again(searcher, monkeypatch):
    first = searcher.search(QUERY, rerank=4)
    monkeypatch.setattr(searcher.index, "loaders", lambda *_, **__: pytest.fail("read again"))
    assert searcher.search(QUERY, rerank=4).hits == first.hits


def test_image_finds_itself_and_similar_leaves_it_out(searcher, gallery):
    file = gallery[0] / NAMES[5]
    result = searcher.search(file, top=4)
    assert numbers(result)[0] == 5
    assert result.hits[0].similarity == pytest.approx(1, abs=1e-5)
    assert numbers(searcher.search(drawings()[5], top=4)) == numbers(result)
    similar = searcher.similar(result.hits[0].id, top=3)
    assert numbers(similar) == numbers(result)[1:]
    with pytest.raises(ValueError, match="no image has the id 'nobody'"):
        searcher.similar("nobody")


def test_filter_is_applied_before_the_shortlist(searcher):
    result = searcher.search(QUERY, top=3, where="year >= 2020 and kind = 'square'", rerank=3)
    assert numbers(result) == [20]
    assert result.num_reranked == 1
    assert searcher.search(QUERY, where="year < 0").hits == []
    assert searcher.search(QUERY, where="year < 0", rerank=5).hits == []
    (best,) = searcher.search(QUERY, top=1).hits
    similar = searcher.similar(best.id, where="kind = 'bar'", top=50)
    assert sorted(numbers(similar)) == [2, 6, 10, 14, 18, 22]


def test_image_that_is_gone_is_not_reranked(indexed, model, tmp_path):
    indexed(range(6))
    searcher = Searcher(model, tmp_path / "index")
    gone = searcher.search("a red square", top=6, rerank=0).hits[1]
    Path(gone.path).unlink()
    result = searcher.search("a red square", top=6, rerank=6)
    assert result.num_reranked == 5
    assert result.hits[-1].id == gone.id
    assert result.note == "1 images could not be read and were not reranked"
    with pytest.raises(ValueError, match="is gone"):
        searcher.index.image(gone.id)


def test_image_and_text_together_are_the_direction_of_their_sum(searcher, gallery, tmp_path):
    drawings()[4].save(tmp_path / "green.png")
    images = searcher.encoder.embed_images(drawings())
    both = searcher.encoder.embed_texts([QUERY])[0] + images[4]
    expected = images @ (both / np.linalg.norm(both))
    in_memory = Searcher(searcher.encoder, Index(gallery[1], in_memory=True))
    for each, image in ((searcher, drawings()[4]), (in_memory, tmp_path / "green.png")):
        result = each.search(QUERY, parts=[(image, 1.0)], top=NUM_IMAGES, mode="vectors")
        assert numbers(result) == np.argsort(-expected).tolist()
        assert_scores(result, np.sort(expected)[::-1])
    assert numbers(result) != numbers(searcher.search(QUERY, top=NUM_IMAGES))


def test_parts_are_the_direction_of_their_weighted_sum(searcher, gallery):
    texts = searcher.encoder.embed_texts([QUERY, "circle"])
    images = searcher.encoder.embed_images(drawings())
    summed = texts[0] + 0.5 * images[4] - 1.5 * texts[1]
    expected = images @ (summed / np.linalg.norm(summed))
    parts = [(gallery[0] / NAMES[4], 0.5), ("circle", -1.5)]
    result = searcher.search(QUERY, parts=parts, top=NUM_IMAGES, mode="vectors")
    assert numbers(result) == np.argsort(-expected).tolist()
    assert_scores(result, np.sort(expected)[::-1])
    assert result.num_reranked == 0
    parts = [("circle", 1), ("red", -1)]
    (found,) = searcher.search("green", parts=parts, mode="words", top=1).hits
    assert (found.captions, found.words) == (tuple(CAPTIONS[5]), 1.0)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"query": " "}, "the query is empty"),
        ({"query": "th\udce9"}, "the query is not valid UTF-8"),
        ({"top": 0, "rerank": 3}, "top is 0; give a number from 1 to 10000"),
        ({"top": 10**6}, "top is 1000000"),
        ({"rerank": -1}, "^rerank is -1; give a number from 0 to 10000"),
        ({"weight": 2}, "weight is 2"),
        ({"query": Path("nowhere.png")}, "nowhere.png: cannot be read"),
        ({"query": drawings()[0], "rerank": 3}, "scores single texts"),
        ({"parts": [(drawings()[0], 1)], "rerank": 3}, "scores single texts"),
        ({"parts": [(drawings()[0], 1)], "query": " "}, "the query is empty"),
        ({"parts": [(QUERY, -1)]}, "cancel each other"),
        ({"parts": [("red", float("inf"))]}, "no finite weights"),
        ({"parts": [("red", 1)], "rerank": 3}, "scores single texts"),
        ({"parts": [(" ", 1)]}, "the query is empty"),
        ({"where": "yeer > 3"}, "Columns: .*height, .*kind, .*path, .*width, year"),
    ],
)
def test_wrong_arguments_are_one_line(settings, words, searcher):
    query = settings.pop("query", QUERY)
    with pytest.raises(ValueError, match=words) as caught:
        searcher.search(query, **settings)
    assert "\n" not in str(caught.value)
    assert "/root" not in str(caught.value)


def test_text_that_names_a_file_is_refused(searcher, tmp_path):
    drawings()[4].save(tmp_path / "green.png")
    (tmp_path / "photo.jxl").touch()
    for name, words in (("green.png", "give a Path"), ("photo.jxl", "no image that is read")):
        with pytest.raises(ValueError, match=words):
            searcher.search(str(tmp_path / name))
    # Words of a stranger, whatever they look like.
    for words in ("~5 red bars", "logo.png", "red " * 2000 + ".png"):
        assert searcher.search(words, top=1, rerank=0).hits


def test_model_without_matching_head_finds_and_does_not_rerank(tmp_path):
    write = folder_writer(tmp_path, text_processor())
    path, _ = write(VLMoForImageTextRetrieval, use_match_head=False)
    folder = write_folder(tmp_path / "images", numbers=range(4))
    build(path, folder, out=tmp_path / "index")
    searcher = Searcher(path, tmp_path / "index")
    assert len(searcher.search("a red square").hits) == 4
    searcher.warm_up()
    with pytest.raises(ValueError, match="no matching head"):
        searcher.search("a red square", rerank=2)


def test_threads_share_a_searcher(searcher):
    def search(row: int) -> list[int]:
        return numbers(searcher.search(CAPTIONS[row % 6][0], rerank=4, top=4))

    expected = [search(row) for row in range(6)]
    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(search, range(18))) == 3 * expected


@pytest.fixture(scope="module")
def result(searcher):
    return searcher.search("a red square", top=6, rerank=3)


def test_table_shows_no_control_characters_of_captions(result):
    captions = ("\x1b]0;title\x07 gr\u00fcn \x9b31m \u202e", *result.hits[0].captions)
    hostile = replace(result, hits=[replace(result.hits[0], captions=captions)])
    console = Console(file=io.StringIO(), width=300)
    console.print(as_table("\x1b[31m", hostile))
    assert "gr\u00fcn" in console.file.getvalue()
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", console.file.getvalue())


def test_sheet_is_an_image_of_all_hits_and_says_no_match(result, searcher, tmp_path):
    heights, contents = [], []
    no_match = replace(result, no_match=True)
    assert as_json(TITLE, no_match)["no_match"] is True
    assert as_table("a red square", no_match).title == "No match: a red square"
    two = replace(result, hits=result.hits[:2])
    for number, found in enumerate((result, no_match, two, SearchResult([]))):
        file = tmp_path / "new" / f"{number}.png"
        write_sheet(file, query=TITLE, result=found, index=searcher.index)
        contents.append(file.read_bytes())
        with Image.open(file) as sheet:
            heights.append(sheet.height)
            assert number == 3 or len(sheet.getcolors(maxcolors=2**20)) > 50
    assert heights[0] == heights[1] > heights[2] >= heights[3]
    assert contents[0] != contents[1]


def test_sheet_that_a_full_disk_refuses_is_named_and_leaves_nothing(result, searcher, tmp_path):
    with full_disk(), pytest.raises(OSError, match="File too large") as raised:
        write_sheet(tmp_path / "sheet.png", query=TITLE, result=result, index=searcher.index)
    assert raised.value.filename == str(tmp_path / "sheet.png")
    assert not [*tmp_path.iterdir()]
