"""The layout of the published VLMo checkpoints, key by key."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

# Published name (a pattern) -> ours. `index` buffers are rebuilt, never read.
_PATTERNS: tuple[tuple[str, str], ...] = (
    (r"transformer\.cls_token", "vlmo.image_embeddings.cls_token"),
    (r"transformer\.patch_embed\.proj\.(weight|bias)", r"vlmo.image_embeddings.projection.\1"),
    (r"transformer\.pos_embed", "vlmo.image_embeddings.positions"),
    (r"transformer\.norm\.(weight|bias)", r"vlmo.norm.\1"),
    (r"transformer\.blocks\.(\d+)\.norm1\.(weight|bias)", r"vlmo.blocks.\1.norm1.shared.\2"),
    (r"transformer\.blocks\.(\d+)\.attn\.qkv\.weight", r"vlmo.blocks.\1.attention.qkv.shared.weight"),
    (r"transformer\.blocks\.(\d+)\.attn\.q_bias", r"vlmo.blocks.\1.attention.qkv.shared.query_bias"),
    (r"transformer\.blocks\.(\d+)\.attn\.v_bias", r"vlmo.blocks.\1.attention.qkv.shared.value_bias"),
    (r"transformer\.blocks\.(\d+)\.attn\.proj\.(weight|bias)", r"vlmo.blocks.\1.attention.projection.shared.\2"),
    (r"transformer\.blocks\.(\d+)\.gamma_([12])", r"vlmo.blocks.\1.gamma_\2"),
    (r"transformer\.blocks\.(\d+)\.norm2_(imag|text|vl)\.(weight|bias)", r"vlmo.blocks.\1.experts.\2.norm.\3"),
    (
        r"transformer\.blocks\.(\d+)\.mlp_(imag|text|vl)\.fc([12])\.(weight|bias)",
        r"vlmo.blocks.\1.experts.\2.fc\3.\4",
    ),
    (r"relative_position_bias_table", "vlmo.position_bias.table"),
    (r"text_embeddings\.word_embeddings\.weight", "vlmo.text_embeddings.words.weight"),
    (r"text_embeddings\.token_type_embeddings\.weight", "vlmo.text_embeddings.segments.weight"),
    (r"text_embeddings\.position_embeddings\.weight", "vlmo.text_embeddings.positions"),
    (r"text_embeddings\.LayerNorm\.(weight|bias)", r"vlmo.text_embeddings.norm.\1"),
    (r"token_type_embeddings\.weight", "vlmo.modality_types.weight"),
    (r"pooler\.dense\.(weight|bias)", r"vlmo.pooler.dense.\1"),
    (r"itc_(image|text)_proj\.fc\.weight", r"contrast_head.\1_projection.weight"),
    (r"itc_vl_(image|text)_proj\.fc\.weight", r"fusion_contrast_head.\1_projection.weight"),
    (r"logit_scale", "contrast_head.logit_scale"),
    (r"logit_vl_scale", "fusion_contrast_head.logit_scale"),
    (r"itm_score\.fc\.(weight|bias)", r"match_head.classifier.\1"),
    (r"mlm_score\.transform\.dense\.(weight|bias)", r"mlm_head.dense.\1"),
    (r"mlm_score\.transform\.LayerNorm\.(weight|bias)", r"mlm_head.norm.\1"),
    (r"mlm_score\.decoder\.weight", "mlm_head.decoder.weight"),
    (r"mlm_score\.bias", "mlm_head.decoder.bias"),
)
_EXPERTS = {"imag": "vision", "text": "language", "vl": "vision_language"}


def from_published(state_dict: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Weights under our names, and the published keys that have no place here.

    With a relative position table the absolute text positions in the file were never used; they are among the latter,
    as are index buffers.
    """
    relative = "relative_position_bias_table" in state_dict
    converted: dict[str, Tensor] = {}
    unused: list[str] = []
    for key, tensor in state_dict.items():
        name = _our_name(key)
        if name is None or (relative and name == "vlmo.text_embeddings.positions"):
            unused.append(key)
        elif name.endswith("logit_scale"):
            converted[name] = tensor.reshape(1)
        elif name == "vlmo.image_embeddings.positions":
            converted[name] = tensor[0]
        else:
            converted[name] = tensor
    return converted, unused


def _our_name(key: str) -> str | None:
    for pattern, replacement in _PATTERNS:
        if match := re.fullmatch(pattern, key):
            name = match.expand(replacement)
            for published, ours in _EXPERTS.items():
                name = name.replace(f".experts.{published}.", f".experts.{ours}.")
            return name
    return None
