"""Fine-tuning of the image encoder: what the stages build, refuse and measure."""

import dataclasses
from pathlib import Path

import pytest
import torch
from tests.tasks.toy_vision import NAMES, PIXELS, write_class_set, write_segment_set
from tests.toy_model import toy
from torch import nn

from vlmo.model import (
    VLMoConfig,
    VLMoForImageClassification,
    VLMoForPreTraining,
    VLMoForSemanticSegmentation,
)
from vlmo.processing import TransformConfig, VLMoProcessor
from vlmo.processing.segmentation import SegmentTransformConfig
from vlmo.recipes import find_recipe
from vlmo.recipes.schema import DataConfig, Recipe, model_config
from vlmo.run import build
from vlmo.run.start import model_settings
from vlmo.tasks import ClassificationTask, SegmentationTask
from vlmo.tasks.classification import ClassificationConfig, ClassSet
from vlmo.tasks.segmentation import with_shared_statistics
from vlmo.training import OptimizerConfig, TrainerConfig, read_metrics

STEPS = 2


@pytest.fixture(scope="module")
def class_set(tmp_path_factory) -> Path:
    return write_class_set(tmp_path_factory.mktemp("classes") / "colours")


@pytest.fixture(scope="module")
def segment_set(tmp_path_factory) -> Path:
    return write_segment_set(tmp_path_factory.mktemp("segments") / "squares")


@pytest.fixture(scope="module")
def start(tmp_path_factory) -> Path:
    """What pre-training leaves, with 90 words."""
    folder = tmp_path_factory.mktemp("start")
    toy(VLMoForPreTraining, vocab_size=90).save_pretrained(folder)
    VLMoProcessor.train(["a red square"], vocab_size=90, image_size=64).save_pretrained(folder)
    return folder


def recipe(task, *, source: Path, **changes) -> Recipe:
    base = find_recipe("shapes-stage1")
    plain = {
        "task": task,
        "model": model_config(VLMoConfig.tiny(num_fusion_layers=0)),
        "data": DataConfig(source=str(source)),
        "loader": dataclasses.replace(base.loader, global_batch_size=8),
        "optimizer": OptimizerConfig(lr=1e-3),
        "trainer": TrainerConfig(max_steps=STEPS, log_every=1),
        "init": None,
        "evaluate_split": "test",
        "evaluate_on": str(source),
    }
    return dataclasses.replace(base, **plain | changes)


def test_classifier_is_trained_and_measured(class_set, start, tmp_path) -> None:
    result = build(recipe(ClassificationTask(), source=class_set, init=str(start)), run_dir=tmp_path).fit()
    assert result.status == "finished"
    model = VLMoForImageClassification.from_pretrained(result.model_dir)
    assert [model.config.id2label[number] for number in range(3)] == NAMES
    assert model.config.label2id["blue"] == 2
    assert (result.model_dir / "preprocessor_config.json").is_file()
    assert not (result.model_dir / "tokenizer_config.json").exists()
    figures = [line for line in read_metrics(tmp_path) if "test/top1" in line]
    assert [line["step"] for line in figures] == [STEPS]
    card = (result.model_dir / "README.md").read_text()
    assert "top1" in card
    assert "33.33 %" in card  # chance
    report = (tmp_path / "start.txt").read_text()
    assert "left random: classifier.weight" in report
    assert "left random: vlmo" not in report


def test_segmenter_is_trained_and_measured(segment_set, start, tmp_path) -> None:
    task = SegmentationTask(channels=8)
    result = build(recipe(task, source=segment_set, init=str(start)), run_dir=tmp_path).fit()
    model = VLMoForSemanticSegmentation.from_pretrained(result.model_dir)
    assert [model.config.id2label[number] for number in range(4)] == PIXELS
    assert model.config.segmentation_channels == 8
    (figures,) = [line for line in read_metrics(tmp_path) if "test/miou" in line]
    assert {name for name in figures if name.startswith("test/")} == {"test/miou", "test/aacc", "test/macc"}
    assert "miou" in (result.model_dir / "README.md").read_text()


def test_text_side_follows_the_start_folder(class_set, start, tmp_path) -> None:
    """Nothing here reads words, so the recipe's sizes of the text side do not matter."""
    other = dataclasses.replace(recipe(ClassificationTask(), source=class_set).model, vocab_size=50)
    trainer = build(recipe(ClassificationTask(), source=class_set, init=str(start), model=other), run_dir=tmp_path)
    model = trainer.objective.model
    assert model.config.vocab_size == 90
    stage1 = dataclasses.replace(find_recipe("shapes-stage1"), init=str(start))
    assert model_settings(stage1, None)["vocab_size"] == 90
    begun = VLMoForPreTraining.from_pretrained(start)
    assert torch.equal(model.vlmo.text_embeddings.words.weight, begun.vlmo.text_embeddings.words.weight)
    assert torch.equal(model.vlmo.blocks[0].experts.vision.fc1.weight, begun.vlmo.blocks[0].experts.vision.fc1.weight)


def test_learning_rates_fall_with_the_depth(class_set, tmp_path) -> None:
    trainer = build(recipe(ClassificationTask(layer_decay=0.5), source=class_set), run_dir=tmp_path)
    names = {id(parameter): name for name, parameter in trainer.objective.named_parameters()}
    scales = {
        names[id(parameter)]: group["lr_scale"]
        for group in trainer.optimizer.param_groups
        for parameter in group["params"]
    }
    assert scales["model.classifier.weight"] == 1.0
    assert scales["model.vlmo.blocks.2.experts.vision.fc1.weight"] == 0.5
    assert scales["model.vlmo.image_embeddings.projection.weight"] == 0.5**4


def test_pictures_of_another_size_resize_the_tables(class_set, start, tmp_path) -> None:
    bigger = dataclasses.replace(recipe(ClassificationTask(), source=class_set).model, image_size=96)
    task = ClassificationTask(losses=ClassificationConfig(mix_probability=0.0))
    trainer = build(recipe(task, source=class_set, init=str(start), model=bigger), run_dir=tmp_path)
    assert "resized: vlmo.position_bias.table" in (tmp_path / "start.txt").read_text()
    batch = next(iter(trainer.loader(0)))[0]
    assert batch["pixel_values"].shape[-2:] == (96, 96)
    assert trainer.objective(batch)["loss"].isfinite()


def test_crops_are_of_the_models_size(segment_set, tmp_path) -> None:
    task = SegmentationTask(channels=8, augmentation=SegmentTransformConfig(scale=(1.0, 1.0)))
    small = dataclasses.replace(recipe(task, source=segment_set).model, image_size=32)
    trainer = build(recipe(task, source=segment_set, model=small), run_dir=tmp_path)
    batch = next(iter(trainer.loader(0)))[0]
    assert batch["pixel_values"].shape[-2:] == batch["labels"].shape[-2:] == (32, 32)


def test_segmentation_does_not_pass_over_settings_in_silence(segment_set, tmp_path) -> None:
    data = DataConfig(source=str(segment_set), transform=TransformConfig(horizontal_flip=0.0))
    with pytest.raises(ValueError, match=r"set task\.augmentation"):
        build(recipe(SegmentationTask(channels=8), source=segment_set, data=data), run_dir=tmp_path)


def test_other_classes_for_the_evaluation_are_refused(class_set, tmp_path) -> None:
    other = write_class_set(tmp_path / "other", names=["cat", "dog", "cow"])
    with pytest.raises(ValueError, match=r"evaluate_on .*other has 3 classes \(cat, .* 3 \(red"):
        build(recipe(ClassificationTask(), source=class_set, evaluate_on=str(other)), run_dir=tmp_path / "run")


def test_classes_that_a_model_only_numbers_are_compared_by_their_number(class_set, tmp_path) -> None:
    rows = ClassSet.read(source=str(class_set), split="train", notes=tmp_path)
    rows.check(toy(VLMoForImageClassification, num_labels=3))
    with pytest.raises(ValueError, match="LABEL_3"):
        rows.check(toy(VLMoForImageClassification, num_labels=4))


def test_shared_statistics_keep_every_name(monkeypatch) -> None:
    """On GPUs; elsewhere the model is left alone."""
    model = toy(VLMoForSemanticSegmentation, num_labels=3, segmentation_channels=8)
    names = list(model.state_dict())
    assert with_shared_statistics(model) is model
    assert not any(isinstance(module, nn.SyncBatchNorm) for module in model.modules())
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("torch.distributed.get_backend", lambda: "nccl")
    shared = with_shared_statistics(model)
    assert list(shared.state_dict()) == names
    assert not any(type(module) is nn.BatchNorm2d for module in shared.modules())
