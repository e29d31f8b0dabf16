"""Fine-tuning of the image encoder: what the stages build, refuse and measure."""

import dataclasses

import pytest
import torch
from tests.recipes.toy_recipes import tiny
from tests.tasks.toy_vision import NAMES, PIXELS, write_class_set
from tests.toy_model import toy
from tests.toy_questions import processor
from torch import nn

from vlmo.model import (
    VLMoForImageClassification,
    VLMoForImageTextRetrieval,
    VLMoForSemanticSegmentation,
)
from vlmo.processing import TransformConfig
from vlmo.processing.segmentation import SegmentTransformConfig
from vlmo.recipes import find_recipe
from vlmo.recipes.schema import DataConfig
from vlmo.run import build
from vlmo.run.start import Start, model_settings
from vlmo.tasks import ClassificationTask, SegmentationTask
from vlmo.tasks.classification import ClassSet
from vlmo.tasks.segmentation import with_shared_statistics
from vlmo.training import read_metrics

STEPS = 2


@pytest.fixture
def make(sets, folders, tmp_path):
    """Trainers of a task, from what pre-training leaves; `sizes` are of the model."""

    def trainer(task, *, sizes=None, **changes):
        recipe = tiny(
            task, sets[task.name], sizes={"num_fusion_layers": 0} | (sizes or {}), steps=STEPS
        )
        return build(
            dataclasses.replace(recipe, **{"init": str(folders["retrieval"])} | changes),
            run_dir=tmp_path,
        )

    return trainer


def test_classifier_is_trained_and_measured(make, tmp_path) -> None:
    result = make(ClassificationTask()).fit()
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


def test_segmenter_is_trained_and_measured(make, tmp_path) -> None:
    result = make(SegmentationTask(channels=8)).fit()
    model = VLMoForSemanticSegmentation.from_pretrained(result.model_dir)
    assert [model.config.id2label[number] for number in range(4)] == PIXELS
    assert model.config.segmentation_channels == 8
    (figures,) = [line for line in read_metrics(tmp_path) if "test/miou" in line]
    assert {name for name in figures if name.startswith("test/")} == {
        "test/miou",
        "test/aacc",
        "test/macc",
    }
    assert "miou" in (result.model_dir / "README.md").read_text()


def test_text_side_follows_the_start_folder(make, folders) -> None:
    """Nothing here reads words, so the recipe's sizes of the text side do not matter."""
    trainer = make(ClassificationTask(), sizes={"vocab_size": 50})
    model, vocabulary = trainer.objective.model, processor().vocab_size
    assert model.config.vocab_size == vocabulary != 50
    stage1 = dataclasses.replace(find_recipe("shapes-stage1"), init=str(folders["retrieval"]))
    assert model_settings(stage1, None, Start.of(stage1))["vocab_size"] == vocabulary
    begun = VLMoForImageTextRetrieval.from_pretrained(folders["retrieval"])
    assert torch.equal(
        model.vlmo.text_embeddings.words.weight, begun.vlmo.text_embeddings.words.weight
    )
    assert torch.equal(
        model.vlmo.blocks[0].experts.vision.fc1.weight,
        begun.vlmo.blocks[0].experts.vision.fc1.weight,
    )


def test_learning_rates_fall_with_the_depth(make) -> None:
    trainer = make(ClassificationTask(layer_decay=0.5), init=None)
    names = {id(parameter): name for name, parameter in trainer.objective.named_parameters()}
    scales = {
        names[id(p)]: group["lr_scale"]
        for group in trainer.optimizer.param_groups
        for p in group["params"]
    }
    assert scales["model.classifier.weight"] == 1.0
    assert scales["model.vlmo.blocks.2.experts.vision.fc1.weight"] == 0.5
    assert scales["model.vlmo.image_embeddings.projection.weight"] == 0.5**4


def test_crops_are_of_the_models_size(make) -> None:
    task = SegmentationTask(channels=8, augmentation=SegmentTransformConfig(scale=(1.0, 1.0)))
    batch = next(iter(make(task, sizes={"image_size": 32}, init=None).loader(0)))[0]
    assert batch["pixel_values"].shape[-2:] == batch["labels"].shape[-2:] == (32, 32)


def test_settings_and_classes_that_do_not_fit_are_refused(make, sets, tmp_path) -> None:
    data = DataConfig(
        source=str(sets["segmentation"]), transform=TransformConfig(horizontal_flip=0.0)
    )
    with pytest.raises(ValueError, match=r"set task\.augmentation"):
        make(SegmentationTask(channels=8), data=data)
    other = write_class_set(tmp_path / "other", names=["cat", "dog", "cow"])
    with pytest.raises(ValueError, match=r"evaluate_on .*other has 3 classes \(cat, .* 3 \(red"):
        make(ClassificationTask(), evaluate_on=str(other))


def test_classes_that_a_model_only_numbers_are_compared_by_their_number(sets, tmp_path) -> None:
    rows = ClassSet.read(source=str(sets["classification"]), split="train", notes=tmp_path)
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
