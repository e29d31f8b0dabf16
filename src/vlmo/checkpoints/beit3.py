"""BEiT-3's published layout (arXiv 2208.10442): the same backbone, with its own parameters for each modality."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from vlmo.checkpoints.layout import (
    USUAL_SIZES,
    Conversion,
    NameTable,
    count_blocks,
    join_projections,
    note_on_depth,
    one_number,
    shape_of,
    square_side,
)
from vlmo.model import VLMoConfig, VLMoForImageTextRetrieval, VLMoModel

_NUM_UNUSED_POSITIONS = 2  # in front of both position tables
_PADDING = 1  # number of the padding token
_MAX_TEXT_LENGTH = 64  # `--num_max_bpe_tokens` of the published fine-tuning commands
_IMAGE_POSITIONS = "beit3.encoder.embed_positions.A.weight"
_TEXT_POSITIONS = "beit3.encoder.embed_positions.B.weight"
_WORDS = "beit3.text_embed.weight"
_PATCHES = "beit3.vision_embed.proj.weight"
_FIRST_LAYER = "beit3.encoder.layers.0.ffn.A.fc1.weight"
_CONTRAST = {"vision_head.weight", "language_head.weight", "logit_scale"}
# Heads of pre-training, which VLMo does not share.
_UNUSED = re.compile(r"beit3\.vision_embed\.mask_token|(mlm_head|mim_head)\..+|.*num_batches_tracked")

_THEIRS, _OURS = "beit3.encoder.layers.{layer}.", "vlmo.blocks.{layer}."
NAMES = NameTable(
    (
        (_WORDS, "vlmo.text_embeddings.words.weight"),
        ("beit3.vision_embed.cls_token", "vlmo.image_embeddings.cls_token"),
        ("beit3.vision_embed.proj.{kind}", "vlmo.image_embeddings.projection.{kind}"),
        (_IMAGE_POSITIONS, "vlmo.image_embeddings.positions"),
        (_TEXT_POSITIONS, "vlmo.text_embeddings.positions"),
        ("beit3.encoder.layer_norm.{expert}.{kind}", "vlmo.norm.{expert}.{kind}"),
        ("vision_head.weight", "contrast_head.image_projection.weight"),
        ("language_head.weight", "contrast_head.text_projection.weight"),
        ("logit_scale", "contrast_head.logit_scale"),
        *(
            (_THEIRS + theirs, _OURS + ours)
            for theirs, ours in (
                ("self_attn_layer_norm.{expert}.{kind}", "norm1.{expert}.{kind}"),
                ("self_attn.inner_attn_ln.{expert}.{kind}", "attention.inner_norm.{expert}.{kind}"),
                ("self_attn.out_proj.{expert}.{kind}", "attention.projection.{expert}.{kind}"),
                ("self_attn.q_proj.{expert}.bias", "attention.qkv.{expert}.query_bias"),
                ("self_attn.k_proj.{expert}.bias", "attention.qkv.{expert}.key_bias"),
                ("self_attn.v_proj.{expert}.bias", "attention.qkv.{expert}.value_bias"),
                ("self_attn.{part}_proj.{expert}.weight", "attention.{part}.{expert}.weight"),
                ("final_layer_norm.{expert}.{kind}", "experts.{expert}.norm.{kind}"),
                ("ffn.{expert}.fc{number}.{kind}", "experts.{expert}.fc{number}.{kind}"),
                ("ffn.{expert}.ffn_layernorm.{kind}", "experts.{expert}.inner_norm.{kind}"),
            )
        ),
    ),
    experts={"A": "vision", "B": "language"},
)


def recognises(state_dict: Mapping[str, Tensor]) -> bool:
    """Return True for the keys of BEiT-3."""
    return {_IMAGE_POSITIONS, _WORDS} <= state_dict.keys()


def convert(state_dict: Mapping[str, Tensor], *, num_attention_heads: int | None = None) -> Conversion:
    """Convert BEiT-3 to a retrieval model where the file holds the contrast heads, to a backbone otherwise.

    Args:
        num_attention_heads: Needed only where the width is neither that of base nor that of large.

    Raises:
        ValueError: A tensor that tells the sizes is missing, or the sizes do not fit together.
    """
    if missing := {_IMAGE_POSITIONS, _TEXT_POSITIONS, _WORDS, _PATCHES, _FIRST_LAYER} - state_dict.keys():
        raise ValueError(
            f"this BEiT-3 has no {', '.join(sorted(missing))}; the file is incomplete or of another model."
        )
    contrast = bool(_CONTRAST & state_dict.keys())
    config = _config(state_dict, num_attention_heads=num_attention_heads)
    weights: dict[str, Tensor] = {}
    others: list[str] = []
    for key, tensor in state_dict.items():
        if (name := NAMES.ours(key)) is None:
            others.append(key)
        elif name.endswith(".positions"):
            weights[name] = tensor[_NUM_UNUSED_POSITIONS:]
        else:
            weights[name] = one_number(key, tensor) if key == "logit_scale" else tensor
    join_projections(weights)
    notes = ["BEiT-3 has no matching head and no pooler: it embeds images, texts and pairs, and scores no pair."]
    return Conversion(
        kind="BEiT-3, with contrast heads" if contrast else "BEiT-3, without a head",
        model_class=VLMoForImageTextRetrieval if contrast else VLMoModel,
        config=config,
        weights=weights,
        unused={key: state_dict[key] for key in others if _UNUSED.fullmatch(key)},
        unknown=[key for key in others if not _UNUSED.fullmatch(key)],
        max_text_length=min(_MAX_TEXT_LENGTH, config.max_text_positions),
        text="sentencepiece",
        notes=notes + note_on_depth("BEiT-3", config),
    )


def _config(state_dict: Mapping[str, Tensor], *, num_attention_heads: int | None) -> VLMoConfig:
    width, channels, patch_size, _ = shape_of(state_dict, _PATCHES, axes=4)
    usual, _ = USUAL_SIZES.get(width, (None, None))
    heads = num_attention_heads or usual
    if heads is None:
        raise ValueError(
            f"this BEiT-3 is {width} wide; base is 768 and large 1024. Its tensors do not tell the number of attention "
            "heads: give it (--num-attention-heads)."
        )
    patches = shape_of(state_dict, _IMAGE_POSITIONS, axes=2)[0] - _NUM_UNUSED_POSITIONS - 1
    if (side := square_side(patches)) is None:
        raise ValueError(f"{_IMAGE_POSITIONS} has {patches} patches, which is not of a square image; VLMo needs one.")
    texts = shape_of(state_dict, _TEXT_POSITIONS, axes=2)[0] - _NUM_UNUSED_POSITIONS
    words = shape_of(state_dict, _WORDS, axes=2)[0]
    if texts < 1 or words <= _PADDING:
        raise ValueError(
            f"this BEiT-3 has {texts} text positions and {words} words; expected at least 1 and {_PADDING + 1}."
        )
    layers = (int(match[1]) for key in state_dict if (match := re.match(r"beit3\.encoder\.layers\.(\d+)\.", key)))
    projection = width
    if "vision_head.weight" in state_dict:
        projection = shape_of(state_dict, "vision_head.weight", axes=2)[0]
    return VLMoConfig.beit3_base(
        hidden_size=width,
        num_hidden_layers=count_blocks(layers),
        num_attention_heads=heads,
        intermediate_size=shape_of(state_dict, _FIRST_LAYER, axes=2)[0],
        image_size=patch_size * side,
        patch_size=patch_size,
        num_channels=channels,
        vocab_size=words,
        max_text_positions=texts,
        projection_size=projection,
    )
