"""The baselines by hand, and the comparison on toy data: what it says means nothing, that it says it does."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from tests.tasks.toy_vision import PIXELS, write_class_set, write_segment_set
from tests.toy_model import toy

import vision_tasks
from vlmo.model import VLMoConfig, VLMoForPreTraining
from vlmo.processing import VLMoProcessor
from vlmo.recipes import find_recipe
from vlmo.recipes.schema import model_config
from vlmo.tasks.segmentation import SegmentSet

MODELS = {
    "scenes-kinds": {
        "scenes-kinds",
        "scenes-kinds-from-nothing",
        "logistic regression on pixels",
        "linear probe of the start, mean",
        "linear probe of the start, class",
        "zero-shot of the start, prompts",
        "zero-shot of the start, names alone",
        "most frequent class",
    },
    "scenes-masks": {
        "scenes-masks",
        "scenes-masks-from-nothing",
        "class of each color",
        "most frequent class",
    },
}


@pytest.fixture(scope="module")
def sets(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("sets")
    return {"scenes-kinds": write_class_set(folder / "classes"), "scenes-masks": write_segment_set(folder / "segments")}


def test_colors_tell_these_squares_apart(sets, tmp_path):
    rows = {
        split: SegmentSet.read(source=str(sets["scenes-masks"]), split=split, notes=tmp_path)
        for split in ("train", "test")
    }
    table = vision_tasks.color_table(rows["train"])
    red = ((220 // 16) * 16 + 40 // 16) * 16 + 40 // 16
    assert table[red] == PIXELS.index("red")
    assert table[0] == 0  # black is never seen
    assert vision_tasks.segment_by_color(rows["test"], table).metrics["miou"] == 1.0


@pytest.mark.slow
@pytest.mark.parametrize("task", list(MODELS))
def test_every_model_is_measured(task, sets, tmp_path, monkeypatch):
    start = tmp_path / "start"
    toy(VLMoForPreTraining).save_pretrained(start)
    VLMoProcessor.train(["a red square"], vocab_size=96, image_size=64).save_pretrained(start)

    def tiny(name):
        recipe = find_recipe(name)
        settings = recipe.task if task == "scenes-kinds" else dataclasses.replace(recipe.task, channels=8)
        return dataclasses.replace(
            recipe,
            task=settings,
            model=model_config(VLMoConfig.tiny(num_fusion_layers=0)),
            data=dataclasses.replace(recipe.data, source=str(sets[task])),
            loader=dataclasses.replace(recipe.loader, global_batch_size=8),
            evaluate_on=str(sets[task]),
            evaluate_split="test",
        )

    monkeypatch.setattr(vision_tasks, "find_recipe", tiny)
    out = tmp_path / "result.json"
    arguments = ["--run", str(tmp_path / "run"), "--start", str(start), "--tasks", task, "--scale", "0.001"]
    result = vision_tasks.main([*arguments, "--threads", "1", "--out", str(out)])
    assert json.loads(out.read_text()) == result
    models = result["tasks"][task]["models"]
    assert models.keys() == MODELS[task]
    assert result["tasks"][task]["rows"] == {"train": 24, "test": 8}
    for model in models.values():
        assert all(0 <= value <= 1 for value in model["metrics"].values())
    trained = next(iter(models.values()))
    assert trained["trained_in_this_call"]
    assert trained["seconds"] > 0
    again = vision_tasks.main([*arguments, "--threads", "1"])
    repeated = next(iter(again["tasks"][task]["models"].values()))
    assert not repeated["trained_in_this_call"]
    assert repeated["metrics"] == trained["metrics"]
