"""Every recipe has the settings of the golden table and a description; one of each kind trains shrunk."""

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tests.recipes.toy_recipes import STEPS, shrunk

from vlmo.model.heads import MAX_LOGIT_SCALE, ContrastHead
from vlmo.recipes import Recipe, describe, find_entry, find_recipe
from vlmo.recipes.paper import PAPER as OF_PAPER
from vlmo.recipes.quickstart import DUAL, FUSION, QUICKSTART, WHICH_RUNS, over_seeds
from vlmo.recipes.schema import TextConfig, changed_settings, check_recipe, settings
from vlmo.run import build
from vlmo.tasks import TASKS, RetrievalTask, VisionLanguageTask
from vlmo.training import LoraConfig, read_metrics

GOLDEN = Path(__file__).parents[1] / "golden" / "recipes.txt"
LOSSES = GOLDEN.with_name("losses.json")
"""Losses of ten steps of a recipe of each kind, shrunk; VLMO_WRITE_LOSSES=1 in front of pytest writes them."""


def kind_of(recipe: Recipe) -> tuple[Any, ...]:
    """Settings that choose which code a run goes through."""
    task, model = recipe.task, recipe.model
    position = model.position_embedding if isinstance(task, VisionLanguageTask) else None
    losses, streams = repr(getattr(task, "losses", None)), bool(recipe.data.streams.patterns)
    layers = model.experts, model.attention, model.num_fusion_layers > 0
    return type(task), losses, *layers, position, streams


ALL = {name: entry.recipe for name, entry in (QUICKSTART | OF_PAPER).items()}
KINDS = {kind_of(recipe): name for name, recipe in reversed(ALL.items())}


@pytest.mark.parametrize("name", KINDS.values())
def test_recipe_trains_shrunk(name, pictures, visual_tokenizer, sets, tmp_path):
    data = {"source": pictures, "visual_tokenizer": visual_tokenizer, "sets": sets}
    check_training(name, shrunk(find_recipe(name), **data), tmp_path)


def check_training(name: str, recipe: Recipe, tmp_path: Path) -> None:
    """Train a shrunk recipe, and compare its losses with the golden ones."""
    trainer = build(recipe, run_dir=tmp_path)
    heads = [module for module in trainer.objective.modules() if isinstance(module, ContrastHead)]
    assert bool(heads) == isinstance(recipe.task, VisionLanguageTask | RetrievalTask)
    for head in heads:
        torch.nn.init.constant_(head.logit_scale, MAX_LOGIT_SCALE + 1)
    result = trainer.fit()
    assert result.status == "finished"
    assert all(head.logit_scale.item() <= MAX_LOGIT_SCALE for head in heads)
    lines = [line for line in read_metrics(tmp_path) if "loss" in line]
    assert len(lines) == STEPS
    losses = [line["loss"] for line in lines]
    assert np.isfinite(losses).all()
    assert (result.model_dir / "config.json").is_file()
    assert load_file(result.model_dir / "model.safetensors")
    assert json.loads((tmp_path / "recipe.json").read_text())["trainer"]["max_steps"] == STEPS
    assert (tmp_path / "quarantine.jsonl").read_text() == ""
    if recipe.data.streams.patterns:
        return  # the order of their samples depends on the paths of the shards
    if os.environ.get("VLMO_WRITE_LOSSES"):
        golden = json.loads(LOSSES.read_text()) | {name: [float(f"{loss:.6g}") for loss in losses]}
        lines = (f"{json.dumps(name)}: {json.dumps(golden[name])}" for name in sorted(golden))
        LOSSES.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    np.testing.assert_allclose(losses, json.loads(LOSSES.read_text())[name], rtol=2e-3)


def settings_table(recipes: dict[str, Recipe]) -> str:
    """Every recipe with its settings that are not the defaults, a part of the recipe a line."""
    lines = []
    for name, recipe in recipes.items():
        lines += [name, *(f"  {part}: {' '.join(words)}" for part, words in _parts(recipe).items())]
    return "\n".join(lines) + "\n"


def _parts(recipe: Recipe) -> dict[str, list[str]]:
    parts: dict[str, list[str]] = {"run": []}
    for part, value in _given(recipe):
        if not dataclasses.is_dataclass(value):
            parts["run"].append(f"{part}={value!r}")
            continue
        parts[part] = [type(value).__name__] if part == "task" else []
        for name, inner in _given(value):
            nested = _given(inner) if dataclasses.is_dataclass(inner) else []
            words = [f"{name}.{key}={setting!r}" for key, setting in nested]
            parts[part] += words or [f"{name}={inner!r}"]
    return {part: words for part, words in parts.items() if words}


def _given(part: Any) -> list[tuple[str, Any]]:
    """Fields whose value is not the default."""
    found = []
    for field in dataclasses.fields(part):
        factory = field.default_factory
        default = field.default if factory is dataclasses.MISSING else factory()
        if getattr(part, field.name) != default:
            found.append((field.name, getattr(part, field.name)))
    return found


def test_settings_are_golden():
    assert settings_table(ALL) == GOLDEN.read_text(), (
        "settings changed; if that is wanted: python -m tests.recipes.test_recipes"
    )


def test_descriptions_say_data_start_command_and_numbers():
    for name, recipe in ALL.items():
        about, *fields = describe(name).splitlines()
        assert about.endswith(".")
        words = [line.split()[0] for line in fields if not line.startswith(" ")]
        assert {"Data:", "Run:", "Expect:"} <= set(words), name
        assert ("Start:" in words) == (recipe.init is not None), name
        assert ("Targets:" in words) == hasattr(recipe.task, "visual_tokenizer"), name
        assert ("Teacher:" in words) == (getattr(recipe.task, "teacher", None) is not None), name
        assert f"train {name}" in describe(name)


def test_recipes_have_the_settings_that_the_paper_gives() -> None:
    """As transcribed apart from the recipes; lengths in words, such as "10 epochs", are not compared."""
    different = set()
    for name in OF_PAPER:
        entry = find_entry(name)
        values = json.loads(json.dumps(settings(entry.recipe, defaults=True)))
        assert entry.paper.keys() <= values.keys()
        for path, paper in entry.paper.items():
            if values[path] != paper and not str(paper).startswith(("10 ", "150 ")):
                different.add((path, values[path], paper))
    assert different == {("text.max_length", 192, 196)}  # a multiple of 8


def test_descriptions_have_the_quickstarts_numbers() -> None:
    """Those of `vlmo/recipes/quickstart.json`, of which README's chart is made too."""
    shown = " ".join(describe("shapes-stage3").split())
    assert over_seeds(DUAL, "Text to image R@1") in shown
    assert over_seeds(FUSION, "Caption or one with the opposite side") in shown
    assert over_seeds(FUSION, "Questions") in " ".join(describe("shapes-questions").split())
    assert WHICH_RUNS in shown


def test_every_recipe_is_valid_on_eight_processes():
    for name, recipe in ALL.items():
        check_recipe(recipe, processes=1 if name in QUICKSTART else 8)
    assert {type(recipe.task) for recipe in ALL.values()} == set(TASKS.values())


PAPER = {  # paper, "Fine-Tuning": pixels, rows of a step, learning rates, drop paths of Base, Base+ and Large
    "vqa": (480, 128, (3e-5, 3e-5, 1.5e-5), (0.15, 0.15, 0.15)),
    "nlvr2": (384, 128, (5e-5, 3e-5, 3e-5), (0.1, 0.2, 0.15)),
    "coco-retrieval": (384, 3072, (3e-5, 3e-5, 2e-5), (0.2, 0.2, 0.2)),
    "flickr30k-retrieval": (384, 3072, (3e-5, 3e-5, 2e-5), (0.15, 0.2, 0.2)),
    "stage3": (224, 1024, (2e-4, 1e-4, 5e-5), (0.1, 0.1, 0.1)),
}


@pytest.mark.parametrize("task", list(PAPER))
def test_settings_of_the_paper(task):
    pixels, batch, rates, drop_paths = PAPER[task]
    sizes = ("base", "base-plus", "large")
    for size, rate, drop_path in zip(sizes, rates, drop_paths, strict=True):
        recipe = find_recipe(f"{size}-{task}")
        assert recipe.model.image_size == recipe.data.transform.image_size == pixels
        assert recipe.loader.global_batch_size == batch
        assert (recipe.optimizer.lr, recipe.optimizer.betas) == (rate, (0.9, 0.98))
        assert recipe.model.drop_path_rate == drop_path
        grown = dataclasses.replace(recipe.model, image_size=224, drop_path_rate=0.1)
        assert grown == find_recipe(f"{size}-stage3").model  # nothing else changes on the way
    plusplus = find_recipe("large-plusplus-stage3").loader
    # the contrast sees the whole batch
    assert (plusplus.global_batch_size, plusplus.accumulation) == (16_384, 1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"init": "nowhere"}, "nowhere"),
        ({"text": TextConfig(vocabulary="nowhere.txt")}, "no vocabulary at nowhere.txt"),
    ],
)
def test_wrong_folders_are_named(changes, message, pictures, visual_tokenizer, tmp_path):
    recipe = find_recipe("shapes-stage3")
    recipe = shrunk(recipe, source=pictures, visual_tokenizer=visual_tokenizer)
    with pytest.raises(ValueError, match=message):
        build(dataclasses.replace(recipe, **changes), run_dir=tmp_path)


def test_muon_is_refused_with_adapters():
    recipe = find_recipe("shapes-stage3")
    assert recipe.optimizer.muon
    with pytest.raises(ValueError, match=r"optimizer\.muon and lora\.rank"):
        check_recipe(dataclasses.replace(recipe, lora=LoraConfig(rank=4)), processes=1)


def test_changed_settings_are_named_but_for_folders_and_the_seed():
    recipe = find_recipe("shapes-stage3")
    trainer = dataclasses.replace(recipe.trainer, max_steps=7)
    losses = dataclasses.replace(recipe.task.losses, mlm_weight=0)
    task = dataclasses.replace(recipe.task, losses=losses)
    changed = dataclasses.replace(recipe, trainer=trainer, task=task, init="elsewhere", seed=5)
    assert changed_settings(recipe, changed) == ["task.losses.mlm_weight", "trainer.max_steps"]
    assert changed_settings(recipe, recipe) == []


if __name__ == "__main__":
    GOLDEN.write_text(settings_table(ALL))
