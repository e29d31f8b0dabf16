import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.toy_model import toy

from vlmo.model import VLMoForImageTextRetrieval, VLMoForVisualQuestionAnswering
from vlmo.recipes.task_model import load_task_model

TASK = {"task": "vqa", "recipe": "easy-vqa", "device": "cpu"}


def test_model_is_loaded_for_use(tmp_path):
    model = toy(VLMoForVisualQuestionAnswering, num_labels=3).train()
    model.save_pretrained(tmp_path)
    loaded = load_task_model(tmp_path, VLMoForVisualQuestionAnswering, **TASK)
    assert not loaded.training
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name


def test_folder_of_another_task_says_how_to_train_one(tmp_path):
    toy(VLMoForImageTextRetrieval).save_pretrained(tmp_path)
    with pytest.raises(
        ValueError, match=r"holds VLMoForImageTextRetrieval; the task vqa needs .*: vlmo train easy-vqa"
    ):
        load_task_model(tmp_path, VLMoForVisualQuestionAnswering, **TASK)


def test_folder_without_a_model_is_named(tmp_path):
    with pytest.raises(ValueError, match="is no model folder: it has no config"):
        load_task_model(tmp_path / "nowhere", VLMoForVisualQuestionAnswering, **TASK)


def test_folder_without_a_name_of_its_class_is_refused(tmp_path):
    toy(VLMoForVisualQuestionAnswering, num_labels=3).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["architectures"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="holds no named class"):
        load_task_model(tmp_path, VLMoForVisualQuestionAnswering, **TASK)


def test_missing_tensors_are_never_left_random(tmp_path):
    toy(VLMoForVisualQuestionAnswering, num_labels=3).save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["answer_head.classifier.bias"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="lacks 1 tensors of VLMoForVisualQuestionAnswering"):
        load_task_model(tmp_path, VLMoForVisualQuestionAnswering, **TASK)
