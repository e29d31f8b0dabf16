"""Long and tall images hold two drawings, and the comparison of recalls is paired."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

import long_images
from vlmo.data.sources import open_source


def test_images_are_two_drawings_side_by_side_or_stacked(tmp_path, monkeypatch):
    rows = open_source("emoji-pairs", split="test").select(range(6))
    monkeypatch.setattr(long_images, "open_source", lambda *_, **__: rows)
    long_images.write_split(tmp_path, "test", rounds=1, seed=0)
    lines = (tmp_path / "test" / "captions.csv").read_text().splitlines()[1:]
    names = [row["captions"][0] for row in rows]
    for number, line in enumerate(lines):
        file, caption = line.split(",")
        first, second = caption.split(" and ", maxsplit=1)
        assert first in names
        assert second in names
        assert first != second
        with Image.open(tmp_path / "test" / file) as image:
            assert image.size == ((192, 96) if number % 2 == 0 else (96, 192))
            assert np.asarray(image).std() > 5
    assert len(lines) == 6


def test_difference_is_of_the_same_queries(monkeypatch):
    ranks = {"square": (1, 2, 3, 1), "shaped": (1, 1, 3, 1)}

    def evaluate(folder, **_):
        rows = [
            {"query": query, "image_id": str(number), "rank": rank}
            for number, rank in enumerate(ranks[folder.name])
            for query in ("image", "caption")
        ]
        return SimpleNamespace(predictions=rows)

    monkeypatch.setattr(long_images, "evaluate", evaluate)
    found = long_images.compared(Path("square"), Path("shaped"), Path("data"))
    assert found["tr@1"] == found["ir@1"]
    assert [found["tr@1"][name] for name in ("square", "keep_aspect", "difference")] == [50, 75, 25]
    low, high = found["tr@1"]["interval"]
    assert (low, high) == (0, 75)  # one of four queries is better, none worse


def test_committed_result_has_both_models():
    read = json.loads((Path(long_images.__file__).with_suffix(".json")).read_text())
    for part in ("as it is", "fine-tuned"):
        for each in read[part].values():
            assert each["difference"] == pytest.approx(each["keep_aspect"] - each["square"])
            assert each["interval"][0] <= each["difference"] <= each["interval"][1]
