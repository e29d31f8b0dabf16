"""Starting one stage from the folder of another, and layer-wise learning rate decay."""

import pytest
import torch
from tests.toy_model import pictures, shaken, texts, toy
from torch import nn

from vlmo.model import (
    VLMoConfig,
    VLMoForImageClassification,
    VLMoForMaskedImageModeling,
    VLMoForMaskedLM,
    VLMoForPreTraining,
    VLMoForSemanticSegmentation,
    VLMoForVisualReasoning,
    VLMoModel,
)
from vlmo.model.embeddings import resize_absolute_positions, resize_bias_table
from vlmo.model.stages import layer_decay_factors, start_from


def make(model_class, *, seed: int, **changes) -> nn.Module:
    """Models of different seeds share no value."""
    torch.manual_seed(seed)
    return shaken(model_class(VLMoConfig.tiny(**changes)), seed=seed)


def saved(model_class, folder, *, seed: int = 1, **changes) -> nn.Module:
    model = make(model_class, seed=seed, **changes)
    model.save_pretrained(folder)
    return model


def copied(model: nn.Module, source: nn.Module, part: str) -> bool:
    """Whether every parameter with `part` in its name is equal in both."""
    state, other = model.state_dict(), source.state_dict()
    names = [name for name in state if part in name]
    assert names
    return all(torch.equal(state[name], other[name]) for name in names)


def test_stages_hand_on_what_they_have_trained(tmp_path):
    vision = saved(VLMoForMaskedImageModeling, tmp_path / "1", seed=1, num_fusion_layers=0)
    language = make(VLMoForMaskedLM, seed=2, num_fusion_layers=0)
    report = start_from(language, tmp_path / "1")
    assert copied(language, vision, "vlmo.")
    assert {name.split(".")[0] for name in report.missing} == {"mlm_head"}
    assert {name.split(".")[0] for name in report.unused} == {"mim_head"}

    with torch.no_grad():
        for block in language.vlmo.blocks:
            for parameter in block.experts["language"].parameters():
                parameter.add_(1)
    language.save_pretrained(tmp_path / "2")
    final = make(VLMoForPreTraining, seed=3)
    report = start_from(final, tmp_path / "2")
    assert copied(final, vision, ".attention.")
    assert copied(final, vision, ".experts.vision.")
    assert copied(final, language, ".experts.language.")
    assert copied(final, language, "mlm_head.")
    assert not copied(final, vision, ".experts.language.")
    top = final.vlmo.blocks[2].experts
    for name, value in top["vision_language"].state_dict().items():
        assert torch.equal(value, top["language"].state_dict()[name])
    own_heads = {"contrast_head", "fusion_contrast_head", "match_head", "vlmo.pooler"}
    assert {name for name in report.missing if not name.startswith(tuple(own_heads))} == set()
    assert report.unused == []


def test_backbone_alone_is_a_start(tmp_path):
    backbone, model = saved(VLMoModel, tmp_path, seed=1), make(VLMoForMaskedLM, seed=2)
    report = start_from(model, tmp_path)
    assert {name.split(".")[0] for name in report.missing} == {"mlm_head"}
    assert copied(model.vlmo, backbone, "blocks.")


def test_fusion_experts_start_from_the_language_expert(tmp_path):
    saved(VLMoForMaskedLM, tmp_path, num_fusion_layers=0)
    model = make(VLMoForPreTraining, seed=2, num_fusion_layers=2)
    report = start_from(model, tmp_path)
    state = model.state_dict()
    filled = {
        name: name.replace(".vision_language.", ".language.")
        for name in state
        if ".vision_language." in name
    }
    assert len(filled) == 2 * 6
    assert all(torch.equal(state[name], state[source]) for name, source in filled.items())
    assert report.filled == filled
    assert not filled.keys() & set(report.missing)


def test_report_names_every_tensor_once_and_lists_what_was_not_simply_loaded(tmp_path):
    source = saved(VLMoForMaskedLM, tmp_path, num_fusion_layers=0, image_size=96)
    model = make(VLMoForPreTraining, seed=2)
    report = start_from(model, tmp_path)
    of_the_model = [*report.loaded, *report.resized, *report.filled, *report.missing]
    assert sorted(of_the_model) == sorted(model.state_dict())
    assert sorted([*report.loaded, *report.resized, *report.unused]) == sorted(source.state_dict())
    lines = report.lines()
    assert lines[0] == f"{len(report.loaded)} tensors loaded"
    assert "resized: vlmo.position_bias.table" in lines
    expert = "vlmo.blocks.2.experts.vision_language.fc1.weight"
    assert f"filled: {expert} from {expert.replace('vision_language', 'language')}" in lines
    assert "not in the start folder, left random: match_head.classifier.bias" in lines
    assert len(lines) == 1 + len(report.resized) + len(report.filled) + len(report.missing) + len(
        report.unused
    )
    final = make(VLMoForPreTraining, seed=3)  # with all that it needs, experts of fusion too
    model.save_pretrained(tmp_path / "whole")
    report = start_from(final, tmp_path / "whole")
    assert copied(final, model, "")
    assert (report.missing, report.unused, report.filled, report.resized) == ([], [], {}, [])


@pytest.mark.parametrize("positions", ["relative", "absolute"])
@torch.no_grad()
def test_position_tables_are_resized_for_another_picture_size(positions, tmp_path):
    source = saved(VLMoForPreTraining, tmp_path, position_embedding=positions)
    model = make(VLMoForPreTraining, seed=2, image_size=96, position_embedding=positions)
    report = start_from(model, tmp_path)
    relative = positions == "relative"
    name = "vlmo.position_bias.table" if relative else "vlmo.image_embeddings.positions"
    resize = resize_bias_table if relative else resize_absolute_positions
    assert report.resized == [name]
    expected = resize(source.state_dict()[name], source=(4, 4), target=(6, 6))
    assert torch.equal(model.state_dict()[name], expected)
    # The started model is the old one at the new size, which resizes its table on the way.
    image, text = pictures(size=(96, 96)), texts([5, 8])
    torch.testing.assert_close(model.get_image_features(image), source.get_image_features(image))
    torch.testing.assert_close(model.get_text_features(**text), source.get_text_features(**text))
    torch.testing.assert_close(model.match(image, **text), source.match(image, **text))


@pytest.mark.parametrize("lacking", ["config.json", "model.safetensors"])
def test_bad_folder_is_refused_by_name(lacking, tmp_path):
    with pytest.raises(ValueError, match="nowhere is no model folder"):
        start_from(make(VLMoForMaskedLM, seed=2), tmp_path / "nowhere")
    saved(VLMoForMaskedLM, tmp_path)
    (tmp_path / lacking).unlink()
    with pytest.raises(ValueError, match=r"no config.json|holds no weights"):
        start_from(make(VLMoForMaskedLM, seed=2), tmp_path)


def test_classifier_of_other_classes_and_word_table_without_a_vocabulary_are_left_out(tmp_path):
    saved(VLMoForImageClassification, tmp_path, num_fusion_layers=0, num_labels=5, vocab_size=50)
    model = make(VLMoForImageClassification, seed=2, num_fusion_layers=0, num_labels=3)
    left_out = ["classifier.bias", "classifier.weight", "vlmo.text_embeddings.words.weight"]
    before = {name: model.state_dict()[name].clone() for name in left_out}
    report = start_from(model, tmp_path)
    assert sorted(report.unused) == left_out
    assert set(report.unused) <= set(report.missing)
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in before.items())
    (tmp_path / "tokenizer_config.json").write_text("{}")
    with pytest.raises(
        ValueError, match=r"words\.weight has shape \(50, 32\); expected \(96, 32\)"
    ):
        start_from(model, tmp_path)


@pytest.mark.parametrize(
    ("start", "new", "message"),
    [
        (
            {"position_embedding": "absolute", "num_attention_heads": 4},
            {},
            "num_attention_heads 4, the model 2",
        ),
        ({"token_order": "image_first"}, {}, "token_order 'image_first', the model 'text_first'"),
        (
            {"layer_scale_init": None},
            {"layer_scale_init": 0.1},
            "give --model.layer-scale-init None",
        ),
        (
            {"layer_scale_init": 0.1},
            {"layer_scale_init": None},
            "give --model.layer-scale-init 0.1",
        ),
        (
            {"experts": "shared"},
            {},
            "experts 'shared', the model 'multiway'.*give --model.experts shared",
        ),
        ({}, {"attention": "separate"}, "attention 'shared', the model 'separate'"),
        (
            {"max_text_positions": 32},
            {},
            r"text_embeddings\.positions has shape \(32, 32\); expected \(64, 32\)",
        ),
        (
            {"max_text_positions": 32, "position_embedding": "relative"},
            {"position_embedding": "relative"},
            r"vlmo\.position_bias\.table has shape \(118, 6\); expected \(182, 6\)",
        ),
    ],
)
def test_shapes_and_settings_that_no_shape_shows_must_agree(tmp_path, start, new, message):
    saved(VLMoForMaskedLM, tmp_path, **{"position_embedding": "absolute"} | start)
    with pytest.raises(ValueError, match=message):
        start_from(
            make(VLMoForMaskedLM, seed=2, **{"position_embedding": "absolute"} | new), tmp_path
        )


def test_second_picture_starts_as_the_first(tmp_path):
    source = saved(VLMoForPreTraining, tmp_path)
    model = make(VLMoForVisualReasoning, seed=2, num_modality_types=3, num_labels=2)
    report = start_from(model, tmp_path)
    old, new = (
        state["vlmo.modality_types.weight"] for state in (source.state_dict(), model.state_dict())
    )
    assert torch.equal(new, torch.stack([old[0], old[1], old[1]]))
    assert "vlmo.modality_types.weight" in report.resized
    assert copied(model, source, "vlmo.blocks.")
    assert {name.split(".")[0] for name in report.missing} == {"reasoning_head"}


def test_folder_with_numbers_that_are_not_finite_is_refused_by_the_tensor(tmp_path):
    model = make(VLMoForPreTraining, seed=1)
    with torch.no_grad():
        model.vlmo.norm.weight[3] = torch.nan
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"vlmo\.norm\.weight.* hold numbers that are not finite"):
        start_from(make(VLMoForPreTraining, seed=2), tmp_path)


def test_layer_ids_of_a_classifier() -> None:
    factors = layer_decay_factors(toy(VLMoForImageClassification, layer_scale_init=0.1), decay=0.5)
    # Blocks + 2 layer ids: 0 is four steps below the top.
    parts = ("vlmo.image_embeddings.", "vlmo.text_embeddings.", "vlmo.modality_types.")
    assert {value for name, value in factors.items() if name.startswith(parts)} == {0.5**4}
    for block in range(3):
        of_block = {
            value for name, value in factors.items() if name.startswith(f"vlmo.blocks.{block}.")
        }
        assert of_block == {0.5 ** (3 - block)}
    assert factors["vlmo.blocks.0.gamma_1"] == 0.5**3
    for name in (
        "vlmo.position_bias.table",
        "vlmo.norm.weight",
        "classifier_norm.weight",
        "classifier.bias",
    ):
        assert factors[name] == 1.0


def test_every_parameter_has_a_factor() -> None:
    model = toy(VLMoForSemanticSegmentation, position_embedding="absolute", segmentation_channels=8)
    factors = layer_decay_factors(model, decay=0.9)
    assert factors.keys() == {name for name, _ in model.named_parameters()}
    assert factors["vlmo.image_embeddings.positions"] == pytest.approx(0.9**4)
    assert factors["decode_head.classifier.weight"] == factors["pyramid.finer.weight"] == 1.0
    for decay in (0.0, 1.5):
        with pytest.raises(ValueError, match="layer decay"):
            layer_decay_factors(model, decay=decay)
