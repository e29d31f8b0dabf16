"""BEiT's weights, under the keys of each of its layouts, give what transformers' Beit models give."""

from __future__ import annotations

import re

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import (
    BeitConfig,
    BeitForImageClassification,
    BeitForMaskedImageModeling,
    BeitModel,
    Data2VecVisionConfig,
    Data2VecVisionForImageClassification,
    ViTConfig,
    ViTModel,
)

from vlmo.checkpoints import beit
from vlmo.checkpoints.layout import Conversion
from vlmo.model import VLMoConfig, VLMoForImageClassification, VLMoForMaskedImageModeling

ATOL = 1e-5  # float32, two implementations that sum in different orders
PATCH, GRID, DEPTH, HEADS, WIDTH = 8, 5, 3, 4, 32
KEY_STYLES = ["published", "file", "memory"]
OLD_NAMES = {
    "attention.q_proj.bias": "attn.q_bias",
    "attention.v_proj.bias": "attn.v_bias",
    "attention.o_proj": "attn.proj",
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
    "lambda_1": "gamma_1",
    "lambda_2": "gamma_2",
    "relative_position_bias.relative_position_bias_table": "attn.relative_position_bias_table",
}


def beit_config(**changes) -> BeitConfig:
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
    return BeitConfig(**settings | changes)


def with_random_weights(model):
    """Everything nonzero, LayerScale and position tables too, so that nothing can be dropped unseen."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            scale = 1.0 if "table" in name or "token" in name else 0.3
            parameter.copy_(torch.randn_like(parameter) * scale)
    return model.eval()


def published_keys(model) -> dict[str, Tensor]:
    """The weights of a Beit model under the keys of the original files (written down here a second time)."""
    weights = {key.removeprefix("beit."): tensor for key, tensor in model.state_dict().items()}
    renamed: dict[str, Tensor] = {}
    for key, tensor in weights.items():
        if match := re.fullmatch(r"layers\.(\d+)\.(.+)", key):
            if re.search(r"[qkv]_proj\.weight", key):
                continue
            rest = match[2]
            for theirs, original in OLD_NAMES.items():
                rest = rest.replace(theirs, original)
            renamed[f"blocks.{match[1]}.{rest}"] = tensor
        else:
            key = key.replace("embeddings.patch_embeddings.projection", "patch_embed.proj")
            key = key.replace("embeddings.position_embeddings", "pos_embed").replace("embeddings.", "")
            key = key.replace("shared_position_bias", "rel_pos_bias").replace("classifier", "head")
            renamed[key.replace("pooler.layernorm", "fc_norm").replace("layernorm", "norm")] = tensor
    for layer in range(DEPTH):
        parts = [weights[f"layers.{layer}.attention.{part}_proj.weight"] for part in "qkv"]
        renamed[f"blocks.{layer}.attn.qkv.weight"] = torch.cat(parts)
    return renamed


def converted(model, *, style: str, folder) -> Conversion:
    if style == "published":
        return beit.convert(published_keys(model))
    if style == "memory":
        return beit.convert(model.state_dict(), config=model.config.to_dict())
    model.save_pretrained(folder)
    return beit.convert(load_file(folder / "model.safetensors"), config=model.config.to_dict())


def load(conversion: Conversion):
    """The model, after a check that what the conversion holds and what it says starts anew is everything."""
    assert conversion.unknown == []
    model = conversion.model_class(conversion.config).eval()
    missing, unexpected = model.load_state_dict(conversion.weights, strict=False)
    assert unexpected == []
    anew = [name for name in missing if any(re.match(pattern, name) for pattern in conversion.created)]
    assert missing == anew
    for pattern in conversion.created:
        assert any(re.match(pattern, name) for name in missing), pattern
    return model


def pictures() -> Tensor:
    return torch.randn(2, 3, PATCH * GRID, PATCH * GRID)


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, atol=ATOL, rtol=0)


@pytest.mark.parametrize("style", KEY_STYLES)
@pytest.mark.parametrize("shared", [False, True], ids=["own_tables", "shared_table"])
@torch.no_grad()
def test_masked_image_modelling_gives_the_same_logits_and_states(tmp_path, style, shared):
    config = beit_config(use_relative_position_bias=not shared, use_shared_relative_position_bias=shared)
    theirs = with_random_weights(BeitForMaskedImageModeling(config))
    conversion = converted(theirs, style=style, folder=tmp_path)
    ours = load(conversion)
    assert conversion.model_class is VLMoForMaskedImageModeling
    assert conversion.unused == {}
    pixels, masked = pictures(), torch.rand(2, GRID * GRID) < 0.4
    close(ours(pixels, bool_masked_pos=masked).reconstruction, theirs(pixels, bool_masked_pos=masked).logits)
    states = ours.vlmo(pixel_values=pixels, output_hidden_states=True)
    theirs_states = theirs.beit(pixels).last_hidden_state
    close(states.hidden_states[-1], theirs_states)  # its mean pooling leaves the norm out
    close(states.last_hidden_state, theirs.layernorm(theirs_states))


@pytest.mark.parametrize("style", KEY_STYLES)
@pytest.mark.parametrize("shared", [False, True], ids=["own_tables", "shared_table"])
@torch.no_grad()
def test_image_classification_gives_the_same_logits(tmp_path, style, shared):
    config = beit_config(
        use_relative_position_bias=not shared,
        use_shared_relative_position_bias=shared,
        use_mask_token=False,
        num_labels=7,
    )
    theirs = with_random_weights(BeitForImageClassification(config))
    conversion = converted(theirs, style=style, folder=tmp_path)
    ours = load(conversion)
    assert conversion.model_class is VLMoForImageClassification
    pixels = pictures()
    close(ours(pixels).logits, theirs(pixels).logits)
    assert any("identity" in note for note in conversion.notes)
    close(ours.vlmo.norm.weight, torch.ones(WIDTH))


@pytest.mark.parametrize("style", KEY_STYLES)
@pytest.mark.parametrize("mean_pooled", [False, True])
@torch.no_grad()
def test_backbone_alone_gives_the_same_states(tmp_path, style, mean_pooled):
    theirs = with_random_weights(BeitModel(beit_config(use_mean_pooling=mean_pooled)))
    conversion = converted(theirs, style=style, folder=tmp_path)
    output = load(conversion).vlmo(pixel_values=(pixels := pictures()), output_hidden_states=True)
    close(output.hidden_states[-1] if mean_pooled else output.last_hidden_state, theirs(pixels).last_hidden_state)
    assert len(conversion.unused) == 2 * mean_pooled  # the norm of a classifier that is not there


@pytest.mark.parametrize("style", KEY_STYLES)
@torch.no_grad()
def test_absolute_positions_give_the_same_logits(tmp_path, style):
    changes = {"use_relative_position_bias": False, "use_absolute_position_embeddings": True}
    theirs = with_random_weights(BeitForMaskedImageModeling(beit_config(**changes)))
    heads = {"num_attention_heads": HEADS} if style == "published" else {"config": theirs.config.to_dict()}
    weights = published_keys(theirs) if style == "published" else theirs.state_dict()
    if style == "file":
        theirs.save_pretrained(tmp_path)
        weights = load_file(tmp_path / "model.safetensors")
    conversion = beit.convert(weights, **heads)
    assert conversion.config.position_embedding == "absolute"
    close(load(conversion)(pixels := pictures()).reconstruction, theirs(pixels).logits)


@torch.no_grad()
def test_no_positions_and_no_layer_scale_give_the_same_logits():
    config = beit_config(use_relative_position_bias=False, layer_scale_init_value=0.0)
    theirs = with_random_weights(BeitForMaskedImageModeling(config))
    conversion = beit.convert(theirs.state_dict(), config=config.to_dict())
    assert conversion.config.layer_scale_init is None
    close(load(conversion)(pixels := pictures()).reconstruction, theirs(pixels).logits)


@pytest.mark.parametrize(("depth", "width", "preset"), [(12, 768, VLMoConfig.base), (24, 1024, VLMoConfig.large)])
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
        if not any(re.match(pattern, name) for pattern in conversion.created)
    }


def released_shapes(*, depth: int, width: int, heads: int, classes: int) -> dict[str, Tensor]:
    """Empty tensors of the released files: pre-trained with a shared table, or fine-tuned with a table each."""
    shapes: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, width),
        "patch_embed.proj.weight": (width, 3, 16, 16),
        "patch_embed.proj.bias": (width,),
    }
    for layer in range(depth):
        block = f"blocks.{layer}"
        shapes[f"{block}.attn.qkv.weight"] = (3 * width, width)
        shapes[f"{block}.attn.proj.weight"] = (width, width)
        shapes[f"{block}.mlp.fc1.weight"], shapes[f"{block}.mlp.fc1.bias"] = (4 * width, width), (4 * width,)
        shapes[f"{block}.mlp.fc2.weight"] = (width, 4 * width)
        vectors = ["gamma_1", "gamma_2", "attn.q_bias", "attn.v_bias", "attn.proj.bias", "mlp.fc2.bias"]
        vectors += [f"norm{number}.{kind}" for number in (1, 2) for kind in ("weight", "bias")]
        shapes |= {f"{block}.{name}": (width,) for name in vectors}
        if classes:
            shapes[f"{block}.attn.relative_position_bias_table"] = (732, heads)
            shapes[f"{block}.attn.relative_position_index"] = (197, 197)
    if classes:
        shapes |= {"fc_norm.weight": (width,), "fc_norm.bias": (width,)}
        shapes |= {"head.weight": (classes, width), "head.bias": (classes,)}
    else:
        shapes |= {"norm.weight": (width,), "norm.bias": (width,), "mask_token": (1, 1, width)}
        shapes |= {"lm_head.weight": (8192, width), "lm_head.bias": (8192,)}
        shapes |= {
            "rel_pos_bias.relative_position_bias_table": (732, heads),
            "rel_pos_bias.relative_position_index": (),
        }
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


def test_label_names_and_norm_constant_come_from_the_folder():
    config = beit_config(id2label={0: "cat", 1: "dog"}, layer_norm_eps=1e-12)
    theirs = with_random_weights(BeitForImageClassification(config))
    ours = beit.convert(theirs.state_dict(), config=config.to_dict()).config
    assert ours.id2label == {0: "cat", 1: "dog"}
    assert ours.label2id == {"cat": 0, "dog": 1}
    assert ours.layer_norm_eps == 1e-12
    assert beit.convert(theirs.state_dict()).config.layer_norm_eps == 1e-12  # their default


@torch.no_grad()
def test_data2vec_gives_the_same_logits(tmp_path):
    config = Data2VecVisionConfig(
        **beit_config(num_labels=7, use_mask_token=False).to_diff_dict() | {"model_type": None}
    )
    theirs = with_random_weights(Data2VecVisionForImageClassification(config))
    theirs.save_pretrained(tmp_path)
    conversion = beit.convert(load_file(tmp_path / "model.safetensors"), config=theirs.config.to_dict())
    assert conversion.kind == "Data2Vec of Hugging Face, fine-tuned on 7 classes"
    close(load(conversion)(pixels := pictures()).logits, theirs(pixels).logits)


def test_layers_in_which_beit_2_trains_its_class_token_are_dropped_and_reported():
    theirs = with_random_weights(BeitForMaskedImageModeling(beit_config()))
    weights = published_keys(theirs)
    extra = {key.replace("blocks.", "cls_pt_layers."): tensor for key, tensor in weights.items() if "blocks." in key}
    conversion = beit.convert(weights | extra | {"cls_pt_lm_head.weight": torch.zeros(23, WIDTH)})
    assert conversion.unused.keys() == {*extra, "cls_pt_lm_head.weight"}
    assert conversion.config.num_hidden_layers == DEPTH
    close(load(conversion)(pixels := pictures()).reconstruction, theirs(pixels).logits)


def test_leftovers_are_unused_and_strangers_unknown():
    theirs = with_random_weights(BeitForImageClassification(beit_config(num_labels=7)))
    weights = published_keys(theirs)
    weights["blocks.0.attn.relative_position_index"] = torch.zeros(26, 26)
    weights["decode_head.weight"] = torch.zeros(3)
    conversion = beit.convert(weights)
    assert sorted(conversion.unused) == ["blocks.0.attn.relative_position_index", "mask_token"]
    assert conversion.unknown == ["decode_head.weight"]
    theirs_keys = beit.convert(theirs.state_dict() | {"fpn1.0.weight": torch.zeros(3)})
    assert sorted(theirs_keys.unused) == ["beit.embeddings.mask_token"]
    assert theirs_keys.unknown == ["fpn1.0.weight"]


def test_classifier_that_reads_the_class_token_is_left_out():
    theirs = with_random_weights(BeitForImageClassification(beit_config(use_mean_pooling=False, num_labels=7)))
    conversion = beit.convert(theirs.state_dict(), config=theirs.config.to_dict())
    load(conversion)
    assert conversion.model_class is VLMoForMaskedImageModeling
    assert sorted(conversion.unused) == ["classifier.bias", "classifier.weight"]
    assert any("[I_CLS]" in note for note in conversion.notes)


def test_recognises_beit_and_nothing_else():
    theirs = with_random_weights(BeitForMaskedImageModeling(beit_config()))
    assert beit.is_published(published_keys(theirs))
    assert beit.is_hugging_face(theirs.state_dict())
    assert beit.is_hugging_face(theirs.beit.state_dict())
    vit = ViTModel(ViTConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32))
    others = [vit.state_dict(), {f"transformer.{key}": tensor for key, tensor in published_keys(theirs).items()}]
    timm_style = published_keys(theirs) | {"blocks.0.attn.qkv.bias": torch.zeros(96)}
    others.append({key: tensor for key, tensor in timm_style.items() if not key.endswith("q_bias")})
    assert not any(beit.is_published(keys) or beit.is_hugging_face(keys) for keys in others)


def broken(what: str) -> tuple[dict[str, Tensor], dict]:
    """Weights that must be refused, and arguments for the conversion."""
    model = with_random_weights(BeitForMaskedImageModeling(beit_config()))
    weights = published_keys(model)
    table = "blocks.{}.attn.relative_position_bias_table"
    if what == "both positions":
        weights["pos_embed"] = torch.zeros(1, 26, WIDTH)
    elif what == "a table missing":
        del weights[table.format(1)]
    elif what == "not square":
        weights |= {table.format(layer): torch.zeros(9 * 11 + 3, HEADS) for layer in range(DEPTH)}
    elif what == "no patches":
        del weights["patch_embed.proj.weight"]
    elif what == "other heads":
        return weights, {"num_attention_heads": HEADS + 1}
    elif what == "no heads":
        weights = {key: tensor for key, tensor in weights.items() if "table" not in key}
        weights["pos_embed"] = torch.zeros(1, 26, WIDTH)
    elif what == "two norms":
        return with_random_weights(BeitForMaskedImageModeling(beit_config(use_mean_pooling=False))).state_dict(), {}
    elif what == "another type":
        return model.state_dict(), {"config": {"model_type": "swin"}}
    elif what == "another activation":
        return model.state_dict(), {"config": {"model_type": "beit", "hidden_act": "relu"}}
    return weights, {}


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("both positions", "absolute positions"),
        ("a table missing", "2 of 3 blocks"),
        ("not square", "102 rows"),
        ("no patches", r"patch_embed\.proj\.weight"),
        ("other heads", "12 columns, which do not fit 3 layers of 5 heads"),
        ("no heads", "no tensor tells the attention heads"),
        ("two norms", "norms twice"),
        ("another type", "swin"),
        ("another activation", "relu"),
    ],
)
def test_what_cannot_be_converted_is_refused_by_name(what, message):
    weights, arguments = broken(what)
    with pytest.raises(ValueError, match=message):
        beit.convert(weights, **arguments)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_hidden_layers": 4}, "num_hidden_layers 4, the weights 3"),
        ({"hidden_size": 64}, "hidden_size 64, the weights 32"),
        ({"intermediate_size": 49}, "intermediate_size 49, the weights 48"),
        ({"image_size": 224}, "image_size 224, the weights 40"),
        ({"image_size": [40, 48]}, r"image_size \[40, 48\], the weights 40"),
        ({"patch_size": 4}, "patch_size 4, the weights 8"),
        ({"num_attention_heads": 2}, "12 columns, which do not fit 3 layers of 2 heads"),
        ({"num_attention_heads": "x"}, "num_attention_heads.*'x'"),
        ({"vocab_size": True}, "vocab_size.*True"),
        ({"layer_norm_eps": "x"}, "layer_norm_eps.*'x'"),
        ({"layer_norm_eps": None}, "layer_norm_eps.*None"),
        ({"layer_scale_init_value": [1]}, "layer_scale_init_value"),
        ({"model_type": None}, "type None"),
        ({"id2label": ["a"]}, "cannot be read"),
        ({"id2label": {"a": "b"}}, "cannot be read"),
        ({"id2label": {"0": "x"}}, "does not name the 7 classes"),
        ({"id2label": {str(number + 1): "x" for number in range(7)}}, "does not name the 7 classes"),
    ],
)
def test_configuration_that_does_not_fit_the_weights_is_refused(changes, message):
    theirs = with_random_weights(BeitForImageClassification(beit_config(num_labels=7)))
    with pytest.raises(ValueError, match=message):
        beit.convert(theirs.state_dict(), config=theirs.config.to_dict() | changes)


def test_lost_blocks_of_a_published_width_are_said():
    for depth, said in ((11, True), (12, False)):
        tensors = released_shapes(depth=depth, width=768, heads=12, classes=3)
        assert any("is it whole" in note for note in beit.convert(tensors).notes) == said
    tensors = released_shapes(depth=12, width=768, heads=16, classes=3)
    with pytest.raises(ValueError, match=r"so 16 heads; .* have 12"):
        beit.convert(tensors)
