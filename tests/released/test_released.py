"""Models by their names, everywhere that a model folder is accepted."""

from __future__ import annotations

import dataclasses
import json
import shutil

import pytest
from PIL import Image
from tests.recipes.toy_recipes import shrunk
from tests.retrieval.toy_index import write_folder
from tests.test_cli_tasks import refused
from transformers import AutoModelForZeroShotImageClassification, AutoProcessor

import vlmo.released
from vlmo import VLMoConfig, VLMoForImageTextRetrieval, VLMoModel, VLMoProcessor, model_path
from vlmo.cli import main
from vlmo.recipes import find_recipe
from vlmo.released import find_model, notes_folder
from vlmo.released.published import MODELS, NamedModel
from vlmo.run import build


@pytest.fixture
def released(toy_release, tmp_path, monkeypatch):
    """The folder of the model `toy`; the working directory is empty."""
    monkeypatch.setattr(vlmo.released, "FOLDER", toy_release)
    monkeypatch.setitem(MODELS, "toy", NamedModel("toy", "retrieval", "small", 64))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return toy_release / "toy"


def test_path_of_a_name_is_for_libraries_that_know_paths_only(released):
    assert model_path("toy") == str(released)
    assert model_path(released) == str(released)
    model = AutoModelForZeroShotImageClassification.from_pretrained(model_path("toy"))
    assert isinstance(model, VLMoForImageTextRetrieval)
    assert AutoProcessor.from_pretrained(model_path("toy")).image_size == 64
    with pytest.raises(ValueError, match=r"tos is no model folder.*vlmo models"):
        model_path("tos")


def test_own_model_folder_goes_before_a_released_one(released, tmp_path):
    own = tmp_path / "here" / "toy"
    own.mkdir()
    assert find_model("toy") == released  # no model in there
    shutil.copy(released / "config.json", own)
    assert find_model("toy") == "toy"


def test_classes_load_by_name(released):
    assert VLMoConfig.from_pretrained("toy").hidden_size == 32
    assert VLMoProcessor.from_pretrained("toy").image_size == 64
    assert isinstance(VLMoForImageTextRetrieval.from_pretrained("toy"), VLMoForImageTextRetrieval)
    assert isinstance(VLMoModel.from_pretrained("toy"), VLMoModel)
    with pytest.raises(ValueError, match=r"vlmo-smal is no model .* did you mean 'vlmo-small'\?"):
        VLMoModel.from_pretrained("vlmo-smal")


def test_a_run_starts_from_a_name(released, tmp_path):
    images = write_folder(tmp_path / "images")
    recipe = shrunk(find_recipe("shapes-stage3"), source=images, visual_tokenizer=tmp_path)
    trainer = dataclasses.replace(recipe.trainer, max_steps=1)
    recipe = dataclasses.replace(recipe, init="toy", trainer=trainer)
    result = build(recipe, run_dir=tmp_path / "run").fit()
    assert "tensors loaded" in (tmp_path / "run" / "start.txt").read_text()
    words = VLMoProcessor.from_pretrained("toy").tokenizer.get_vocab()
    assert VLMoProcessor.from_pretrained(result.model_dir).tokenizer.get_vocab() == words
    assert "Start: `toy`" in (result.model_dir / "README.md").read_text()


def test_commands_take_a_name(released, tmp_path, capsys):
    images = write_folder(tmp_path / "images", numbers=range(6))
    main(["index", "toy", str(images), "--out", "index"])
    main(["search", "index", "a red square", "--model", "toy", "--top", "1"])
    Image.new("RGB", (64, 64), "red").save("red.png")
    capsys.readouterr()
    main(["predict", "toy", "--image", "red.png", "--text", "a red square", "a blue bar", "--json"])
    assert len(json.loads(capsys.readouterr().out)) == 2


def test_evaluation_of_a_released_model_leaves_it_as_it_is(released, tmp_path, capsys):
    images = write_folder(tmp_path / "images")
    before = {file: file.stat().st_mtime_ns for file in released.iterdir()}
    main(f"evaluate toy --data {images} --split train --rerank 0 --device cpu".split())
    assert notes_folder("toy") != released
    written = {file.name for file in (tmp_path / "here").glob("*.json*")}
    assert written == {"evaluation_retrieval_images_train.json", "train.quarantine.jsonl"}
    capsys.readouterr()
    shown = refused(["evaluate", "toy", "--data", str(images), "--write-card"], capsys)
    assert "toy is a published model and stays as it is" in shown
    assert {file: file.stat().st_mtime_ns for file in released.iterdir()} == before


@pytest.mark.parametrize("line", ["index tos . --out i", "predict tos", "serve tos"])
def test_commands_name_the_released_models_where_there_is_none(released, capsys, line):
    shown = refused(line.split(), capsys)
    assert "tos is no model folder" in shown
    assert shown.endswith("vlmo-small and others, which `vlmo models` lists.")
