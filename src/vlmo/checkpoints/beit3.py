"""BEiT-3's published layout (arXiv 2208.10442): the same backbone, with a branch for each modality."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from vlmo.checkpoints.conversion import Conversion
from vlmo.checkpoints.shapes import count_blocks, joined, one_number, shape_of, square_side
from vlmo.model import VLMoConfig, VLMoForImageTextRetrieval, VLMoModel

_NUM_UNUSED_POSITIONS = 2  # in front of both position tables
_PADDING = 1  # number of the padding token
_NUM_HEADS = {768: 12, 1024: 16}  # base and large; no tensor tells
_DEPTHS = {768: 12, 1024: 24}
_MAX_TEXT_LENGTH = 64  # `--num_max_bpe_tokens` of the published fine-tuning commands
_IMAGE_POSITIONS = "beit3.encoder.embed_positions.A.weight"
_TEXT_POSITIONS = "beit3.encoder.embed_positions.B.weight"
_WORDS = "beit3.text_embed.weight"
_PATCHES = "beit3.vision_embed.proj.weight"
_FIRST_LAYER = "beit3.encoder.layers.0.ffn.A.fc1.weight"
_BRANCHES = {"A": "vision", "B": "language"}
_CONTRAST = {"vision_head.weight", "language_head.weight", "logit_scale"}
# Heads of pre-training, which VLMo does not share.
_UNUSED = re.compile(r"beit3\.vision_embed\.mask_token|(mlm_head|mim_head)\..+|.*num_batches_tracked")

# Published name (a pattern) -> ours. Where a branch is named, the replacement holds `A` or `B` between two points.
_PATTERNS: tuple[tuple[str, str], ...] = (
    (r"beit3\.text_embed\.weight", "vlmo.text_embeddings.words.weight"),
    (r"beit3\.vision_embed\.cls_token", "vlmo.image_embeddings.cls_token"),
    (r"beit3\.vision_embed\.proj\.(weight|bias)", r"vlmo.image_embeddings.projection.\1"),
    (re.escape(_IMAGE_POSITIONS), "vlmo.image_embeddings.positions"),
    (re.escape(_TEXT_POSITIONS), "vlmo.text_embeddings.positions"),
    (r"beit3\.encoder\.layer_norm\.([AB])\.(weight|bias)", r"vlmo.norm.\1.\2"),
    (
        r"beit3\.encoder\.layers\.(\d+)\.self_attn_layer_norm\.([AB])\.(weight|bias)",
        r"vlmo.blocks.\1.norm1.\2.\3",
    ),
    (
        r"beit3\.encoder\.layers\.(\d+)\.self_attn\.inner_attn_ln\.([AB])\.(weight|bias)",
        r"vlmo.blocks.\1.attention.inner_norm.\2.\3",
    ),
    (
        r"beit3\.encoder\.layers\.(\d+)\.self_attn\.out_proj\.([AB])\.(weight|bias)",
        r"vlmo.blocks.\1.attention.projection.\2.\3",
    ),
    (
        r"beit3\.encoder\.layers\.(\d+)\.self_attn\.q_proj\.([AB])\.bias",
        r"vlmo.blocks.\1.attention.qkv.\2.query_bias",
    ),
    (r"beit3\.encoder\.layers\.(\d+)\.self_attn\.k_proj\.([AB])\.bias", r"vlmo.blocks.\1.attention.qkv.\2.key_bias"),
    (
        r"beit3\.encoder\.layers\.(\d+)\.self_attn\.v_proj\.([AB])\.bias",
        r"vlmo.blocks.\1.attention.qkv.\2.value_bias",
    ),
    # Joined by `_join_projections`.
    (
        r"beit3\.encoder\.layers\.(\d+)\.self_attn\.([qkv])_proj\.([AB])\.weight",
        r"vlmo.blocks.\1.attention.\2.\3.weight",
    ),
    (r"beit3\.encoder\.layers\.(\d+)\.final_layer_norm\.([AB])\.(weight|bias)", r"vlmo.blocks.\1.experts.\2.norm.\3"),
    (r"beit3\.encoder\.layers\.(\d+)\.ffn\.([AB])\.fc([12])\.(weight|bias)", r"vlmo.blocks.\1.experts.\2.fc\3.\4"),
    (
        r"beit3\.encoder\.layers\.(\d+)\.ffn\.([AB])\.ffn_layernorm\.(weight|bias)",
        r"vlmo.blocks.\1.experts.\2.inner_norm.\3",
    ),
    (r"vision_head\.weight", "contrast_head.image_projection.weight"),
    (r"language_head\.weight", "contrast_head.text_projection.weight"),
    (r"logit_scale", "contrast_head.logit_scale"),
)


def recognises(state_dict: Mapping[str, Tensor]) -> bool:
    """Whether these are the keys of BEiT-3."""
    return {_IMAGE_POSITIONS, _WORDS} <= state_dict.keys()


def convert(state_dict: Mapping[str, Tensor], *, num_attention_heads: int | None = None) -> Conversion:
    """BEiT-3 as a retrieval model where the file holds the contrast heads, as a backbone otherwise.

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
        if (name := _our_name(key)) is None:
            others.append(key)
        else:
            weights[name] = _reshaped(name, tensor)
    _join_projections(weights)
    notes = ["BEiT-3 has no matching head and no pooler: it embeds images, texts and pairs, and judges no pair."]
    usual = _DEPTHS.get(config.hidden_size, config.num_hidden_layers)
    if config.num_hidden_layers != usual:
        notes.append(f"The BEiT-3 of this width has {usual} blocks, this file {config.num_hidden_layers}: is it whole?")
    unused = {key: state_dict[key] for key in others if _UNUSED.fullmatch(key)}
    return Conversion(
        kind="BEiT-3, with contrast heads" if contrast else "BEiT-3, without a head",
        model_class=VLMoForImageTextRetrieval if contrast else VLMoModel,
        config=config,
        weights=weights,
        unused=unused,
        unknown=[key for key in others if key not in unused],
        max_text_length=min(_MAX_TEXT_LENGTH, config.max_text_positions),
        text="sentencepiece",
        notes=notes,
    )


def _config(state_dict: Mapping[str, Tensor], *, num_attention_heads: int | None) -> VLMoConfig:
    width, channels, patch_size, _ = shape_of(state_dict, _PATCHES, axes=4)
    heads = num_attention_heads or _NUM_HEADS.get(width)
    if heads is None:
        raise ValueError(
            f"this BEiT-3 is {width} wide; base is 768 and large 1024. Its tensors do not tell the number of attention "
            "heads: give it (--num-attention-heads)."
        )
    patches = shape_of(state_dict, _IMAGE_POSITIONS, axes=2)[0] - _NUM_UNUSED_POSITIONS - 1
    if (side := square_side(patches)) is None:
        raise ValueError(f"{_IMAGE_POSITIONS} has {patches} patches, which is not of a square picture; VLMo needs one.")
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


def _our_name(key: str) -> str | None:
    for pattern, replacement in _PATTERNS:
        if match := re.fullmatch(pattern, key):
            name = match.expand(replacement)
            for branch, modality in _BRANCHES.items():
                name = name.replace(f".{branch}.", f".{modality}.")
            return name
    return None


def _reshaped(name: str, tensor: Tensor) -> Tensor:
    if name.endswith(".positions"):
        return tensor[_NUM_UNUSED_POSITIONS:]
    return one_number("logit_scale", tensor) if name == "contrast_head.logit_scale" else tensor


def _join_projections(weights: dict[str, Tensor]) -> None:
    """Queries, keys and values of each branch into one matrix, in place."""
    names = [name for name in weights if re.fullmatch(r"vlmo\.blocks\.\d+\.attention\.q\.\w+\.weight", name)]
    for name in names:
        parts = [name.replace(".attention.q.", f".attention.{part}.") for part in "qkv"]
        if all(part in weights for part in parts):
            matrices = {part: weights.pop(part) for part in parts}
            weights[name.replace(".attention.q.", ".attention.qkv.")] = joined(matrices, axis=0)
