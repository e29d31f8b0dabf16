"""`vlmo quickstart --fast` as people type it: with the model that comes along, on drawings and icons."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from PIL import Image

from vlmo.cli import main
from vlmo.data import builtin
from vlmo.demo import fast


@pytest.mark.slow
def test_fast_quickstart_and_the_command_that_it_names_find_drawings_and_index_once(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    few = tmp_path / "few"
    for name in ("emoji-pairs", "lucide-icons"):
        rows = builtin.load(name, split="test")
        asked = [any(text in fast.QUERIES for text in captions) for captions in rows["captions"]]
        kept = [number for number in range(len(rows)) if asked[number] or number % 12 == 0]
        rows.select(kept).save_to_disk(str(few / name / "test"))
    monkeypatch.setattr(fast, "SOURCES", (("emoji-pairs", "test"), ("lucide-icons", "test")))
    monkeypatch.setattr(builtin, "build", few.joinpath)
    main(["quickstart", "--fast"])
    shown = capsys.readouterr().out
    number = int(re.search(r"search among (\d+) images", shown)[1])
    assert 190 < number < 220
    rows = re.findall(r"│ (.*?) +│ +(\d+) │", shown)
    assert [text for text, _ in rows] == list(fast.QUERIES)
    named = [int(count) for _, count in rows]
    assert sum(map(bool, named)) > len(named) / 2  # a handful of the images have one of these names
    with Image.open("runs/quickstart/fast/queries.png") as sheet:
        assert sheet.size[0] > 8 * 200
    index = Path("runs/quickstart/fast/index")
    assert [line.strip() for line in shown.splitlines() if line.startswith("  vlmo ")] == [
        f'vlmo search {index} "red heart" --sheet hearts.png',
        f"vlmo serve vlmo-small --index {index}",
        "vlmo index vlmo-small YOUR_IMAGES --out my-index",
    ]
    main(["search", str(index), "red heart", "--sheet", "hearts.png", "--json", "--top", "8"])
    hits = json.loads(capsys.readouterr().out)["hits"]
    assert "red heart" in [hit["captions"][0] for hit in hits[:3]]
    words = [[set(text.split()) for text in hit["captions"]] for hit in hits]
    assert named[-1] == sum(any({"red", "heart"} <= text for text in texts) for texts in words)
    with Image.open("hearts.png") as sheet:
        assert sheet.size[0] > 400

    data = index / "images.lance" / "data"
    before = set(data.iterdir())
    main(["quickstart", "--fast"])
    assert re.findall(r"│ (.*?) +│ +(\d+) │", capsys.readouterr().out) == rows
    # Nothing was written; files of older versions may go after ten seconds.
    assert set(data.iterdir()) <= before
