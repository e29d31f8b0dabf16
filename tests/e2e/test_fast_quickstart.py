"""`vlmo quickstart --fast` as people type it: with the model that comes along, on drawings and icons."""

from __future__ import annotations

import json
import re

import pytest
from PIL import Image

from vlmo.cli import main
from vlmo.data import builtin
from vlmo.demo import fast

pytestmark = pytest.mark.slow


def test_fast_quickstart_finds_drawings_and_so_do_the_commands_that_it_names(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    few = tmp_path / "few"
    for name in ("emoji-pairs", "lucide-icons"):
        rows = builtin.load(name, split="test")
        asked = [any(text in fast.QUERIES for text in captions) for captions in rows["captions"]]
        rows.select([n for n in range(len(rows)) if asked[n] or n % 12 == 0]).save_to_disk(str(few / name / "test"))
    monkeypatch.setattr(fast, "SOURCES", (("emoji-pairs", "test"), ("lucide-icons", "test")))
    monkeypatch.setattr(builtin, "build", few.joinpath)
    main(["quickstart", "--fast"])
    shown = capsys.readouterr().out
    number = int(re.search(r"search among (\d+) images", shown)[1])
    assert 190 < number < 220
    named = [int(count) for count in re.findall(r"│\s+(\d+) │", shown)]
    assert len(named) == len(fast.QUERIES)
    assert sum(map(bool, named)) > len(named) / 2  # a handful of the images have one of these names
    with Image.open("runs/quickstart/fast/queries.png") as sheet:
        assert sheet.size[0] > 8 * 200
    (line,) = [line.strip() for line in shown.splitlines() if line.strip().startswith("vlmo search")]
    assert line == 'vlmo search runs/quickstart/fast/index "red heart" --sheet hearts.png'
    main(["search", "runs/quickstart/fast/index", "red heart", "--sheet", "hearts.png", "--json"])
    hits = json.loads(capsys.readouterr().out)["hits"]
    assert "red heart" in [hit["captions"][0] for hit in hits[:3]]
    with Image.open("hearts.png") as sheet:
        assert sheet.size[0] > 400
