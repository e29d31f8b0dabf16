"""`vlmo index`, `vlmo embed` and `vlmo search` as people type them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.integrations.toy_gallery import drawings, trained_folder
from tests.retrieval.toy_index import NAMES, NUM, write_folder
from tests.test_cli_tasks import refused
from vlmo.cli import main
from vlmo.retrieval import Encoder, Index, Searcher
from vlmo.retrieval.store import Store


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


def searched(arguments, capsys) -> dict:
    main(arguments)
    return json.loads(capsys.readouterr().out)


def test_index_says_what_it_did(model, tmp_path, capsys):
    folder = write_folder(tmp_path / "images", numbers=range(5))
    for number in range(3):
        (folder / f"bad{number}.jpg").write_text(number * "no image")
    line = ["index", model, folder, "--out", tmp_path / "index"]
    shown = printed(line, capsys)
    counts = "embedded 5, with bytes that were known 0, unchanged 0, gone 0"
    for words in ("5 images in", counts, "3 could not be used (", "(and 1 more)", "(exact)"):
        assert words in shown
    (folder / NAMES[0]).unlink()
    assert "embedded 0, with bytes that were known 0, unchanged 4, gone 1" in printed(line, capsys)
    shown = printed([*line, "--ann-threshold", "3"], capsys)
    assert "approximate index: recall@10 100.0 % against exact search" in shown


def test_index_of_broken_files_alone_ends_with_their_reasons(model, tmp_path, capsys):
    for name in ("a.jpg", "b.png"):
        (tmp_path / name).write_text(f"no image {name}")
    shown = refused(["index", str(model), str(tmp_path), "--out", str(tmp_path / "index")], capsys)
    for words in ("none of 2 images can", "a.jpg: not an image", "(and 1 more)"):
        assert words in shown
    assert len((tmp_path / "index" / "quarantine.jsonl").read_text().splitlines()) == 2


def test_low_recall_is_said(model, tmp_path, capsys, monkeypatch):
    found = {True: pa.table({"id": ["nobody"]}), False: pa.table({"id": ["somebody"]})}
    monkeypatch.setattr(Store, "nearest", lambda *_, search, **__: found[search is not None])
    folder = write_folder(tmp_path / "images", numbers=range(5))
    line = f"index {model} {folder} --out {tmp_path / 'index'} --ann-threshold 3"
    shown = printed(line.split(), capsys)
    assert "recall@10 0.0 % against exact search" in shown
    assert "this recall is low: search misses some of the nearest. --ann-threshold 6 makes" in shown


def test_search_shows_a_table(made, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    shown = printed(["search", made[1], "a red square", "--top", "3", "--mode", "vectors"], capsys)
    for words in ("weight x match (log-odds)", " reranked by the fusion", Path(NAMES[0]).name):
        assert words in shown
    shown = printed(["search", made[1], "square red", "--rerank", "0"], capsys)
    assert all(words in shown for words in ("score: sum of reciprocal ranks", "words", "100%"))
    line = ["search", made[1], "a red square", "--rerank", "0", "--where", "kind = 'cross'"]
    shown = printed(line, capsys)
    assert "match" not in shown
    assert "reranked" not in shown
    assert "score: similarity" in shown
    assert "red square" not in shown.replace("a red square", "", 1)
    assert "nothing was found" in printed(["search", made[1], "x", "--where", "year = 0"], capsys)


def test_search_prints_json(made, capsys):
    options = "--json --top 4 --rerank-weight 1 --rerank 4 --mode vectors"
    found = searched(["search", made[1], "a red square", *options.split()], capsys)
    assert [hit["score"] for hit in found["hits"]] == [hit["match"] for hit in found["hits"]]
    assert found["hits"][0]["metadata"].keys() == {"year", "kind", "taken", "taken_from", "album"}


def test_search_with_parts(made, capsys):
    image = str(made[0] / NAMES[7])
    words = ["a red square", "-heart", "+0.5*green", f"- {image}"]
    found = searched(["search", made[1], *words, "--json", "--mode", "vectors"], capsys)
    assert found["query"] == f"a red square -heart +0.5*green - {image}"
    parts = [("heart", -1), ("green", 0.5), (Path(image), -1)]
    searcher = Searcher(Index(made[1]).model_folder, made[1])
    expected = searcher.search("a red square", parts=parts, mode="vectors")
    assert [hit["id"] for hit in found["hits"]] == [hit.id for hit in expected.hits]
    assert "parts begin with + or -" in refused(["search", made[1], "a red", "square"], capsys)


def test_search_by_an_image(made, capsys, tmp_path):
    file = made[0] / NAMES[7]
    options = ["--json", "--top", "2", "--sheet", str(tmp_path / "sheet.png")]
    found = searched(["search", str(made[1]), str(file), *options], capsys)
    assert found["hits"][0]["path"] == str(file)
    assert found["num_reranked"] == 0
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width > 500


def test_model_that_moved_is_named(made, model, capsys, tmp_path):
    copy = shutil.copytree(made[1], tmp_path / "index")
    facts = json.loads((copy / "index.json").read_text())
    facts["model"]["folder"] = str(tmp_path / "gone")
    (copy / "index.json").write_text(json.dumps(facts))
    line = refused(["search", str(copy), "a red square"], capsys)
    assert "gone, which is gone; give --model" in line
    shown = printed(["search", copy, "x", "--model", model], capsys)
    assert Path(NAMES[0]).stem.split()[0] in shown


def test_embed_writes_vectors_of_images_or_texts(made, model, capsys, tmp_path):
    (made[0] / "bad.jpg").write_text("no image")
    shown = printed(["embed", model, made[0], "--out", tmp_path / "new" / "v.parquet"], capsys)
    (made[0] / "bad.jpg").unlink()
    assert f"{NUM} vectors in" in shown
    assert "1 images could not be used" in shown
    encoder, found = Encoder(model), pq.read_table(tmp_path / "new" / "v.parquet").to_pydict()
    order = [found["path"].index(str(made[0] / name)) for name in NAMES]
    np.testing.assert_allclose(
        np.array(found["vector"])[order], encoder.embed_images(drawings()), atol=1e-5
    )
    (tmp_path / "texts.txt").write_text("one\n\n two \n")
    line = f"embed {model} --texts {tmp_path / 'texts.txt'} --out {tmp_path / 't.parquet'}"
    printed(line.split(), capsys)
    found = pq.read_table(tmp_path / "t.parquet").to_pydict()
    assert found["text"] == ["one", "two"]
    np.testing.assert_allclose(found["vector"], encoder.embed_texts(["one", "two"]), atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["index"], "Missing from vlmo index: MODEL_FOLDER"),
        (["index", "MODEL", "IMAGES"], "Missing from vlmo index: --out"),
        (["index", "nowhere", "IMAGES", "--out", "new"], "no model folder"),
        (["index", "MODEL", "--out", "new"], "nothing to index"),
        (["index", "MODEL", "IMAGES", "--out", "IMAGES"], "something else than an index"),
        (["index", "MODEL", "IMAGES", "--out", "FILE"], "something else than an index"),
        (["index", "MODEL", "IMAGES", "--out", "FILE/new"], "FILE"),
        (["index", "MODEL", "IMAGES", "--out", "new", "--batch-size", "0"], "batch is 0"),
        (["index", "MODEL", "IMAGES", "--out", "new", "--engine", "spark"], "--engine"),
        (["index", "MODEL", "IMAGES", "--out", "new", "--devise", "cpu"], "--device"),
        (["search"], "Missing from vlmo search: INDEX"),
        (["search", "INDEX", "--sheet", "x.png"], "there is no query"),
        (["search", "nowhere", "x"], "is no index"),
        (["search", "INDEX", " "], "the query is empty"),
        (["search", "INDEX", "x", "+tree*"], "'+tree*' follows the query; parts begin with + or -"),
        (["search", "INDEX", "x", "-x*red"], "'-x*red' follows the query"),
        (["search", "INDEX", "gone.png"], "there is no image gone.png"),
        (["search", "INDEX", "pics/no such.jpg"], "there is no image pics/no such.jpg"),
        (["search", "INDEX", "FILE.parquet"], "FILE.parquet is a file, but no image"),
        (["search", "INDEX", "FILE.png"], "not an image in a known format"),
        (["search", "INDEX", "x", "--model", "OTHER"], "was made with another model"),
        (["search", "INDEX", "x", "--where", "1=1) or (1=1"], "its parentheses do not match"),
        (["search", "INDEX", "x", "--where", "repeat('a',100000000) = path"], "it calls repeat()"),
        (["search", "INDEX", "x", "--sheet", "x.pdf"], "--sheet x.pdf"),
        (["embed", "MODEL", "--out", "x.parquet"], "either images or --texts"),
        (["embed", "MODEL", "IMAGES", "--out", "x.csv"], ".parquet"),
        (["embed", "MODEL", "IMAGES", "--out", "FILE.parquet"], "FILE.parquet exists"),
        (["index", "ADAPTER", "IMAGES", "--out", "new"], "merge it first"),
        (["serve", "MODEL", "--api-key-file", "nowhere.txt"], "nowhere.txt: No such file"),
    ],
)
def test_what_cannot_be_done_is_one_line(
    arguments, words, made, model, capsys, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ADAPTER").mkdir()
    (tmp_path / "ADAPTER" / "adapter_config.json").write_text("{}")
    for name in ("FILE", "FILE.png", "FILE.parquet"):
        (tmp_path / name).write_text("x")
    if "OTHER" in arguments:
        trained_folder(tmp_path / "OTHER", steps=1)
    given = {"MODEL": str(model), "IMAGES": str(made[0]), "INDEX": made[1]}
    assert words in refused([given.get(word, word) for word in arguments], capsys)
    assert not (tmp_path / "new").exists()
