"""Search with the model that comes with the package, on tiny data."""

from __future__ import annotations

import csv

import numpy as np
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
    images = str(write_folder(tmp_path / "shapes"))
    sources = [(images, "train"), (images, "test")]
    run = tmp_path / "run"
    queries = ("red square", "a green Circle", "blue bar", "yellow zebra")
    named = fast.run_fast_start(run, sources=sources, queries=queries, console=console)
    index = Index(run / "index")
    assert index.model_folder == str(small)
    with (run / "images" / "captions.csv").open(newline="") as file:
        rows = [tuple(row.values()) for row in csv.DictReader(file)]
    assert sorted(caption for _, caption in rows) == sorted(caption for captions in CAPTIONS for caption in captions)
    assert index.num_images == len({image for image, _ in rows}) == len(CAPTIONS)
    # One image has these words; the model has learnt half of the images.
    assert list(named) == list(queries)
    assert 1 <= sum(named.values()) <= 3
    assert max(named.values()) == 1
    assert named["yellow zebra"] == 0
    with Image.open(run / "queries.png") as sheet:
        assert sheet.size[0] == 256 + 8 * 106
    shown = console.export_text()
    assert all(text in shown for text in queries)
    for command in ("search {index} ", "serve {small} --index {index}", "index {small} "):
        assert f"vlmo {command}".format(index=run / "index", small=SMALL) in shown


def test_fast_start_goes_on_with_what_is_there(small, tmp_path):
    images = str(write_folder(tmp_path / "shapes"))
    first = fast.run_fast_start(tmp_path / "run", sources=[(images, "train")], queries=["red bar"])
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "run" / "images").rglob("*")}
    second = fast.run_fast_start(tmp_path / "run", sources=[("no such source", "train")], queries=["red bar"])
    assert second == first
    assert {file: file.stat().st_mtime_ns for file in before} == before


def test_quickstart_fast_makes_a_folder_of_its_own(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(fast, "run_fast_start", lambda run, **_: asked.append(run))
    main(["quickstart", "--fast", "--run-dir", str(tmp_path)])
    assert asked == [tmp_path / "fast"]


def test_quickstart_fast_refuses_a_scale(capsys):
    assert "give one of them" in refused(["quickstart", "--fast", "--scale", "0.5"], capsys)


def test_contact_sheet_frames_only_the_right_images():
    image = Image.new("RGB", (64, 64), "black")
    found = {
        "a word that is quite a bit too long for one line of the sheet " * 3: [
            (image, is_right) for is_right in (False, True, False, False, False)
        ],
        "missed": [(image, False)] * 5,
    }
    sheet = fast.contact_sheet(found)
    assert sheet.width == 786  # five images of 92 pixels
    pixels = np.asarray(sheet).astype(int)
    # The frame, far from black, white and gray.
    green = (np.abs(pixels - np.array((31, 138, 76))).sum(axis=-1) < 60).nonzero()
    assert len(green[0]) > 500
    assert green[0].max() < sheet.height // 2
    assert 345 < green[1].min() < green[1].max() < 450  # the second of five


def test_contact_sheet_takes_unusual_input():
    sheet = fast.contact_sheet({"": [(Image.new("LA", (3, 90)), True)], "x" * 300: []})
    assert sheet.width == 362
