"""Three stages in a row: the weights that pass on, and the cards of their folders with their figures."""

import csv
import dataclasses
import datetime
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tests.recipes.toy_recipes import STEPS, shrunk

from vlmo.data.sources import open_source
from vlmo.folder.card import DataSource, read_data, read_results
from vlmo.recipes import find_recipe
from vlmo.run import build
from vlmo.run.build import data_source
from vlmo.tasks import evaluate

TODAY = datetime.date.today().isoformat()
BEGUN = "begun.safetensors"
NOT_STATED = "not stated: as its owner states"


def section(folder: Path, title: str) -> str:
    """What stands below a headline of the folder's card."""
    text = (folder / "README.md").read_text()
    found = re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", text, flags=re.MULTILINE | re.DOTALL)
    assert found is not None, title
    return found[1].strip()


def cells(table: str) -> list[list[str]]:
    rows = [row for row in table.splitlines()[2:] if row.startswith("|")]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]


@pytest.fixture(scope="module")
def test_pairs(tmp_path_factory) -> Path:
    """Four pictures, each with two captions, of which all are for testing."""
    folder = tmp_path_factory.mktemp("pairs") / "private way" / "my pairs"
    folder.mkdir(parents=True)
    with (folder / "captions.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["file_name", "caption", "split", "licence", "source"])
        for number, licence in enumerate(("CC0-1.0", "CC-BY-4.0", "CC0-1.0", "CC0-1.0")):
            pixels = np.full((40, 40, 3), 60 * number, dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{number}.png")
            origin = "my pairs" if number else "museum"
            for caption in ("a square", "square"):
                table.writerow([f"{number}.png", f"{caption} {number}", "test", licence, origin])
    return folder


@pytest.fixture(scope="module")
def chain(pictures, visual_tokenizer, test_pairs, tmp_path_factory) -> dict[int, Path]:
    """Model folders of the three stages, each from the one before; stage 3 is evaluated at its end.

    `BEGUN` in a run folder has the weights before the first step.
    """
    root, folders = tmp_path_factory.mktemp("chain"), {}
    for number in (1, 2, 3):
        title, run = f"shapes-stage{number}", root / f"stage{number}"
        original = find_recipe(title)
        recipe = shrunk(original, source=pictures, visual_tokenizer=visual_tokenizer)
        init = str(folders[number - 1]) if folders else None
        evaluate_on = str(test_pairs) if number == 3 else None
        recipe = dataclasses.replace(recipe, init=init, evaluate_on=evaluate_on)
        words = {"title": title, "about": f"About stage {number}."}
        words["original"] = original if number == 2 else None
        trainer = build(recipe, run_dir=run, **words)
        begun = trainer.objective.state_dict()
        save_file({name: value.clone() for name, value in begun.items()}, run / BEGUN)
        folders[number] = trainer.fit().model_dir
    return folders


def test_stage_3_starts_with_attention_and_experts_of_the_stages_before(chain):
    """Attention and vision experts are stage 1's, bit for bit, and language experts stage 2's."""
    run = chain[3].parent
    stage1, stage2 = (load_file(chain[number] / "model.safetensors") for number in (1, 2))
    begun = load_file(run / BEGUN)
    for name, value in ((name.removeprefix("model."), value) for name, value in begun.items()):
        if ".attention." in name or ".vision." in name or ".norm1." in name:
            assert torch.equal(value, stage1[name]), name
            assert torch.equal(value, stage2[name]), name
        elif ".language." in name:
            assert torch.equal(value, stage2[name]), name
            assert not torch.equal(value, stage1[name]) or value.ndim == 1, name
        elif ".vision_language." in name:
            assert torch.equal(value, stage2[name.replace("vision_language", "language")]), name
    assert any(".vision_language." in name for name in begun)
    report = (run / "start.txt").read_text()
    assert "not in the start folder, left random: contrast_head.image_projection.weight" in report
    experts = "vlmo.blocks.2.experts"
    assert f"filled: {experts}.vision_language.fc1.weight from {experts}.language.fc1" in report


def test_card_names_recipe_settings_and_start(chain):
    assert "# shapes-stage3\n\nAbout stage 3.\n" in (chain[3] / "README.md").read_text()
    settings = f"`recipe.json` in the run folder; {STEPS} steps of 16 examples, seed 0"
    first = section(chain[1], "Recipe").splitlines()[1:]
    assert first == [f"- Settings: {settings}", "- Start: random weights"]
    start = f"- Start: `{chain[2].parents[1].name}/stage2/model`"
    third = section(chain[3], "Recipe").splitlines()
    assert third == ["- Recipe: `shapes-stage3`", f"- Settings: {settings}", start]
    kind = "Stage: stage 3, contrast, masked language modeling and matching"
    assert kind in section(chain[3], "What it is")
    assert 'pipeline("zero-shot-image-classification"' in section(chain[3], "How to use")


def test_card_tells_changed_settings_and_makes_no_claim_of_the_recipe(chain):
    named = section(chain[2], "Recipe").splitlines()[0]
    assert named.startswith("- Recipe: derived from `shapes-stage2`, with other settings: `data.")
    assert "`data.source`" in named
    assert "`init`" not in named
    assert "About stage 2." not in (chain[2] / "README.md").read_text()


def test_card_gathers_the_data_of_all_stages(chain, pictures, visual_tokenizer):
    name = f"`{pictures.name}`"
    targets = "/".join(visual_tokenizer.parts[-3:])
    first = [
        [name, "stage 1, masked image modeling; vocabulary", NOT_STATED],
        [f"`{targets}`", f"whatever `{targets}` was trained on: its card does not say", NOT_STATED],
    ]
    stage2 = "stage 2, masked language modeling"
    stage3 = "stage 3, contrast, masked language modeling and matching"
    second = [[name, f"{stage2}; {first[0][1]}", NOT_STATED], first[1]]
    third = [[name, f"{stage3}; {second[0][1]}", NOT_STATED], first[1]]
    assert [cells(section(chain[number], "Data")) for number in (1, 2, 3)] == [first, second, third]
    assert [source.use for source in read_data(chain[3])] == [*third[0][1].split("; "), first[1][1]]


def test_card_shows_the_last_evaluation_beside_chance(chain, test_pairs):
    assert section(chain[1], "Metrics") == "Not measured."
    table, _, meanings = section(chain[3], "Metrics").partition("\n\n")
    rows = {row[1]: row for row in cells(table)}
    # Two of eight captions are right: 1 - C(6, 5) / C(8, 5) = 1 - 6 / 56 for TR@5.
    chances = {"TR@1": "25.0", "TR@5": "89.29", "TR@10": "100.0"}
    chances |= {"IR@1": "25.0", "IR@5": "100.0", "IR@10": "100.0"}
    shown = {name.removesuffix(", dual encoder"): row[3] for name, row in rows.items()}
    assert shown == {name: f"{chance} %" for name, chance in chances.items()}
    measured_on, name, value, _, source = rows["IR@1, dual encoder"]
    numbers = re.fullmatch(r"([\d.]+) % \(([\d.]+) to ([\d.]+)\)", value)
    share, low, high = map(float, numbers.groups())
    assert 0 <= low <= share <= high <= 100
    assert f"- {name}: share of captions whose own image has rank 1 or better" in meanings
    assert measured_on == "`my pairs`, test"
    assert source == f"last evaluation of the run, step {STEPS}, {TODAY}"
    assert "private way" not in (chain[3] / "README.md").read_text()


def test_evaluation_puts_its_figures_into_the_card(chain, test_pairs):
    folder, before = chain[3], section(chain[3], "Data")
    result = evaluate(folder, source=str(test_pairs), split="test", rerank=2)
    result.write_card(folder, measured_by="`vlmo evaluate`")
    rows = {row[1]: row[2:] for row in cells(section(folder, "Metrics").partition("\n\n")[0])}
    assert len(rows) == 6
    for metric, value in result.metrics.items():
        shown = rows[f"{metric.removeprefix('rerank_').upper()}, dual encoder"]
        assert shown[metric.startswith("rerank_")].startswith(f"{round(100 * value, 2)} %")
        chance = f"{round(100 * result.chance[metric], 2)} %"
        assert shown[2:] == [chance, f"`vlmo evaluate`, {TODAY}"]
    assert {each.metric_type for each in read_results(folder)} == set(result.metrics)
    assert section(folder, "Data") == before


def test_licences_are_those_of_the_rows(test_pairs):
    rows = open_source(str(test_pairs), split="test")
    expected = DataSource("my pairs", "testing", ("CC-BY-4.0", "CC0-1.0: museum, my pairs"))
    assert data_source(str(test_pairs), rows, use="testing") == expected


def test_damaged_card_of_a_start_folder_is_named_before_training(
    chain, pictures, visual_tokenizer, tmp_path
):
    start = shutil.copytree(chain[2], tmp_path / "start")
    (start / "data_sources.json").write_text("[")
    recipe = find_recipe("shapes-stage3")
    recipe = shrunk(recipe, source=pictures, visual_tokenizer=visual_tokenizer)
    with pytest.raises(ValueError, match=r"data_sources\.json"):
        build(dataclasses.replace(recipe, init=str(start)), run_dir=tmp_path / "run")
