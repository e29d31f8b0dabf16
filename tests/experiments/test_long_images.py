"""Long and tall images hold two drawings, and recalls are compared over seeds."""

import json
from pathlib import Path

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
        assert {first, second} <= {*names}
        assert first != second
        with Image.open(tmp_path / "test" / file) as image:
            assert image.size == ((192, 96) if number % 2 == 0 else (96, 192))
            assert np.asarray(image).std() > 5
    assert len(lines) == 6


def test_means_and_interval_are_over_seeds():
    # differences 1, 2 and 3: standard error 1 / sqrt(3), t of two degrees of freedom 4.303
    seeds = []
    for square, shaped in ((10.0, 11.0), (10.0, 12.0), (13.0, 16.0)):
        recalls = {"square": square, "keep_aspect": shaped}
        seeds.append({name: {"tr@1": recall, "ir@1": 50.0} for name, recall in recalls.items()})
    result = long_images.summary(seeds)
    means = {"square": 11.0, "keep_aspect": 13.0, "difference": 2.0}
    assert result["tr@1"] == means | {"interval": [-0.48, 4.48]}
    assert result["ir@1"]["interval"] == [0.0, 0.0]


def test_one_seed_is_refused():
    with pytest.raises(SystemExit, match="--seeds"):
        long_images.Options(seeds=(3,))


def test_committed_result_follows_from_its_seeds_and_names_a_commit():
    result = json.loads((Path(long_images.__file__).with_suffix(".json")).read_text())
    assert len(result["seeds"]) == 5
    assert len(result["commit"]) == 40  # without "-dirty"
    for part in ("as it is", "fine-tuned"):
        seeds = [seed[part] for seed in result["seeds"].values()]
        assert result[part] == long_images.summary(seeds)
