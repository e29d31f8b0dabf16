"""A task in one file, `examples/add_task.py`: estimated, trained, measured and asked through public entry points."""

import importlib.util
import sys
from dataclasses import asdict
from pathlib import Path

import huggingface_hub
import pytest
import torch
from rich.console import Console
from tests.recipes.toy_recipes import tiny
from torch.utils.flop_counter import FlopCounterMode

from vlmo.recipes import _ENTRIES, RECIPES
from vlmo.run import build
from vlmo.run.estimate import estimate
from vlmo.tasks import TASKS, Inputs, Task, TaskResult, evaluate, predict, task_of
from vlmo.training import read_metrics

EXAMPLE = Path(__file__).parents[2] / "examples" / "add_task.py"
STEPS = 20


@pytest.fixture(scope="module")
def task() -> type[Task]:
    spec = importlib.util.spec_from_file_location("add_task", EXAMPLE)
    sys.modules["add_task"] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module.BrightnessTask
    for known, name in (
        (TASKS, "brightness"),
        (RECIPES, "brightness"),
        (_ENTRIES, "brightness"),
        (sys.modules, "add_task"),
    ):
        known.pop(name)


def test_one_file_is_all_that_a_task_needs(task, pictures, tmp_path):
    sizes = {"num_fusion_layers": 0, "initializer_range": 0.2, "layer_scale_init": None}
    recipe = tiny(task(), pictures, sizes=sizes, steps=STEPS, lr=3e-3, evaluate_split="train")
    assert '"task_name": "BrightnessTask"' in recipe.to_json()
    needs, model = estimate(recipe), task().build_model(asdict(recipe.model)).train()
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(8, 3, 64, 64)).logits.sum().backward()
    assert needs.flops_per_step == pytest.approx(counter.get_total_flops(), rel=0.01)
    assert needs.parameters == sum(parameter.numel() for parameter in model.parameters())
    result = build(recipe, run_dir=tmp_path, title="brightness").fit()
    losses = [line["loss"] for line in read_metrics(tmp_path) if "loss" in line]
    assert sum(losses[-3:]) < sum(losses[:3])
    folder = result.model_dir
    assert task_of(folder) is task
    assert "fine-tuning on brightness" in (folder / "README.md").read_text()
    card = huggingface_hub.ModelCard.load(folder / "README.md")
    assert card.data.pipeline_tag == "image-feature-extraction"
    for part in (
        "`VLMoForBrightness`, which tells how bright",
        'run("image.png")',
        "less than 0.2 off",
    ):
        assert part in card.text

    measured: TaskResult = evaluate(folder, source=str(pictures), split="train", device="cpu")
    assert measured.task == "brightness"
    assert measured.metrics["close"] == result.metrics["train/close"]
    assert len(measured.predictions) == 32

    found = predict(folder, Inputs((pictures / "0.png",)), device="cpu")
    expected = next(
        row["brightness"] for row in measured.predictions if row["image_id"].startswith("0.")
    )
    assert found.rows[0]["brightness"] == pytest.approx(expected, abs=1e-4)
    with (console := Console(width=80)).capture() as shown:
        console.print(found.table())
    assert "brightness" in shown.get()
