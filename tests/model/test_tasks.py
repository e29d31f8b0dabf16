"""The public classes: folders, Auto classes, initial weights and losses."""

import math

import pytest
import torch
from tests.toy_model import BEIT3, pictures, texts, toy
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageTextToText,
    AutoModelForMaskedImageModeling,
    AutoModelForMaskedLM,
    AutoModelForPreTraining,
    AutoModelForZeroShotImageClassification,
)

from vlmo import (
    VLMoConfig,
    VLMoForImageCaptioning,
    VLMoForImageClassification,
    VLMoForImageTextRetrieval,
    VLMoForMaskedImageModeling,
    VLMoForMaskedLM,
    VLMoForPreTraining,
    VLMoForSemanticSegmentation,
    VLMoForVisualQuestionAnswering,
    VLMoModel,
)

AUTO = {
    VLMoModel: AutoModel,
    VLMoForPreTraining: AutoModelForPreTraining,
    VLMoForMaskedImageModeling: AutoModelForMaskedImageModeling,
    VLMoForMaskedLM: AutoModelForMaskedLM,
    VLMoForImageCaptioning: AutoModelForImageTextToText,
    VLMoForImageTextRetrieval: AutoModelForZeroShotImageClassification,
}
TASKS = [VLMoForVisualQuestionAnswering, VLMoForImageClassification, VLMoForSemanticSegmentation]


def pair() -> dict[str, torch.Tensor]:
    return {"pixel_values": pictures(), **texts([5, 8])}


def equal_weights(model: torch.nn.Module, other: torch.nn.Module) -> bool:
    state, expected = model.state_dict(), other.state_dict()
    return state.keys() == expected.keys() and all(
        torch.equal(state[name], expected[name]) for name in state
    )


@pytest.mark.parametrize("model_class", AUTO)
@pytest.mark.parametrize(
    "changes",
    [{}, {"position_embedding": "absolute", "layer_scale_init": None, "experts": "shared"}],
)
@torch.no_grad()
def test_saved_model_comes_back_bit_by_bit(model_class, changes, tmp_path):
    model = toy(model_class, **changes)
    model.save_pretrained(tmp_path)
    assert {file.name for file in tmp_path.iterdir()} - {"modules.json"} == {
        "config.json",
        "model.safetensors",
    }
    assert AutoConfig.from_pretrained(tmp_path).architectures == [model_class.__name__]
    given = (
        pair() if model_class is not VLMoForMaskedImageModeling else {"pixel_values": pictures()}
    )
    for load in (model_class, AUTO[model_class]):
        loaded, info = load.from_pretrained(tmp_path, output_loading_info=True)
        assert not any(info.values())
        assert type(loaded) is model_class
        assert not loaded.training
        assert equal_weights(loaded, model)
    for value, expected in zip(loaded(**given).to_tuple(), model(**given).to_tuple(), strict=True):
        assert torch.equal(value, expected)


@pytest.mark.parametrize("model_class", [VLMoForPreTraining, VLMoForImageTextRetrieval])
def test_backbone_loads_from_a_task_folder_and_the_other_way_round(model_class, tmp_path):
    task = toy(model_class)
    task.save_pretrained(tmp_path / "task")
    backbone = VLMoModel.from_pretrained(tmp_path / "task")
    backbone.save_pretrained(tmp_path / "backbone")
    loaded = model_class.from_pretrained(tmp_path / "backbone")
    assert equal_weights(backbone, task.vlmo)
    assert equal_weights(loaded.vlmo, backbone)
    retrieval, info = VLMoForImageTextRetrieval.from_pretrained(
        tmp_path / "task", output_loading_info=True
    )
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]  # the heads that retrieval has no use for are expected
    with torch.no_grad():
        assert torch.equal(retrieval(**pair()).logits_per_image, task(**pair()).logits_per_image)


@pytest.mark.parametrize("model_class", [*AUTO, *TASKS])
@pytest.mark.parametrize("changes", [{}, BEIT3])
def test_what_a_folder_lacks_starts_as_in_a_new_model(model_class, changes, tmp_path, monkeypatch):
    source = toy(VLMoForMaskedLM, num_hidden_layers=4, **changes)
    source.save_pretrained(tmp_path)
    empty_like = torch.empty_like  # what missing parameters are made with: raw memory

    def poisoned(*args, **kwargs):
        tensor = empty_like(*args, **kwargs)
        return tensor.fill_(math.nan) if tensor.is_floating_point() else tensor

    monkeypatch.setattr(torch, "empty_like", poisoned)
    head = {"num_labels": 5, "segmentation_channels": 16} if model_class in TASKS else {}
    model, info = model_class.from_pretrained(tmp_path, output_loading_info=True, **head)
    saved, fresh = source.state_dict(), model_class(model.config).state_dict()
    if model_class is VLMoModel:
        saved = {name.removeprefix("vlmo."): value for name, value in saved.items()}
    for name, value in model.state_dict().items():
        assert (name in info["missing_keys"]) == (name not in saved)
        if name in saved:
            assert torch.equal(value, saved[name]), name
        elif fresh[name].unique().numel() == 1:  # a constant
            assert torch.equal(value, fresh[name]), name
        else:
            assert value.std().item() == pytest.approx(0.02, rel=0.3), name


@pytest.mark.parametrize("positions", ["relative", "absolute"])
def test_new_model_starts_as_described(positions):
    config = VLMoConfig.small(
        position_embedding=positions, layer_scale_init=0.25, logit_scale_init=2.0
    )
    model = VLMoForPreTraining(config)
    for name, parameter in model.named_parameters():
        leaf = name.rsplit(".", 1)[-1]
        if ".norm" in name or name.endswith("logit_scale") or "gamma" in name:
            value = (
                0.0
                if leaf == "bias"
                else 2.0
                if leaf == "logit_scale"
                else 0.25
                if "gamma" in leaf
                else 1.0
            )
            assert torch.all(parameter == value), name
        elif leaf.endswith("bias") or leaf == "table":
            assert torch.all(parameter == 0), name
        else:
            assert parameter.std().item() == pytest.approx(0.02, rel=0.15), name
            assert abs(parameter.mean().item()) < 0.006, name
    words = model.vlmo.text_embeddings.words.weight
    assert torch.all(words[0] == 0)
    assert not torch.any(torch.all(words[1:] == 0, dim=1))
    assert torch.all(VLMoForMaskedImageModeling(config).mim_head.mask_token == 0)


@torch.no_grad()
def test_images_and_texts_may_differ_in_number():
    model = toy(VLMoForImageTextRetrieval)
    output = model(pixel_values=pictures(2), **texts([5, 8, 6]))
    assert output.logits_per_image.shape == (2, 3)
    torch.testing.assert_close(output.image_embeds.norm(dim=1), torch.ones(2))
    torch.testing.assert_close(output.text_embeds.norm(dim=1), torch.ones(3))
    expected = model.contrast_head.logit_scale.exp() * output.image_embeds @ output.text_embeds.T
    torch.testing.assert_close(output.logits_per_image, expected)
    assert torch.equal(output.logits_per_text, output.logits_per_image.T)
    assert torch.equal(output.image_embeds, model.get_image_features(pixel_values=pictures(2)))
    assert torch.equal(output.text_embeds, model.get_text_features(**texts([5, 8, 6])))


@pytest.mark.parametrize("model_class", [VLMoForPreTraining, VLMoForImageTextRetrieval])
@torch.no_grad()
def test_one_modality_gives_its_vectors_alone(model_class):
    model = toy(model_class)
    assert set(model(pixel_values=pictures())) == {"image_embeds"}
    assert set(model(**texts([5]))) == {"text_embeds"}
    with pytest.raises(ValueError, match="neither pixel_values nor input_ids"):
        model()


@torch.no_grad()
def test_pretraining_gives_fused_logits_for_pairs_only():
    model = toy(VLMoForPreTraining)
    output = model(**pair())
    assert output.match_logits.shape == (2, 2)
    assert output.mlm_logits.shape == (2, 8, 96)
    torch.testing.assert_close(output.match_logits, model.match(**pair()))
    unpaired = {"image_embeds", "text_embeds", "logits_per_image", "logits_per_text"}
    assert set(model(pixel_values=pictures(), **texts([5, 8, 6]))) == unpaired


def test_temperature_stays_within_bounds():
    model = toy(VLMoForPreTraining)
    for start, expected in ((9.0, math.log(100)), (-1.0, 0.0), (2.5, 2.5)):
        scales = [head.logit_scale for head in (model.contrast_head, model.fusion_contrast_head)]
        for scale in scales:
            torch.nn.init.constant_(scale, start)
        model.clamp_logit_scale_()
        assert [scale.item() for scale in scales] == pytest.approx([expected] * 2, abs=1e-4)


@torch.no_grad()
def test_masked_image_loss_counts_masked_patches_only():
    model = toy(VLMoForMaskedImageModeling)
    masked = torch.zeros(2, 16, dtype=torch.bool)
    masked[0, [1, 5]] = masked[1, 9] = True
    labels = torch.arange(32).view(2, 16)
    output = model(pictures(), bool_masked_pos=masked, labels=labels)
    assert output.reconstruction.shape == (2, 16, 64)
    log_probabilities = output.reconstruction.log_softmax(dim=-1)
    terms = [
        log_probabilities[row, patch, labels[row, patch]] for row, patch in ((0, 1), (0, 5), (1, 9))
    ]
    torch.testing.assert_close(output.loss, -sum(terms) / 3)
    everywhere = model(pictures(), labels=labels)
    expected = torch.nn.functional.cross_entropy(
        everywhere.reconstruction.flatten(0, 1), labels.flatten()
    )
    torch.testing.assert_close(everywhere.loss, expected)
    assert model(pictures()).loss is None


@pytest.mark.parametrize("with_image", [False, True])
@torch.no_grad()
def test_masked_language_loss_counts_labelled_words_only(with_image):
    model = toy(VLMoForMaskedLM)
    given = pair() if with_image else texts([5, 8])
    labels = torch.full((2, 8), -100)
    labels[0, 2], labels[1, 7] = 40, 41
    output = model(**given, labels=labels)
    assert output.logits.shape == (2, 8, 96)
    log_probabilities = output.logits.log_softmax(dim=-1)
    expected = -(log_probabilities[0, 2, 40] + log_probabilities[1, 7, 41]) / 2
    torch.testing.assert_close(output.loss, expected)
    loss, logits = model(**given, labels=labels, return_dict=False)
    assert torch.equal(loss, output.loss)
    assert torch.equal(logits, output.logits)


def test_loss_of_a_batch_is_clips():
    model = toy(VLMoForImageTextRetrieval)
    output = model(**pair(), return_loss=True)
    logits = output.logits_per_image
    shares = [
        logits.log_softmax(dim=1).diagonal().mean(),
        logits.log_softmax(dim=0).diagonal().mean(),
    ]
    torch.testing.assert_close(output.loss, -(shares[0] + shares[1]) / 2)
    assert output.to_tuple()[0] is output.loss
    assert model(**pair()).loss is None
    with pytest.raises(ValueError, match="a text for each image"):
        model(pixel_values=pictures(), return_loss=True)
