"""Fine-tuning for retrieval: where it starts, what it trains, and what its folder can do."""

import dataclasses
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from tests.recipes.toy_recipes import shrunk
from tests.toy_questions import processor

from vlmo.checkpoints.loading import load_retrieval_model
from vlmo.recipes import find_recipe
from vlmo.run import build
from vlmo.tasks import RetrievalTask, evaluate
from vlmo.tasks.vision_language import VisionLanguageConfig
from vlmo.training import read_metrics

WITH_MATCHING = VisionLanguageConfig(mlm_weight=0.0, itm_weight=1.0)


@pytest.fixture(scope="module")
def recipe(pictures, visual_tokenizer, folders):
    small = shrunk(
        find_recipe("base-coco-retrieval"), source=pictures, visual_tokenizer=visual_tokenizer
    )
    return dataclasses.replace(small, init=str(folders["pretraining"]))


def trained(recipe, run_dir):
    trainer = build(recipe, run_dir=run_dir)
    start = {name: value.clone() for name, value in trainer.objective.model.state_dict().items()}
    return start, trainer.fit().model_dir


@pytest.fixture(scope="module")
def contrast(recipe, tmp_path_factory):
    """Start weights, model folder and run folder of a run by contrast alone."""
    run_dir = tmp_path_factory.mktemp("contrast")
    return *trained(recipe, run_dir), run_dir


def test_starts_as_stage_3_left_it_and_drops_what_retrieval_does_not_use(contrast, folders):
    start, folder, run_dir = contrast
    before = load_file(folders["pretraining"] / "model.safetensors")
    assert all(torch.equal(value, before[name]) for name, value in start.items())
    dropped = set(before) - set(start)
    assert {name.split(".")[0] for name in dropped} == {
        "fusion_contrast_head",
        "match_head",
        "mlm_head",
    }
    model, _ = load_retrieval_model(folder)
    assert model.match_head is None
    report = (run_dir / "start.txt").read_text()
    assert "in the start folder, not used: match_head.classifier.weight" in report
    assert "left random" not in report


def test_contrast_alone_moves_the_dual_encoder_alone(contrast):
    start, folder, run_dir = contrast
    after = load_file(folder / "model.safetensors")
    still = {name for name, value in start.items() if torch.equal(value, after[name])}
    assert all(".vision_language." in name or ".pooler." in name for name in still)
    assert any(".vision_language." in name for name in still)
    lines = [line for line in read_metrics(run_dir) if "loss" in line]
    assert all(
        line["loss"] == line["itc"] and "itm" not in line and "mlm" not in line for line in lines
    )
    assert "train/ir@1" in read_metrics(run_dir)[-1]


def test_a_teacher_is_learnt_and_no_part_of_the_model(recipe, contrast, tmp_path):
    task = dataclasses.replace(recipe.task, teacher=str(contrast[1]))
    _, folder = trained(dataclasses.replace(recipe, task=task), tmp_path)
    line = [line for line in read_metrics(tmp_path) if "loss" in line][-1]
    assert line["loss"] == pytest.approx(line["itc"] + 4 * line["teacher"], abs=1e-5)
    assert not any("teacher" in name for name in load_file(folder / "model.safetensors"))
    assert not any(
        "teacher" in name for name, _ in load_retrieval_model(folder)[0].named_parameters()
    )


def test_a_teacher_that_does_not_fit_is_refused(recipe, contrast, tmp_path):
    def refused(teacher, message, **settings):
        task = dataclasses.replace(recipe.task, teacher=str(teacher))
        with pytest.raises(ValueError, match=message):
            build(dataclasses.replace(recipe, task=task, **settings), run_dir=tmp_path / "run")

    refused(tmp_path / "nowhere", "nowhere is no model folder")
    refused("vlmo-small", "the teacher vlmo-small has another vocabulary; start from a folder")
    size = dataclasses.replace(recipe.model, projection_size=16)
    words, file = processor().tokenizer.get_vocab(), tmp_path / "vocab.txt"
    file.write_text("\n".join(sorted(words, key=words.get)))
    text = dataclasses.replace(recipe.text, vocabulary=str(file))
    refused(
        contrast[1],
        "has vectors of 32 dimensions, the model of 16; set",
        init=None,
        model=size,
        text=text,
    )
    model = dataclasses.replace(recipe.model, max_text_positions=304)
    longer = {"model": model, "text": dataclasses.replace(text, max_length=304)}
    refused(
        contrast[1],
        "has 64 positions for text, the recipe 304; set text.max-length to 64",
        init=None,
        **longer,
    )


def test_with_matching_the_fusion_encoder_is_trained_too(recipe, pictures, tmp_path):
    start, folder = trained(
        dataclasses.replace(recipe, task=RetrievalTask(losses=WITH_MATCHING)), tmp_path
    )
    after = load_file(folder / "model.safetensors")
    moved = {name for name, value in start.items() if not torch.equal(value, after[name])}
    assert any(".vision_language." in name for name in moved)
    assert "match_head.classifier.weight" in moved
    line = [line for line in read_metrics(tmp_path) if "loss" in line][-1]
    assert line["loss"] == pytest.approx(line["itc"] + line["itm"], abs=1e-5)  # logged as float32
    result = evaluate(folder, source=str(pictures), split="train", device="cpu")
    assert result.settings == {"rerank": 16, "rerank_weight": 0.5}
    assert "rerank_ir@1" in result.metrics


def test_goes_on_from_a_folder_of_retrieval_at_another_size(recipe, contrast, tmp_path):
    folder = contrast[1]
    larger = dataclasses.replace(
        recipe, init=str(folder), model=dataclasses.replace(recipe.model, image_size=96)
    )
    start, again = trained(larger, tmp_path / "second")
    resized = {
        line
        for line in (tmp_path / "second" / "start.txt").read_text().splitlines()
        if "resized" in line
    }
    assert resized == {"resized: vlmo.position_bias.table"}
    before = load_file(folder / "model.safetensors")
    assert all(
        torch.equal(value, before[n])
        for n, value in start.items()
        if n != "vlmo.position_bias.table"
    )
    assert json.loads((again / "config.json").read_text())["image_size"] == 96
    assert load_retrieval_model(again)[1].image_size == 96


def test_an_epoch_has_each_pair_or_each_image_with_another_caption_at_each_visit(
    recipe, tmp_path, pictures
):
    lines = (pictures / "captions.csv").read_text().splitlines()
    table = tmp_path / "captions.csv"
    more = [line.replace("a ", "one more ") for line in lines[1:]]
    table.write_text("\n".join([*lines, *more]) + "\n")
    for file in pictures.glob("*.png"):
        shutil.copy(file, tmp_path)
    assert recipe.data.unit == "pair"
    for unit, captions in (("pair", 1), ("image", 2)):
        data = dataclasses.replace(recipe.data, source=str(tmp_path), unit=unit)
        trainer = build(
            dataclasses.replace(recipe, data=data, evaluate_on=str(tmp_path)),
            run_dir=tmp_path / unit,
        )
        examples = trainer.loader._examples
        assert len(examples) == len(lines[1:]) * (2 if unit == "pair" else 1)
        seen = {tuple(examples[epoch, 0]["input_ids"].tolist()) for epoch in range(8)}
        assert len(seen) == captions
        assert "mlm_labels" not in examples[0, 0]


def test_masked_words_are_refused():
    with pytest.raises(
        ValueError, match=r"mlm_weight is 0\.25; fine-tuning for retrieval masks no words"
    ):
        RetrievalTask(losses=VisionLanguageConfig())
