"""`vlmo quickstart --fast` as people type it: with the model that comes along, on drawings and icons."""

from __future__ import annotations

import json
import re

import pytest
from PIL import Image

from vlmo.cli import main
from vlmo.demo import fast

pytestmark = pytest.mark.slow


def test_fast_quickstart_finds_drawings_and_so_do_the_commands_that_it_tells(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(fast, "SOURCES", (("emoji-pairs", "test"), ("lucide-icons", "test")))
    main(["quickstart", "--fast"])
    shown = capsys.readouterr().out
    assert "search among 2,344 images" in shown
    named = [int(count) for count in re.findall(r"│\s+(\d+) │", shown)]
    assert len(named) == len(fast.QUERIES)
    assert sum(map(bool, named)) > len(named) / 2  # a handful of the images have one of these names
    with Image.open("runs/quickstart/fast/queries.png") as sheet:
        assert sheet.size[0] == 256 + 8 * 106
    (line,) = [line.strip() for line in shown.splitlines() if line.strip().startswith("vlmo search")]
    assert line == 'vlmo search runs/quickstart/fast/index "red heart" --sheet hearts.png'
    main(["search", "runs/quickstart/fast/index", "red heart", "--sheet", "hearts.png", "--json"])
    hits = json.loads(capsys.readouterr().out)["hits"]
    assert "red heart" in [hit["captions"][0] for hit in hits[:3]]
    with Image.open("hearts.png") as sheet:
        assert sheet.size[0] > 400
