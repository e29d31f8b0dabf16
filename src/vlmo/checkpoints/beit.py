"""BEiT's published layout and Hugging Face's Beit models, read as the result of stage 1 (arXiv 2106.08254)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from vlmo.checkpoints.beit_config import check_sizes, checked_config, class_names
from vlmo.checkpoints.beit_names import SHARED_TABLE, TABLE, from_hugging_face, is_hugging_face
from vlmo.checkpoints.conversion import Conversion
from vlmo.checkpoints.shapes import (
    MAX_TEXT_POSITIONS,
    NUM_CLASS_ROWS,
    NUM_CROSS_ROWS,
    check_alike,
    count_blocks,
    shape_of,
    square_side,
    without_batch,
)
from vlmo.model import VLMoConfig, VLMoForImageClassification, VLMoForMaskedImageModeling

_LARGE_DEPTH = 24
_NUM_HEADS = {768: 12, 1024: 16}  # base and large, where no table tells
_DEPTHS = {768: 12, 1024: 24}
_NORM_EPS = 1e-6
_HUGGING_FACE_NORM_EPS = 1e-12  # BeitConfig's default
_NEEDED = {"cls_token", "patch_embed.proj.weight", "blocks.0.mlp.fc1.weight"}
_CLASSIFIER = {"fc_norm.weight", "head.weight"}
_LEFTOVERS = re.compile(r"(.*\.)?(relative_position_index|num_batches_tracked)")

# Published name (a pattern) -> ours.
_PATTERNS: tuple[tuple[str, str], ...] = (
    (r"cls_token", "vlmo.image_embeddings.cls_token"),
    (r"patch_embed\.proj\.(weight|bias)", r"vlmo.image_embeddings.projection.\1"),
    (r"pos_embed", "vlmo.image_embeddings.positions"),
    (r"norm\.(weight|bias)", r"vlmo.norm.\1"),
    (r"blocks\.(\d+)\.norm1\.(weight|bias)", r"vlmo.blocks.\1.norm1.shared.\2"),
    (r"blocks\.(\d+)\.attn\.qkv\.weight", r"vlmo.blocks.\1.attention.qkv.shared.weight"),
    (r"blocks\.(\d+)\.attn\.q_bias", r"vlmo.blocks.\1.attention.qkv.shared.query_bias"),
    (r"blocks\.(\d+)\.attn\.v_bias", r"vlmo.blocks.\1.attention.qkv.shared.value_bias"),
    (r"blocks\.(\d+)\.attn\.proj\.(weight|bias)", r"vlmo.blocks.\1.attention.projection.shared.\2"),
    (r"blocks\.(\d+)\.gamma_([12])", r"vlmo.blocks.\1.gamma_\2"),
    (r"blocks\.(\d+)\.norm2\.(weight|bias)", r"vlmo.blocks.\1.experts.vision.norm.\2"),
    (r"blocks\.(\d+)\.mlp\.fc([12])\.(weight|bias)", r"vlmo.blocks.\1.experts.vision.fc\2.\3"),
    (r"mask_token", "mim_head.mask_token"),
    (r"lm_head\.(weight|bias)", r"mim_head.decoder.\1"),
    (r"fc_norm\.(weight|bias)", r"classifier_norm.\1"),
    (r"head\.(weight|bias)", r"classifier.\1"),
)


def recognises(state_dict: Mapping[str, Tensor]) -> bool:
    """Whether these are the keys of BEiT, in the published layout or in one of Hugging Face's two.

    A plain vision Transformer, whose keys carry a bias, is not one.
    """
    return _is_published(state_dict) or is_hugging_face(state_dict)


def convert(
    state_dict: Mapping[str, Tensor],
    *,
    config: Mapping[str, Any] | None = None,
    num_attention_heads: int | None = None,
) -> Conversion:
    """BEiT as a stage-1 model; with its classifier (`head` behind `fc_norm`) as an image classifier.

    Args:
        config: `config.json` of a Hugging Face folder.
        num_attention_heads: Needed only where neither `config`, nor a position table, nor the width of base or large
            tells it.

    Raises:
        ValueError: The file is of an architecture that VLMo does not have, or its sizes do not fit together.
    """
    given = checked_config(config or {})
    original = _is_published(state_dict)
    published, sources = (dict(state_dict), {}) if original else from_hugging_face(state_dict)
    if missing := _NEEDED - published.keys():
        raise ValueError(f"this BEiT has no {', '.join(sorted(missing))}; the file is incomplete or of another model.")
    fine_tuned = published.keys() >= _CLASSIFIER
    table = _join_tables(published)
    ours = _config(published, table, given=given, num_attention_heads=num_attention_heads, original=original)
    check_sizes(given, ours)
    named = {key: name for key in published if (name := _our_name(key)) is not None}
    foreign = "mim_head." if fine_tuned else "classifier"
    weights = {name: _reshaped(name, published[key]) for key, name in named.items() if not name.startswith(foreign)}
    if table is not None:
        weights["vlmo.position_bias.table"] = _whole_table(table)
    # A truncated file must not pass for one of these, whose last norm is that of the pooled vector.
    mean_pooled = "fc_norm.weight" in published or bool(given.get("use_mean_pooling"))
    neutral, notes = _neutral(weights, ours, without_norm=mean_pooled and "lm_head.weight" not in published)
    usual = _DEPTHS.get(ours.hidden_size, ours.num_hidden_layers)
    if ours.num_hidden_layers != usual:
        notes.append(f"The BEiT of this width has {usual} blocks, this file {ours.num_hidden_layers}: is it whole?")
    if "head.weight" in published and not fine_tuned:
        notes.append("Its classifier reads [I_CLS] and ours the mean of the patches, so it was left out.")
    others = published.keys() - named.keys() - _table_keys(published)
    unused = [key for key, name in named.items() if name.startswith(foreign)]
    unused += [key for key in others if _LEFTOVERS.fullmatch(key)]
    return Conversion(
        kind=_kind(published, fine_tuned=fine_tuned, original=original),
        model_class=VLMoForImageClassification if fine_tuned else VLMoForMaskedImageModeling,
        config=ours,
        weights=weights | neutral,
        unused={sources.get(key, key): published[key] for key in sorted(unused)},
        unknown=sorted(sources.get(key, key) for key in others.difference(unused)),
        created=_created(weights, fine_tuned=fine_tuned),
        notes=notes,
    )


def _is_published(state_dict: Mapping[str, Tensor]) -> bool:
    return {
        "cls_token",
        "patch_embed.proj.weight",
        "blocks.0.norm2.weight",
        "blocks.0.attn.q_bias",
    } <= state_dict.keys()


def _our_name(key: str) -> str | None:
    for pattern, replacement in _PATTERNS:
        if match := re.fullmatch(pattern, key):
            return match.expand(replacement)
    return None


def _reshaped(name: str, tensor: Tensor) -> Tensor:
    if name == "mim_head.mask_token":
        return tensor.flatten()
    return without_batch("pos_embed", tensor) if name == "vlmo.image_embeddings.positions" else tensor


def _depth(published: Mapping[str, Tensor]) -> int:
    return count_blocks(int(match[1]) for key in published if (match := re.match(r"blocks\.(\d+)\.", key)))


def _table_keys(published: Mapping[str, Tensor]) -> set[str]:
    layers = {f"blocks.{layer}.attn.{TABLE}" for layer in range(_depth(published))}
    return published.keys() & (layers | {SHARED_TABLE})


def _join_tables(published: Mapping[str, Tensor]) -> Float[Tensor, "rows layers*heads"] | None:
    """The tables of all layers beside each other; a shared one belongs to each layer, on top of its own if it has one.

    Raises:
        ValueError: Some layers have a table and others do not, or there are absolute positions too.
    """
    keys = _table_keys(published)
    if not keys:
        return None
    if "pos_embed" in published:
        raise ValueError(
            f"this BEiT has absolute positions (pos_embed) and relative ones ({min(keys)}); VLMo has either the one or "
            "the other, so it cannot be imported."
        )
    depth = _depth(published)
    shared = published.get(SHARED_TABLE)
    check_alike({key: published[key] for key in sorted(keys)})
    own = [published[key] for layer in range(depth) if (key := f"blocks.{layer}.attn.{TABLE}") in keys]
    if own and len(own) != depth:
        raise ValueError(f"{len(own)} of {depth} blocks have a {TABLE}; expected all or none. The file is incomplete.")
    if shared is not None:
        own = [shared + table for table in own] or [shared] * depth
    return torch.cat(own, dim=1)


def _whole_table(table: Float[Tensor, "image_rows columns"]) -> Float[Tensor, "rows columns"]:
    """The image's rows, and zeros for those of text and pair."""
    num_new = NUM_CROSS_ROWS + 2 * MAX_TEXT_POSITIONS
    return torch.cat([table, table.new_zeros(num_new, table.shape[1])])


def _config(
    published: Mapping[str, Tensor],
    table: Tensor | None,
    *,
    given: Mapping[str, Any],
    num_attention_heads: int | None,
    original: bool,
) -> VLMoConfig:
    width, channels, patch_size, _ = shape_of(published, "patch_embed.proj.weight", axes=4)
    depth = _depth(published)
    scaled = "blocks.0.gamma_1" in published
    default_scale = 1e-5 if depth >= _LARGE_DEPTH else 0.1
    num_visual_tokens = given.get("vocab_size", 8192)
    if "lm_head.weight" in published:
        num_visual_tokens = shape_of(published, "lm_head.weight", axes=2)[0]
    return VLMoConfig(
        hidden_size=width,
        num_hidden_layers=depth,
        num_attention_heads=_num_heads(table, width=width, depth=depth, given=given, asked=num_attention_heads),
        intermediate_size=shape_of(published, "blocks.0.mlp.fc1.weight", axes=2)[0],
        num_fusion_layers=0,  # stage 3 makes them, from the expert that its recipe names
        image_size=patch_size * _grid_side(published, table, given=given, patch_size=patch_size),
        patch_size=patch_size,
        num_channels=channels,
        max_text_positions=MAX_TEXT_POSITIONS,
        position_embedding="absolute" if "pos_embed" in published else "relative",
        layer_scale_init=float(given.get("layer_scale_init_value", default_scale)) if scaled else None,
        layer_norm_eps=_NORM_EPS if original else float(given.get("layer_norm_eps", _HUGGING_FACE_NORM_EPS)),
        num_visual_tokens=num_visual_tokens,
        **_labels(published, given=given),
    )


def _labels(published: Mapping[str, Tensor], *, given: Mapping[str, Any]) -> dict[str, Any]:
    if not published.keys() >= _CLASSIFIER:
        return {}
    return class_names(given, count=shape_of(published, "head.weight", axes=2)[0])


def _num_heads(table: Tensor | None, *, width: int, depth: int, given: Mapping[str, Any], asked: int | None) -> int:
    told = given.get("num_attention_heads", _NUM_HEADS.get(width)) if asked is None else asked
    if table is None:
        if told is None:
            raise ValueError(
                f"no position table tells how many attention heads this BEiT of width {width} has; give it"
                " (--num-attention-heads)."
            )
        return told
    found = table.shape[1] // depth
    if asked is not None and asked != found:
        raise ValueError(f"num_attention_heads is {asked}, but the position tables of this BEiT have {found} columns.")
    if told is not None and told != found:
        raise ValueError(
            f"the position tables of this BEiT of width {width} have {found} columns; expected {told}, one for each"
            " attention head. Is the file whole?"
        )
    return found


def _grid_side(
    published: Mapping[str, Tensor], table: Tensor | None, *, given: Mapping[str, Any], patch_size: int
) -> int:
    """Patches along a side, by the position table."""
    if table is not None:
        side = square_side(len(table) - NUM_CLASS_ROWS)
        if side is not None and side % 2:
            return (side + 1) // 2
        raise ValueError(f"a position table of {len(table)} rows is not of a square picture; VLMo needs one.")
    if "pos_embed" in published:
        count = shape_of(published, "pos_embed", axes=3)[1] - 1
        if (side := square_side(count)) is not None:
            return side
        raise ValueError(f"pos_embed has {count} patches, which is not of a square picture; VLMo needs one.")
    if "image_size" not in given:
        raise ValueError("no position table tells the picture size of this BEiT; give its folder, with config.json.")
    return given["image_size"] // patch_size


def _neutral(
    weights: Mapping[str, Tensor], config: VLMoConfig, *, without_norm: bool
) -> tuple[dict[str, Tensor], list[str]]:
    """Parameters that VLMo has, BEiT lacks, and that change nothing at these values; and what to tell about them."""
    like = weights["vlmo.image_embeddings.cls_token"]
    width = config.hidden_size
    neutral = {"vlmo.modality_types.weight": like.new_zeros(config.num_modality_types, width)}
    notes = ["BEiT has no modality types: they start at zero."]
    if config.position_embedding == "relative" and "vlmo.position_bias.table" not in weights:
        rows = (2 * config.grid[0] - 1) ** 2 + NUM_CLASS_ROWS
        columns = config.num_hidden_layers * config.num_attention_heads
        neutral["vlmo.position_bias.table"] = _whole_table(like.new_zeros(rows, columns))
        notes.append("It has no positions: the position table starts at zero.")
    if without_norm and "vlmo.norm.weight" not in weights:
        neutral |= {"vlmo.norm.weight": like.new_ones(width), "vlmo.norm.bias": like.new_zeros(width)}
        notes.append("It has no final norm: the norm starts as the identity (weight one, bias zero).")
    return neutral, notes


def _created(weights: Mapping[str, Tensor], *, fine_tuned: bool) -> list[str]:
    created = [r"vlmo\.text_embeddings\.", r"vlmo\.blocks\.\d+\.experts\.language\."]
    if not fine_tuned:
        if "mim_head.mask_token" not in weights:
            created.append(r"mim_head\.mask_token")
        if "mim_head.decoder.weight" not in weights:
            created.append(r"mim_head\.decoder\.")
    return created


def _kind(published: Mapping[str, Tensor], *, fine_tuned: bool, original: bool) -> str:
    state = "without a head"
    if fine_tuned:
        state = f"fine-tuned on {len(published['head.weight'])} classes"
    elif "lm_head.weight" in published:
        state = "pre-trained"
    return f"BEiT{'' if original else ' of Hugging Face'}, {state}"
