"""`vlmo quickstart --fast` as people type it: with the model that comes with the package, on the unseen drawings."""

from __future__ import annotations

import json
import re

import pytest
from PIL import Image

from vlmo.cli import main

pytestmark = pytest.mark.slow


def test_fast_quickstart_finds_drawings_and_so_do_the_commands_that_it_tells(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    main(["quickstart", "--fast"])
    shown = capsys.readouterr().out
    assert "search among 500 drawings" in shown
    ranks = [int(rank) for rank in re.findall(r"│\s+(\d+) │", shown)]
    assert len(ranks) == 5
    assert sorted(ranks)[2] < 100  # by chance 250
    with Image.open("runs/quickstart/fast/queries.png") as sheet:
        assert sheet.size[0] == 900
    (line,) = [line.strip() for line in shown.splitlines() if line.strip().startswith("vlmo search")]
    assert line == 'vlmo search runs/quickstart/fast/index "a red heart" --sheet hearts.png'
    main(["search", "runs/quickstart/fast/index", "a red heart", "--sheet", "hearts.png", "--json"])
    hits = json.loads(capsys.readouterr().out)["hits"]
    assert "red heart" in [hit["captions"][0] for hit in hits[:3]]
    with Image.open("hearts.png") as sheet:
        assert sheet.size[0] > 400
