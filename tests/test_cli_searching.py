"""`vlmo index`, `vlmo embed`, `vlmo search` and `vlmo duplicates` as people type them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.integrations.toy_gallery import trained_folder
from tests.retrieval.toy_index import NAMES, NUM, write_folder
from tests.retrieval.toy_video import write_video
from tests.test_cli_tasks import refused
from vlmo.cli import main
from vlmo.retrieval import building, encoder
from vlmo.retrieval.encoder import Encoder
from vlmo.retrieval.store import Store

init = Encoder.__init__


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return trained_folder(tmp_path_factory.mktemp("models") / "model")


@pytest.fixture(scope="module")
def made(model, tmp_path_factory):
    """Images and their index."""
    base = tmp_path_factory.mktemp("gallery")
    folder = write_folder(base / "images")
    main(["index", str(model), str(folder), "--out", str(base / "index")])
    return folder, str(base / "index")


def printed(arguments, capsys) -> str:
    main([str(word) for word in arguments])
    return " ".join(capsys.readouterr().out.split())


def test_index_says_what_it_did(model, tmp_path, capsys):
    folder = write_folder(tmp_path / "images", numbers=range(5))
    (folder / "bad.jpg").write_text("no image")
    line = ["index", model, folder, "--out", tmp_path / "index"]
    shown = printed(line, capsys)
    assert "5 images with 10 captions in" in shown
    assert "embedded 5, with bytes that were known 0, unchanged 0, gone 0" in shown
    assert "1 could not be used; each has its reason in" in shown
    assert "(exact)" in shown
    (folder / NAMES[0]).unlink()
    assert "embedded 0, with bytes that were known 0, unchanged 4, gone 1" in printed(line, capsys)
    shown = printed([*line, "--ann-threshold", "3"], capsys)
    assert "approximate index: recall@10 100.0 % against exact search" in shown


def test_index_of_broken_files_alone_ends_with_their_reasons(model, tmp_path, capsys):
    for name in ("a.jpg", "b.png"):
        (tmp_path / name).write_text(f"no image {name}")
    shown = refused(["index", str(model), str(tmp_path), "--out", str(tmp_path / "index")], capsys)
    assert "none of 2 images can be used" in shown
    assert "a.jpg: not an image" in shown
    assert "b.png: not an image" in shown
    assert not (tmp_path / "index").exists()


def test_new_index_that_fails_before_its_first_image_leaves_nothing(model, tmp_path, capsys, monkeypatch):
    folder, index = write_folder(tmp_path / "images", numbers=range(2)), tmp_path / "index"
    main(["index", str(model), str(folder), "--out", str(index)])
    monkeypatch.setattr(building, "embed_works", Mock(side_effect=ValueError("no such thing")))
    for out in (index, tmp_path / "new"):
        refused(["index", str(model), str(folder), "--out", str(out)], capsys)
    assert index.exists()
    assert not (tmp_path / "new").exists()


def test_index_prepares_searches_but_for_a_named_engine(model, tmp_path, capsys, monkeypatch):
    asked = []
    monkeypatch.setattr(encoder, "prepare_searches", lambda folder, **facts: asked.append((folder, facts)))
    folder = write_folder(tmp_path / "images", numbers=range(5))
    printed(["index", model, folder, "--out", tmp_path / "a", "--device", "cpu"], capsys)
    printed(["index", model, folder, "--out", tmp_path / "b", "--engine", "torch"], capsys)
    assert asked == [(Path(model), {"images": 5, "device": "cpu"})]


def test_low_recall_is_told(model, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(Store, "nearest", lambda *_, **__: [{"id": "nobody"}])
    folder = write_folder(tmp_path / "images", numbers=range(5))
    shown = printed(["index", model, folder, "--out", tmp_path / "index", "--ann-threshold", "3"], capsys)
    assert "recall@10 0.0 % against exact search" in shown
    assert "this recall is low: search misses some of the nearest. --ann-threshold 6 makes" in shown


def test_search_shows_a_table(made, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    shown = printed(["search", made[1], "a red square", "--top", "3"], capsys)
    assert "weight x match (log-odds)" in shown
    assert "24 reranked by the fusion encoder" in shown
    assert "similarity" in shown
    assert Path(NAMES[0]).name in shown
    shown = printed(["search", made[1], "a red square", "--rerank", "0", "--where", "kind = 'cross'"], capsys)
    assert "match" not in shown
    assert "reranked" not in shown
    assert "score: similarity" in shown
    assert "red square" not in shown.replace("a red square", "", 1)
    assert "nothing was found" in printed(["search", made[1], "x", "--where", "year = 0"], capsys)


def test_search_prints_json(made, capsys):
    main(["search", made[1], "a red square", "--json", "--top", "4", "--rerank-weight", "1", "--rerank", "4"])
    found = json.loads(capsys.readouterr().out)
    assert [hit["score"] for hit in found["hits"]] == [hit["match"] for hit in found["hits"]]
    assert found["hits"][0]["metadata"].keys() == {"year", "kind"}


def test_search_by_an_image(made, capsys, tmp_path):
    file = made[0] / NAMES[7]
    main(["search", made[1], str(file), "--json", "--top", "2", "--sheet", str(tmp_path / "sheet.png")])
    found = json.loads(capsys.readouterr().out)
    assert found["hits"][0]["path"] == str(file)
    assert found["num_reranked"] == 0
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width > 500


@pytest.mark.parametrize("suffix", [".ppm", ".pgm", ".jp2"])
def test_query_of_any_indexed_suffix_is_an_image(suffix, made, capsys, tmp_path):
    with Image.open(made[0] / NAMES[7]) as image:
        image.convert("L" if suffix == ".pgm" else "RGB").save(tmp_path / f"a b{suffix}")
    main(["search", made[1], str(tmp_path / f"a b{suffix}"), "--json", "--top", "1"])
    assert json.loads(capsys.readouterr().out)["num_reranked"] == 0  # a text's candidates would be reranked


def test_search_says_no_match_above_the_nearest_images(made, model, capsys, tmp_path):
    strict = shutil.copytree(model, tmp_path / "strict")
    config = json.loads((strict / "config.json").read_text())
    (strict / "config.json").write_text(json.dumps(config | {"match_cutoff": 1.0}))
    shown = printed(["search", made[1], "a red square", "--top", "3", "--model", strict], capsys)
    assert shown.index("No match: a red square") < shown.index("similarity")
    assert "no match: the best candidate has a probability of" in shown


def test_model_that_moved_is_named(made, model, capsys, tmp_path):
    copy = shutil.copytree(made[1], tmp_path / "index")
    facts = json.loads((copy / "index.json").read_text())
    facts["model"]["folder"] = str(tmp_path / "gone")
    (copy / "index.json").write_text(json.dumps(facts))
    line = refused(["search", str(copy), "a red square"], capsys)
    assert "gone, which is gone; give --model" in line
    assert Path(NAMES[0]).stem.split()[0] in printed(["search", copy, "x", "--model", model], capsys)


def test_search_and_embed_take_the_first_dimensions(made, model, capsys, tmp_path):
    main(["index", str(model), str(made[0]), "--out", str(tmp_path / "index"), "--dim", "8"])
    capsys.readouterr()
    main(["search", str(tmp_path / "index"), str(made[0] / NAMES[7]), "--json", "--top", str(NUM)])
    hits = json.loads(capsys.readouterr().out)["hits"]
    assert hits[0]["path"] == str(made[0] / NAMES[7])
    main(["embed", str(model), str(made[0]), "--out", str(tmp_path / "v.parquet"), "--dim", "8"])
    written = pq.read_table(tmp_path / "v.parquet").to_pydict()
    vectors, paths = np.array(written["vector"]), written["path"]
    assert vectors.shape == (NUM, 8)
    similarity = dict(zip(paths, (vectors @ vectors[paths.index(hits[0]["path"])]).tolist(), strict=True))
    assert [hit["similarity"] for hit in hits] == pytest.approx([similarity[hit["path"]] for hit in hits], abs=1e-5)


def test_embed_writes_files(made, model, capsys, tmp_path):
    shown = printed(["embed", model, made[0], "--out", tmp_path / "v.parquet"], capsys)
    assert f"{NUM} vectors in" in shown
    assert len(pq.read_table(tmp_path / "v.parquet")) == NUM
    (tmp_path / "texts.txt").write_text("one\n\n two \n")
    assert "2 vectors in" in printed(
        ["embed", model, "--texts", tmp_path / "texts.txt", "--out", tmp_path / "t.parquet"], capsys
    )


def test_duplicates_of_an_index(model, tmp_path, capsys):
    folder = write_folder(tmp_path / "images", numbers=range(6))
    shutil.copy(folder / NAMES[2], folder / "copy [red].png")
    write_video(folder / "clip.mp4", seconds=2, first=6)
    index = tmp_path / "index"
    assert "9 images with" in printed(["index", model, folder, "--out", index], capsys)
    shown = printed(["duplicates", index, "--threshold", "0.9999"], capsys)
    assert "copy [red].png" in shown
    assert "1 groups of 2 images" in shown
    main(["duplicates", str(index), "--threshold", "0.9999", "--json"])
    (group,) = json.loads(capsys.readouterr().out)
    assert group["places"] == [str(folder / "copy [red].png"), str(folder / NAMES[2])]
    assert len(group["ids"]) == 2
    assert group["similarity"] == pytest.approx(1, abs=1e-6)
    shown = printed(["search", index, "a green bar", "--where", "seconds = 1"], capsys)
    assert "clip.mp4" in shown
    assert "seconds 1.0" in shown


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["index"], "Missing from vlmo index: MODEL_FOLDER"),
        (["index", "MODEL", "IMAGES"], "Missing from vlmo index: --out"),
        (["index", "nowhere", "IMAGES", "--out", "new"], "no model folder"),
        (["index", "MODEL", "nowhere", "--out", "new"], "there is nothing at"),
        (["index", "MODEL", "EMPTY", "--out", "new"], "holds no image"),
        (["index", "MODEL", "--out", "new"], "nothing to index"),
        (["index", "MODEL", "IMAGES", "--out", "IMAGES"], "something else than an index"),
        (["index", "MODEL", "IMAGES", "--out", "FILE"], "something else than an index"),
        (["index", "MODEL", "IMAGES", "--out", "FILE/new"], "FILE"),
        (["index", "MODEL", "IMAGES", "--out", "new", "--batch-size", "0"], "batch is 0"),
        (["index", "MODEL", "IMAGES", "--out", "new", "--dim", "12"], "give a multiple of 8 below"),
        (["index", "MODEL", "IMAGES", "--out", "new", "--metadata", "nowhere.csv"], "expected a table"),
        (["index", "MODEL", "IMAGES", "--out", "new", "--engine", "spark"], "--engine"),
        (["index", "MODEL", "IMAGES", "--out", "new", "--devise", "cpu"], "--device"),
        (["search"], "Missing from vlmo search: INDEX"),
        (["search", "INDEX", "--sheet", "x.png"], "Missing from vlmo search: QUERY"),
        (["search", "nowhere", "x"], "is no index"),
        (["search", "INDEX", " "], "the query is empty"),
        (["search", "INDEX", "gone.png"], "there is no image gone.png"),
        (["search", "INDEX", "FILE.parquet"], "FILE.parquet is a file, but no image that is read (.avif, .bmp"),
        (["search", "INDEX", "FILE.png"], "not an image in a known format"),
        (["search", "INDEX", "x", "--model", "OTHER"], "was made with another model"),
        (["search", "INDEX", "x", "--top", "0"], "top is 0"),
        (["search", "INDEX", "x", "--where", "yeer > 3"], "Columns:"),
        (["search", "INDEX", "x", "--where", "1=1) or (1=1"], "its parentheses do not match"),
        (["search", "INDEX", "x", "--where", "repeat('a',100000000) = place"], "it calls repeat()"),
        (["search", "INDEX", "x", "--sheet", "x.pdf"], "--sheet x.pdf"),
        (["duplicates", "nowhere"], "is no index"),
        (["duplicates", "INDEX", "--threshold", "95"], "threshold is 95.0; give"),
        (["embed", "MODEL", "--out", "x.parquet"], "either images or --texts"),
        (["embed", "MODEL", "IMAGES", "--texts", "FILE", "--out", "x.parquet"], "either images or --texts"),
        (["embed", "EMPTY", "IMAGES", "--out", "x.csv"], ".parquet"),  # before it looks for a model
        (["embed", "MODEL", "IMAGES", "--out", "FILE.parquet"], "FILE.parquet exists already"),
        (["embed", "MODEL", "--texts", "nowhere.txt", "--out", "x.parquet"], "there is nothing at nowhere.txt"),
        (["serve", "MODEL", "--api-key-file", "nowhere.txt"], "nowhere.txt: No such file"),
        (["embed", "ADAPTER", "IMAGES", "--out", "x.parquet"], "merge it first"),
    ],
)
def test_what_cannot_be_done_is_one_line(arguments, words, made, model, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "EMPTY").mkdir()
    (tmp_path / "ADAPTER").mkdir()
    (tmp_path / "ADAPTER" / "adapter_config.json").write_text("{}")
    (tmp_path / "FILE").write_text("x")
    for name in ("FILE.png", "FILE.parquet"):
        (tmp_path / name).write_text("x")
    if "OTHER" in arguments:
        trained_folder(tmp_path / "OTHER", steps=1)
    places = {"MODEL": str(model), "IMAGES": str(made[0]), "INDEX": made[1]}
    assert words in refused([places.get(word, word) for word in arguments], capsys)
    assert not (tmp_path / "new").exists()
