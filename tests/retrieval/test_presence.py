"""Probabilities that images show a text, and the line below which they are less likely."""

import json
from dataclasses import asdict, replace

import numpy as np
import pyarrow as pa
import pytest
from scipy.special import expit
from tests.integrations.toy_gallery import CAPTIONS, drawings
from tests.test_cli_tasks import refused

from vlmo.cli import main
from vlmo.data.decoding import EncodedImage
from vlmo.data.sources import open_source
from vlmo.released import SMALL
from vlmo.retrieval import Encoder, Index, Searcher, build_index
from vlmo.retrieval.facts import read_facts
from vlmo.retrieval.presence import Background, common_words, fit_background

QUERY = CAPTIONS[8][0]


def test_background_is_that_of_all_vectors(encoder, gallery):
    vectors = np.array([row["vector"] for _, row in Index(gallery[1]).sample(10_000)])
    best = (encoder.embed_texts(common_words()) @ vectors.T).max(axis=1)
    expected = (best.mean(), best.std(), len(vectors))
    np.testing.assert_allclose([*asdict(Index(gallery[1]).background).values()], expected, 1e-4)


def test_probability_rises_with_similarity_beyond_that_of_common_words():
    background = Background(mean=0.3, spread=0.1, images=50)
    assert background.presence(0.3) == pytest.approx(expit(-0.136))
    assert background.presence(0.5) == pytest.approx(expit(-0.136 + 2 * 0.614))
    # The same one standard deviation above, in another model's units.
    other = Background(mean=20.0, spread=5.0, images=50)
    assert other.presence(25.0) == pytest.approx(background.presence(0.4))


def test_background_is_fitted_again_once_a_tenth_has_changed(encoder, indexed, monkeypatch):
    folder, out = indexed()
    fitted = read_facts(out).background
    kept = {**fitted, "mean": 0.123}
    replace(read_facts(out), background=kept).write(out)
    files = sorted(folder.rglob("*.png"))
    files[0].unlink()
    build_index(encoder, out=out)
    assert read_facts(out).background == kept
    for file in files[1 : len(files) // 4]:
        file.unlink()
    build_index(encoder, out=out)
    assert read_facts(out).background["mean"] != kept["mean"]


def test_images_below_the_line_are_apart_and_in_order(searcher):
    everything = searcher.search(QUERY, mode="vectors", rerank=0)
    presences = [hit.presence for hit in everything.hits]
    assert presences == sorted(presences, reverse=True)
    line = presences[3]
    result = searcher.search(QUERY, mode="vectors", rerank=0, min_probability=line)
    assert result.hits == everything.hits[:4]
    assert result.less_likely == everything.hits[4:]
    assert result.note is None


def test_nothing_above_the_line_says_so_and_keeps_the_nearest(searcher):
    result = searcher.search(QUERY, mode="vectors", min_probability=1.0)
    assert result.hits == []
    assert [hit.id for hit in result.less_likely] == [
        hit.id for hit in searcher.search(QUERY, mode="vectors").hits
    ]
    assert "nothing here looks like" in result.note


def test_images_that_words_find_stay_above_the_line(searcher):
    result = searcher.search(QUERY, min_probability=1.0)
    assert result.hits
    assert all(hit.words is not None for hit in result.hits)
    assert all(hit.words is None for hit in result.less_likely)


def test_only_texts_have_probabilities(searcher):
    assert all(hit.presence is None for hit in searcher.search(drawings()[0]).hits)
    with pytest.raises(ValueError, match="text alone"):
        searcher.search(drawings()[0], min_probability=0.5)
    for wrong in (-0.1, 1.1):
        with pytest.raises(ValueError, match=f"min_probability is {wrong}"):
            searcher.search(QUERY, min_probability=wrong)


def test_index_of_an_earlier_version_searches_without_probabilities(encoder, indexed):
    _, out = indexed()
    replace(read_facts(out), background=None).write(out)
    searcher = Searcher(encoder, out)
    assert all(hit.presence is None for hit in searcher.search(QUERY).hits)
    with pytest.raises(ValueError, match="run vlmo index again"):
        searcher.search(QUERY, min_probability=0.5)


def test_command_line_shows_the_nearest_below_the_line(gallery, capsys):
    line = ["search", str(gallery[1]), QUERY, "--mode", "vectors", "--min-probability"]
    main([*line, "1"])
    shown = capsys.readouterr().out
    assert f"Nothing here looks like '{QUERY}'. The nearest:" in shown
    assert "probability" in shown
    main([*line, "1", "--json"])
    content = json.loads(capsys.readouterr().out)
    assert content["hits"] == []
    assert len(content["less_likely"]) == 10
    assert "min_probability is 2" in refused([*line, "2"], capsys)


class Vectors:
    """Vectors in place of a table."""

    def __init__(self, vectors):
        self.vectors = vectors

    def scan(self, columns):
        column = pa.FixedSizeListArray.from_arrays(
            pa.array(self.vectors.ravel()), self.vectors.shape[1]
        )
        yield pa.RecordBatch.from_arrays([column], columns)


@pytest.mark.parametrize("engine", [{}, {"engine": "onnx", "precision": "int8"}])
def test_small_tells_names_of_icons_that_are_there_from_others(engine):
    """Half of Lucide's icons, by chance: the settings were chosen on drawings of emoji."""
    encoder = Encoder(SMALL, **engine)
    icons = open_source("lucide-icons", split="test")
    images = encoder.embed_images([EncodedImage(cell).decode_to(96) for cell in icons["image"]])
    names = encoder.embed_texts([captions[0] for captions in icons["captions"]])
    words = encoder.embed_texts(common_words())
    is_present = np.random.default_rng(0).permutation(len(images)) < len(images) // 2
    background = fit_background(Vectors(images[is_present]), words)
    best = (names @ images[is_present].T).max(axis=1)
    probabilities = np.array([background.presence(float(value)) for value in best])
    present, absent = probabilities[is_present], probabilities[~is_present]
    # Area under the ROC curve: the share of pairs in the right order.
    area = (present[:, None] > absent).mean()
    caught = (absent < np.quantile(present, 0.02)).mean()
    assert area == pytest.approx(0.74, abs=0.02)
    assert caught == pytest.approx(0.08, abs=0.03)
    assert (present < 0.3).mean() <= 0.02
