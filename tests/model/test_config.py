"""Sizes of the presets, and what a configuration refuses."""

import math

import pytest
import torch
from huggingface_hub.errors import StrictDataclassFieldValidationError

from vlmo.model import VLMoConfig, VLMoForMaskedDataModeling, VLMoModel

SIZES = (
    *(
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "intermediate_size",
        "image_size",
        "patch_size",
    ),
    *("num_channels", "vocab_size", "max_text_positions", "projection_size", "num_visual_tokens"),
)


@pytest.mark.parametrize(
    ("name", "layers", "width", "heads", "fusion", "grid", "millions"),
    [
        ("base", 12, 768, 12, 2, 14, 175),
        ("base_plus", 24, 544, 16, 3, 14, 167),
        ("large", 24, 1024, 16, 3, 14, 562),
        ("small", 6, 192, 3, 1, 4, 6),
        ("tiny", 3, 32, 2, 1, 4, 0),
    ],
)
def test_presets_have_the_published_shape_and_number_of_parameters(
    name, layers, width, heads, fusion, grid, millions
):
    config = getattr(VLMoConfig, name)()
    with torch.device("meta"):
        model = VLMoModel(config, add_pooling_layer=False)
    assert round(sum(parameter.numel() for parameter in model.parameters()) / 1e6) == millions
    assert (config.num_hidden_layers, config.hidden_size, config.num_attention_heads) == (
        layers,
        width,
        heads,
    )
    assert (config.num_fusion_layers, config.grid) == (fusion, (grid, grid))
    assert (config.intermediate_size, config.projection_size) == (4 * width, width)
    assert math.isclose(math.exp(-config.logit_scale_init), 0.07)


def test_giant_has_the_parameters_that_the_paper_of_beit3_counts():
    with torch.device("meta"):
        model = VLMoForMaskedDataModeling(VLMoConfig.beit3_giant())
    parts = {"vision": 692, "language": 692, "vision_language": 52, "attention": 317, "": 1949}
    for part, millions in parts.items():
        counted = sum(
            weight.numel()
            for name, weight in model.named_parameters()
            if f".{part}." in name or not part
        )
        assert round(counted / 1e6) == millions, part


def test_fusion_branch_needs_fusion_experts():
    assert VLMoConfig.tiny().has_fusion_branch
    for key in ("contrast_fusion_branch", "contrast_fusion_ending"):  # the latter in older folders
        assert not VLMoConfig.tiny(**{key: False}).has_fusion_branch
    assert not VLMoConfig.tiny(num_fusion_layers=0).has_fusion_branch
    assert not VLMoConfig.tiny(experts="shared").has_fusion_branch


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"position_init": "sincos"}, "position_init 'sincos' need absolute positions"),
        ({"num_attention_heads": 5}, "hidden_size 32 is not a multiple of num_attention_heads 5"),
        ({"image_size": 65}, "image_size 65 is not a multiple of patch_size 16"),
        ({"num_fusion_layers": 4}, "num_fusion_layers is 4; expected 0 to 3"),
        ({"num_fusion_layers": -1}, "num_fusion_layers is -1; expected 0 to 3"),
        ({"num_modality_types": 1}, "num_modality_types is 1; expected 0"),
        ({"rerank_weight": 1.5}, "rerank_weight is 1.5; expected a number from 0 to 1"),
        ({"drop_path_rate": -0.1}, "drop_path_rate is -0.1; expected a number from 0 to 1"),
        ({"hidden_dropout_prob": math.nan}, "hidden_dropout_prob is nan"),
        ({"hidden_size": "768"}, "'hidden_size' expected int, got str"),
        ({"experts": "many"}, "'experts' expected one of"),
        ({"position_embedding": "sinus"}, "'position_embedding' expected one of"),
        *(({name: 0}, f"{name} is 0; expected a number from 1 to") for name in SIZES),
    ],
)
def test_configuration_and_a_file_with_it_name_a_bad_value(change, message):
    with pytest.raises((ValueError, StrictDataclassFieldValidationError), match=message):
        VLMoConfig.tiny(**change)
    with pytest.raises(ValueError, match=message):
        VLMoConfig.from_dict(VLMoConfig.tiny().to_dict() | change)


@pytest.mark.parametrize("key", ["_attn_implementation", "attn_implementation"])
def test_a_file_that_asks_for_an_attention_that_the_model_lacks_is_refused(key: str) -> None:
    settings = VLMoConfig.tiny().to_dict() | {key: "flex_attention"}
    with pytest.raises(ValueError, match=r"'flex_attention'; expected one of eager, sdpa"):
        VLMoConfig.from_dict(settings)
