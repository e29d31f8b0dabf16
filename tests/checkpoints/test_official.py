"""The published layout: what tensors tell about sizes and task."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from tests.parity.plain_vlmo import BASE, BASE_PLUS, LARGE, Sizes, checkpoint_shapes
from torch import Tensor

from vlmo.checkpoints import official
from vlmo.model import (
    VLMoConfig,
    VLMoForImageTextRetrieval,
    VLMoForMaskedLM,
    VLMoForPreTraining,
    VLMoForVisualQuestionAnswering,
    VLMoForVisualReasoning,
    VLMoModel,
)

STAGE_3 = ("pooler", "itc", "itc_vl", "itm", "mlm")


def on_meta(sizes: Sizes, *heads: str, classes: int = 2) -> dict[str, Tensor]:
    """A checkpoint that has shapes only."""
    shapes = checkpoint_shapes(sizes, *heads, classes=classes)
    return {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}


@pytest.mark.parametrize(
    ("sizes", "preset", "image_size"),
    [
        (BASE, VLMoConfig.base, 224),
        (BASE, VLMoConfig.base, 384),
        (BASE, VLMoConfig.base, 480),
        (BASE_PLUS, VLMoConfig.base_plus, 224),
        (LARGE, VLMoConfig.large, 224),
        (LARGE, VLMoConfig.large, 384),
    ],
)
def test_published_sizes_are_our_presets(sizes, preset, image_size):
    conversion = official.convert(
        on_meta(dataclasses.replace(sizes, grid=image_size // 16), *STAGE_3)
    )
    changes = {} if sizes.relative else {"max_text_positions": 40}
    assert conversion.config.to_dict() == preset(image_size=image_size, **changes).to_dict()
    assert conversion.model_class is VLMoForPreTraining
    assert conversion.tensors.unknown == []
    with torch.device("meta"):
        needed = {
            name: tensor.shape
            for name, tensor in VLMoForPreTraining(conversion.config).state_dict().items()
        }
    assert {name: tensor.shape for name, tensor in conversion.weights.items()} == needed


@pytest.mark.parametrize(
    ("heads", "model_class", "expected"),
    [
        (STAGE_3, VLMoForPreTraining, {"contrast_fusion_branch": True, "use_match_head": True}),
        (("pooler", "itc", "itm", "mlm"), VLMoForPreTraining, {"contrast_fusion_branch": False}),
        (
            ("pooler", "itc"),
            VLMoForImageTextRetrieval,
            {"use_match_head": False, "use_pooler": True},
        ),
        (("pooler", "itc", "itm"), VLMoForImageTextRetrieval, {"use_match_head": True}),
        (("itc",), VLMoForImageTextRetrieval, {"use_match_head": False, "use_pooler": False}),
        (("pooler", "vqa"), VLMoForVisualQuestionAnswering, {"num_labels": 7, "use_pooler": True}),
        (("pooler",), VLMoModel, {"use_pooler": True, "use_match_head": False}),
        ((), VLMoModel, {"use_pooler": False}),
        (("pooler", "nlvr2"), VLMoForVisualReasoning, {"use_pooler": True}),
    ],
)
def test_heads_tell_the_task(heads, model_class, expected):
    conversion = official.convert(on_meta(BASE, *heads, classes=7))
    assert conversion.model_class is model_class
    assert {
        name: vars(conversion.config).get(name, conversion.config.num_labels) for name in expected
    } == expected
    assert conversion.tensors.unknown == []


def test_stage_2_has_no_fusion_experts_and_its_pooler_has_no_use():
    sizes = Sizes(relative=True, fusion_layers=0, text_rows=196)
    conversion = official.convert(on_meta(sizes, "pooler", "mlm"))
    assert conversion.model_class is VLMoForMaskedLM
    assert conversion.config.num_fusion_layers == 0
    assert conversion.max_text_length == 196
    assert set(conversion.tensors.unused) == {
        "pooler.dense.weight",
        "pooler.dense.bias",
        "text_embeddings.position_embeddings.weight",
    }


# What is left when the top blocks are lost.
NINE, TEN = (dataclasses.replace(BASE, layers=layers, fusion_layers=0) for layers in (9, 10))


@pytest.mark.parametrize(
    ("sizes", "changes", "arguments", "message"),
    [
        (BASE, {"relative_position_bias_table": (1125, 144)}, {}, "1125 rows"),
        (BASE, {"relative_position_bias_table": (401, 144)}, {}, "401 rows"),
        (BASE, {"relative_position_bias_table": (3, 144)}, {}, "3 rows"),
        (
            BASE,
            {"relative_position_bias_table": (1126, 145)},
            {},
            "145 columns, which do not fit 12 layers",
        ),
        (
            BASE,
            {},
            {"num_attention_heads": 16},
            "144 columns, which do not fit 12 layers of 16 heads",
        ),
        (
            NINE,
            {"relative_position_bias_table": (1126, 144)},
            {},
            "144 columns, which do not fit 9 layers of 12 heads",
        ),
        (
            TEN,
            {"relative_position_bias_table": (1126, 144)},
            {},
            "144 columns, which do not fit 10 layers of 12 heads",
        ),
        (BASE, {"relative_position_bias_table": None}, {}, "neither"),
        (BASE, {"text_embeddings.position_embeddings.weight": ()}, {}, "expected 2 axes"),
        (BASE_PLUS, {"transformer.pos_embed": (2, 197, 544)}, {}, "pos_embed has shape"),
        (BASE_PLUS, {"transformer.pos_embed": (1, 200, 544)}, {}, "200 rows"),
        (Sizes(), {}, {}, "--num-attention-heads"),
        (
            BASE,
            {"transformer.patch_embed.proj.weight": None},
            {},
            r"patch_embed\.proj\.weight is not there",
        ),
        (BASE, {"transformer.patch_embed.proj.weight": (768, 3, 16)}, {}, "expected 4 axes"),
        (
            BASE,
            {"text_embeddings.word_embeddings.weight": None},
            {},
            r"word_embeddings\.weight is not there",
        ),
        (BASE, {"transformer.blocks.13.norm1.weight": (768,)}, {}, "without gaps"),
        (BASE, {"transformer.blocks.3.mlp_vl.fc1.weight": (3072, 768)}, {}, "the top ones"),
    ],
)
def test_sizes_that_do_not_fit_are_refused_by_name(sizes, changes, arguments, message):
    state = on_meta(sizes, "pooler", "itc")
    for key, shape in changes.items():
        if shape is None:
            del state[key]
        else:
            state[key] = torch.empty(shape, device="meta")
    with pytest.raises(ValueError, match=message):
        official.convert(state, **arguments)


def test_number_of_heads_may_be_given():
    state = on_meta(dataclasses.replace(NINE, heads=16), "pooler", "itc")
    assert official.convert(state, num_attention_heads=16).config.num_attention_heads == 16


def test_recognizes_its_own_names_only():
    assert official.recognizes(on_meta(BASE))
    assert official.recognizes(on_meta(BASE_PLUS))
    assert not official.recognizes({"transformer.resblocks.0.mlp.fc1.weight": torch.empty(1)})
    assert not official.recognizes(
        {"blocks.0.mlp.fc1.weight": torch.empty(1), "cls_token": torch.empty(1)}
    )
