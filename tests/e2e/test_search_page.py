"""The commands and the Python of docs/search.md, word for word, on a miniature folder of images."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
from PIL import Image

from tests.data.test_capture import CHANGED, PARIS, exif
from tests.e2e.test_tutorial import blocks, write_images
from tests.integrations.toy_gallery import trained_folder
from vlmo.cli import main

pytestmark = pytest.mark.slow

PAGE = Path(__file__).parents[2] / "docs" / "search.md"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    trained_folder(folder / "runs" / "mine" / "model")
    write_images(folder / "images")
    (folder / "images" / "Rome").mkdir()
    photo = exif({CHANGED: "2021:07:01 12:00:00"}, None, PARIS)
    Image.new("RGB", (64, 64), "red").save(folder / "images" / "Rome" / "1.png", exif=photo)
    return folder


def test_python_runs(place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    (code,) = blocks("python", page=PAGE)
    assert len([line for line in code.splitlines() if line.strip()]) <= 10
    exec(compile(code, "docs/search.md", "exec"), {})
    lines = capsys.readouterr().out.strip().splitlines()
    assert len(lines) == 6
    assert all(".png" in line for line in lines)


def test_commands_run(place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    commands = re.findall(r"^vlmo .*", "".join(blocks("sh", page=PAGE)), flags=re.MULTILINE)
    assert len(commands) == 8
    for command in commands:
        main(shlex.split(command, comments=True)[1:])
        printed = capsys.readouterr().out
        if "--json" in command:
            assert json.loads(printed)["num_reranked"] > 0
        elif "search" in command:
            assert ".png" in printed
    for name in ("found.png", "like.png"):
        with Image.open(name) as drawn:
            assert drawn.width > 500
    assert json.loads(Path("runs/mine/model/config.json").read_text())["rerank_weight"] <= 1
