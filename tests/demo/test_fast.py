"""Search with the model that comes with the package, on tiny data."""

from __future__ import annotations

import pytest
from PIL import Image
from rich.console import Console
from tests.integrations.toy_gallery import CAPTIONS, trained_folder
from tests.retrieval.toy_index import write_folder
from tests.test_cli_tasks import refused

import vlmo.released
from vlmo.cli import main
from vlmo.demo import fast
from vlmo.released import SMALL
from vlmo.retrieval import Index


@pytest.fixture
def small(tmp_path, monkeypatch):
    """A tiny model under the name of the small one."""
    folder = trained_folder(tmp_path / "released" / SMALL)
    monkeypatch.setattr(vlmo.released, "FOLDER", folder.parent)
    return folder


def test_fast_start_answers_by_the_model_that_comes_along(small, tmp_path):
    console = Console(record=True, width=200)
    run = tmp_path / "run"
    queries = ("red square", "a green Circle", "blue bar", "yellow zebra")
    inputs = [write_folder(tmp_path / "shapes")]
    named = fast.run_fast_start(run, inputs=inputs, queries=queries, console=console)
    index = Index(run / "index")
    assert index.model_folder == str(small)
    assert index.num_images == len(CAPTIONS)
    # One image has these words; the model has learnt half of the images.
    assert list(named) == list(queries)
    assert 1 <= sum(named.values()) <= 3
    assert max(named.values()) == 1
    assert named["yellow zebra"] == 0
    with Image.open(run / "queries.png") as sheet:
        assert sheet.size[0] > 8 * 200
    shown = console.export_text()
    assert all(text in shown for text in queries)
    for command in ("search {index} ", "serve {small} --index {index}", "index {small} "):
        assert f"vlmo {command}".format(index=run / "index", small=SMALL) in shown


def test_fast_start_uses_the_index_that_is_there(small, tmp_path):
    inputs = [write_folder(tmp_path / "shapes")]
    first = fast.run_fast_start(tmp_path / "run", inputs=inputs, queries=["red bar"])
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "run" / "index" / "images.lance").rglob("*")}
    assert fast.run_fast_start(tmp_path / "run", inputs=inputs, queries=["red bar"]) == first
    assert {file: file.stat().st_mtime_ns for file in before} == before


def test_quickstart_fast_makes_a_folder_of_its_own(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(fast, "run_fast_start", lambda run, **_: asked.append(run))
    main(["quickstart", "--fast", "--run-dir", str(tmp_path)])
    assert asked == [tmp_path / "fast"]


def test_quickstart_fast_refuses_a_scale(capsys):
    assert "give one of them" in refused(["quickstart", "--fast", "--scale", "0.5"], capsys)
