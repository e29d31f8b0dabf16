"""BEiT's weights, under the keys of each of its layouts, give what transformers' Beit models give."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.parity.plain import linear_shapes, norm_shapes
from torch import Tensor
from transformers import (
    BeitConfig,
    BeitForImageClassification,
    BeitForMaskedImageModeling,
    BeitModel,
    Data2VecVisionForImageClassification,
    ViTConfig,
    ViTModel,
)

from vlmo.checkpoints import beit
from vlmo.checkpoints.layout import Conversion
from vlmo.model import VLMoConfig, VLMoForImageClassification, VLMoForMaskedImageModeling

ATOL = 1e-5  # float32, two implementations that sum in different orders
PATCH, GRID, DEPTH, HEADS, WIDTH = 8, 5, 3, 4, 32
KEY_STYLES = pytest.mark.parametrize("style", ["published", "hugging_face"])
SHARED_TABLE = {"use_relative_position_bias": False, "use_shared_relative_position_bias": True}
# As the published `beit_base_patch16_224_pt1k_800ep.pth`.
ABSOLUTE_POSITIONS = {
    "use_relative_position_bias": False,
    "use_absolute_position_embeddings": True,
    "layer_scale_init_value": 0.0,
}
SETTINGS = pytest.mark.parametrize(
    "settings",
    [{}, SHARED_TABLE, {"layer_scale_init_value": 0.0}],
    ids=["own_tables", "shared_table", "no_layer_scale"],
)
OLD_NAMES = {  # in this order
    "beit.": "",
    "embeddings.patch_embeddings.projection": "patch_embed.proj",
    "embeddings.": "",
    "position_embeddings": "pos_embed",
    "encoder.layer.": "blocks.",
    "encoder.relative_position_bias.": "rel_pos_bias.",
    "attention.attention.relative_position_bias.": "attn.",
    "attention.attention.query.bias": "attn.q_bias",
    "attention.attention.value.bias": "attn.v_bias",
    "attention.output.dense": "attn.proj",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
    "pooler.layernorm": "fc_norm",
    "layernorm": "norm",
    "lambda_": "gamma_",
    "classifier": "head",
}


def random_beit(model_class, **changes):
    """Everything nonzero, LayerScale and position tables too, so that nothing can be dropped unseen."""
    settings = {
        "hidden_size": WIDTH,
        "num_hidden_layers": DEPTH,
        "num_attention_heads": HEADS,
        "intermediate_size": 48,
        "image_size": PATCH * GRID,
        "patch_size": PATCH,
        "vocab_size": 23,
        "layer_norm_eps": 1e-6,
        "use_mask_token": True,
        "use_relative_position_bias": True,
    }
    model = model_class(model_class.config_class(**settings | changes))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            scale = 1.0 if "table" in name or "token" in name else 0.3
            parameter.copy_(torch.randn_like(parameter) * scale)
    return model.eval()


def published_keys(model) -> dict[str, Tensor]:
    """The weights of a Beit model under the keys of the original files (written down here a second time)."""
    renamed: dict[str, Tensor] = {}
    for key, tensor in hugging_face_keys(model).items():
        for theirs, original in OLD_NAMES.items():
            key = key.replace(theirs, original)
        renamed[key] = tensor
    for layer in range(DEPTH):
        names = [
            f"blocks.{layer}.attention.attention.{part}.weight"
            for part in ("query", "key", "value")
        ]
        renamed[f"blocks.{layer}.attn.qkv.weight"] = torch.cat(
            [renamed.pop(name) for name in names]
        )
    return renamed


def hugging_face_keys(model) -> dict[str, Tensor]:
    """The weights of a Beit model under the keys of its folder, which are others than those in memory."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return {
            key: tensor.clone()
            for key, tensor in load_file(Path(folder) / "model.safetensors").items()
        }


def converted(model, *, style: str = "hugging_face", **changes) -> Conversion:
    if style == "published":
        return beit.convert(published_keys(model), **changes)
    return beit.convert(hugging_face_keys(model), config=model.config.to_dict() | changes)


def load(conversion: Conversion):
    """The model, after a check that what the conversion holds and what it says starts anew is everything."""
    assert conversion.tensors.unknown == []
    model = conversion.model_class(conversion.config).eval()
    missing, unexpected = model.load_state_dict(conversion.weights, strict=False)
    assert unexpected == []
    assert all(re.match(conversion.created, name) for name in missing)
    for pattern in conversion.created.split("|"):
        assert any(re.match(pattern, name) for name in missing), pattern
    return model


def pictures() -> Tensor:
    return torch.randn(2, 3, PATCH * GRID, PATCH * GRID)


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, atol=ATOL, rtol=0)


@KEY_STYLES
@SETTINGS
@torch.no_grad()
def test_masked_image_modeling_gives_the_same_logits_and_states(style, settings):
    theirs = random_beit(BeitForMaskedImageModeling, **settings)
    conversion = converted(theirs, style=style)
    ours = load(conversion)
    assert conversion.model_class is VLMoForMaskedImageModeling
    assert conversion.tensors.unused == []
    assert (conversion.config.layer_scale_init is None) == ("layer_scale_init_value" in settings)
    pixels, masked = pictures(), torch.rand(2, GRID * GRID) < 0.4
    close(
        ours(pixels, bool_masked_pos=masked).reconstruction,
        theirs(pixels, bool_masked_pos=masked).logits,
    )
    states = ours.vlmo(pixel_values=pixels, output_hidden_states=True)
    theirs_states = theirs.beit(pixels).last_hidden_state
    close(states.hidden_states[-1], theirs_states)  # its mean pooling leaves the norm out
    close(states.last_hidden_state, theirs.layernorm(theirs_states))


@KEY_STYLES
@SETTINGS
@torch.no_grad()
def test_image_classification_gives_the_same_logits(style, settings):
    theirs = random_beit(BeitForImageClassification, use_mask_token=False, num_labels=7, **settings)
    conversion = converted(theirs, style=style)
    ours = load(conversion)
    assert conversion.model_class is VLMoForImageClassification
    close(ours(pixels := pictures()).logits, theirs(pixels).logits)
    assert any("identity" in note for note in conversion.notes)
    close(ours.vlmo.norm.weight, torch.ones(WIDTH))


@pytest.mark.parametrize("settings", [{}, SHARED_TABLE])
@torch.no_grad()
def test_data2vec_for_images_gives_the_same_logits(settings):
    theirs = random_beit(
        Data2VecVisionForImageClassification, use_mask_token=False, num_labels=7, **settings
    )
    assert any(key.startswith("data2vec_vision.encoder.") for key in hugging_face_keys(theirs))
    close(load(converted(theirs))(pixels := pictures()).logits, theirs(pixels).logits)


@KEY_STYLES
@pytest.mark.parametrize("mean_pooled", [False, True])
@torch.no_grad()
def test_backbone_alone_gives_the_same_states(style, mean_pooled):
    theirs = random_beit(BeitModel, use_mean_pooling=mean_pooled)
    conversion = converted(theirs, style=style)
    output = load(conversion).vlmo(pixel_values=(pixels := pictures()), output_hidden_states=True)
    close(
        output.hidden_states[-1] if mean_pooled else output.last_hidden_state,
        theirs(pixels).last_hidden_state,
    )
    assert (
        len(conversion.tensors.unused) == 2 * mean_pooled
    )  # the norm of a classifier that is not there


@torch.no_grad()
def test_absolute_positions_give_the_same_logits():
    theirs = random_beit(BeitForMaskedImageModeling, **ABSOLUTE_POSITIONS)
    conversion = converted(theirs, style="published", num_attention_heads=HEADS)
    assert (conversion.config.position_embedding, conversion.config.layer_scale_init) == (
        "absolute",
        None,
    )
    close(load(conversion)(pixels := pictures()).reconstruction, theirs(pixels).logits)


@pytest.mark.parametrize(
    ("depth", "width", "preset"), [(12, 768, VLMoConfig.base), (24, 1024, VLMoConfig.large)]
)
@pytest.mark.parametrize("classes", [0, 21841])
def test_released_sizes_become_our_presets(depth, width, preset, classes):
    with torch.device("meta"):
        tensors = released_shapes(depth=depth, width=width, heads=width // 64, classes=classes)
        conversion = beit.convert(tensors)
        ours = conversion.model_class(conversion.config).state_dict()
    labels = {"num_labels": classes} if classes else {}
    assert conversion.config.to_dict() == preset(num_fusion_layers=0, **labels).to_dict()
    assert {name: tensor.shape for name, tensor in conversion.weights.items()} == {
        name: tensor.shape
        for name, tensor in ours.items()
        if not re.match(conversion.created, name)
    }


def released_shapes(*, depth: int, width: int, heads: int, classes: int) -> dict[str, Tensor]:
    """Empty tensors of the released files: pre-trained with a shared table, or fine-tuned with a table each."""
    table = (732, heads)
    block = {
        "attn.qkv.weight": (3 * width, width),
        **dict.fromkeys(("gamma_1", "gamma_2", "attn.q_bias", "attn.v_bias"), (width,)),
        **linear_shapes("attn.proj", width, width),
        **linear_shapes("mlp.fc1", 4 * width, width),
        **linear_shapes("mlp.fc2", width, 4 * width),
        **norm_shapes("norm1", width),
        **norm_shapes("norm2", width),
    }
    shapes = {"patch_embed.proj.weight": (width, 3, 16, 16), "patch_embed.proj.bias": (width,)}
    shapes |= {"cls_token": (1, 1, width)}
    if classes:
        block |= {
            "attn.relative_position_bias_table": table,
            "attn.relative_position_index": (197, 197),
        }
        shapes |= norm_shapes("fc_norm", width) | linear_shapes("head", classes, width)
    else:
        shapes |= norm_shapes("norm", width) | linear_shapes("lm_head", 8192, width)
        shapes |= {"mask_token": (1, 1, width)}
        shapes |= {
            "rel_pos_bias.relative_position_bias_table": table,
            "rel_pos_bias.relative_position_index": (),
        }
    shapes |= {
        f"blocks.{layer}.{name}": shape for layer in range(depth) for name, shape in block.items()
    }
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


def test_label_names_and_norm_constant_come_from_the_folder():
    theirs = random_beit(BeitForImageClassification, id2label={0: "cat", 1: "dog"})
    ours = converted(theirs, layer_norm_eps=1e-11).config
    assert ours.id2label == {0: "cat", 1: "dog"}
    assert ours.label2id == {"cat": 0, "dog": 1}
    assert ours.layer_norm_eps == 1e-11
    other = beit.convert(hugging_face_keys(theirs), config={"id2label": {"0": "cat"}}).config
    assert (other.layer_norm_eps, other.id2label) == (
        BeitConfig().layer_norm_eps,
        {0: "LABEL_0", 1: "LABEL_1"},
    )


def test_layers_in_which_beit_2_trains_its_class_token_are_dropped_and_reported():
    theirs = random_beit(BeitForMaskedImageModeling)
    weights = published_keys(theirs)
    extra = {
        key.replace("blocks.", "cls_pt_layers."): tensor
        for key, tensor in weights.items()
        if "blocks." in key
    }
    conversion = beit.convert(weights | extra | {"cls_pt_lm_head.weight": torch.zeros(23, WIDTH)})
    assert set(conversion.tensors.unused) == {*extra, "cls_pt_lm_head.weight"}
    assert conversion.config.num_hidden_layers == DEPTH
    close(load(conversion)(pixels := pictures()).reconstruction, theirs(pixels).logits)


def test_leftovers_are_unused_and_strangers_unknown():
    theirs = random_beit(BeitForImageClassification, num_labels=7)
    weights = published_keys(theirs)
    weights["blocks.0.attn.relative_position_index"] = torch.zeros(26, 26)
    weights["decode_head.weight"] = torch.zeros(3)
    found = beit.convert(weights).tensors
    assert sorted(found.unused) == ["blocks.0.attn.relative_position_index", "mask_token"]
    assert found.unknown == ["decode_head.weight"]
    found = beit.convert(hugging_face_keys(theirs) | {"fpn1.0.weight": torch.zeros(3)}).tensors
    assert (found.unused, found.unknown) == (["beit.embeddings.mask_token"], ["fpn1.0.weight"])
    conversion = converted(
        random_beit(BeitForImageClassification, use_mean_pooling=False, num_labels=7)
    )
    load(conversion)  # a classifier that reads the class token has no place
    assert conversion.model_class is VLMoForMaskedImageModeling
    assert sorted(conversion.tensors.unused) == ["classifier.bias", "classifier.weight"]


def test_recognizes_beit_and_nothing_else():
    theirs = random_beit(BeitForMaskedImageModeling)
    vit = ViTModel(
        ViTConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
    )
    other = published_keys(theirs) | {"blocks.0.attn.qkv.bias": torch.zeros(96)}
    assert beit.recognizes(hugging_face_keys(theirs.beit))
    for keys in (
        hugging_face_keys(vit),
        {f"transformer.{key}": tensor for key, tensor in published_keys(theirs).items()},
        {key: tensor for key, tensor in other.items() if not key.endswith("q_bias")},
    ):
        assert not beit.recognizes(keys)


TABLE = "blocks.{}.attn.relative_position_bias_table"


@pytest.mark.parametrize(
    ("changes", "arguments", "message"),
    [
        ({TABLE.format(1): None}, {}, "2 of 3 blocks .* or pos_embed"),
        ({TABLE.format(layer): None for layer in range(DEPTH)}, {}, "0 of 3 blocks"),
        (
            {TABLE.format(layer): torch.zeros(9 * 11 + 3, HEADS) for layer in range(DEPTH)},
            {},
            "102 rows",
        ),
        (
            {"pos_embed": torch.zeros(1, 27, WIDTH)},
            {"num_attention_heads": HEADS},
            "pos_embed has 27 rows",
        ),
        ({"patch_embed.proj.weight": None}, {}, r"patch_embed\.proj\.weight"),
        (
            {},
            {"num_attention_heads": HEADS + 1},
            "12 columns, which do not fit 3 layers of 5 heads",
        ),
    ],
)
def test_what_cannot_be_converted_is_refused_by_name(changes, arguments, message):
    weights = published_keys(random_beit(BeitForMaskedImageModeling)) | changes
    with pytest.raises(ValueError, match=message):
        beit.convert(
            {key: tensor for key, tensor in weights.items() if tensor is not None}, **arguments
        )


@pytest.mark.parametrize(
    ("model_class", "settings", "changes", "message"),
    [
        (BeitForMaskedImageModeling, {"use_mean_pooling": False}, {}, "are two tensors"),
        (BeitModel, {}, {"hidden_act": "relu"}, "relu"),
        (BeitModel, {}, {"id2label": ["a"]}, "length"),
    ],
)
def test_folder_that_cannot_be_converted_is_refused(model_class, settings, changes, message):
    with pytest.raises(ValueError, match=message):
        converted(random_beit(model_class, **settings), **changes)


def test_lost_blocks_of_a_published_width_are_said():
    for depth, said in ((11, True), (12, False)):
        tensors = released_shapes(depth=depth, width=768, heads=12, classes=3)
        assert any("is it whole" in note for note in beit.convert(tensors).notes) == said
    tensors = released_shapes(depth=12, width=768, heads=16, classes=3)
    with pytest.raises(ValueError, match="192 columns, which do not fit 12 layers of 12 heads"):
        beit.convert(tensors)
