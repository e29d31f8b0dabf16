"""BEiT's published layout and Hugging Face's Beit models, read as the result of stage 1 (arXiv 2106.08254)."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from vlmo.interop.conversion import Conversion
from vlmo.model import VLMoConfig, VLMoForImageClassification, VLMoForMaskedImageModeling

_MAX_TEXT_POSITIONS = 196  # of every published VLMo table
_NUM_CLASS_ROWS = 3
_NUM_CROSS_ROWS = 2
_LARGE_DEPTH = 24
_NUM_HEADS = {768: 12, 1024: 16}  # base and large, where no table tells
_NORM_EPS = 1e-6
_HUGGING_FACE_NORM_EPS = 1e-12  # BeitConfig's default
_TABLE = "relative_position_bias_table"
_SHARED_TABLE = f"rel_pos_bias.{_TABLE}"
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

# Hugging Face's names, without `beit.` and `.weight` or `.bias`, -> published names. Where there are two for one thing,
# the first is in files and the second in a model of transformers 5.
_HUGGING_FACE = {
    "embeddings.cls_token": "cls_token",
    "embeddings.mask_token": "mask_token",
    "embeddings.position_embeddings": "pos_embed",
    "embeddings.patch_embeddings.projection": "patch_embed.proj",
    f"encoder.relative_position_bias.{_TABLE}": _SHARED_TABLE,
    f"shared_position_bias.{_TABLE}": _SHARED_TABLE,
    "layernorm": "norm",
    "pooler.layernorm": "fc_norm",
    "lm_head": "lm_head",
    "classifier": "head",
}
_HUGGING_FACE_BLOCK = {
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
    "lambda_1": "gamma_1",
    "lambda_2": "gamma_2",
    "attention.attention.query": "attn.q",
    "attention.q_proj": "attn.q",
    "attention.attention.key": "attn.k",
    "attention.k_proj": "attn.k",
    "attention.attention.value": "attn.v",
    "attention.v_proj": "attn.v",
    "attention.output.dense": "attn.proj",
    "attention.o_proj": "attn.proj",
    "intermediate.dense": "mlp.fc1",
    "mlp.fc1": "mlp.fc1",
    "output.dense": "mlp.fc2",
    "mlp.fc2": "mlp.fc2",
    f"attention.attention.relative_position_bias.{_TABLE}": f"attn.{_TABLE}",
    f"relative_position_bias.{_TABLE}": f"attn.{_TABLE}",
}


def recognises(state_dict: Mapping[str, Tensor]) -> bool:
    """Whether these are the keys of BEiT, in the published layout or in one of Hugging Face's two.

    A plain vision Transformer, whose keys carry a bias, is not one.
    """
    return _is_published(state_dict) or _is_hugging_face(state_dict)


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
    given = config or {}
    _check_config(given)
    original = _is_published(state_dict)
    published, sources = (dict(state_dict), {}) if original else _from_hugging_face(state_dict)
    if missing := _NEEDED - published.keys():
        raise ValueError(f"this BEiT has no {', '.join(sorted(missing))}; the file is incomplete or of another model.")
    fine_tuned = published.keys() >= _CLASSIFIER
    table = _join_tables(published)
    ours = _config(published, table, given=given, num_attention_heads=num_attention_heads, original=original)
    named = {key: name for key in published if (name := _our_name(key)) is not None}
    foreign = "mim_head." if fine_tuned else "classifier"
    weights = {name: _reshaped(name, published[key]) for key, name in named.items() if not name.startswith(foreign)}
    if table is not None:
        weights["vlmo.position_bias.table"] = _whole_table(table)
    # A truncated file must not pass for one of these, whose last norm is that of the pooled vector.
    mean_pooled = "fc_norm.weight" in published or bool(given.get("use_mean_pooling"))
    neutral, notes = _neutral(weights, ours, without_norm=mean_pooled and "lm_head.weight" not in published)
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


def _is_hugging_face(state_dict: Mapping[str, Tensor]) -> bool:
    keys = {key.removeprefix("beit.") for key in state_dict}
    first_layers = ("encoder.layer.0.attention.attention.{}", "layers.0.attention.{}")
    return "embeddings.cls_token" in keys and any(
        layer.format(f"{query}.weight") in keys and layer.format(f"{key}.bias") not in keys
        for layer, query, key in zip(first_layers, ("query", "q_proj"), ("key", "k_proj"), strict=True)
    )


def _from_hugging_face(state_dict: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The same tensors under published names, and the key of each in the file. A key without such a name stays."""
    published: dict[str, Tensor] = {}
    sources: dict[str, str] = {}
    for key, tensor in state_dict.items():
        name = _published_name(key.removeprefix("beit.")) or key
        if name in published:
            raise ValueError(
                f"{key} is a second tensor for {name}. With use_mean_pooling False, BeitForMaskedImageModeling norms "
                "twice at the end, which VLMo does not; import the BeitModel inside it (model.beit.save_pretrained)."
            )
        published[name], sources[name] = tensor, key
    blocks = [key.removesuffix("k.weight") for key in published if re.fullmatch(r"blocks\.\d+\.attn\.k\.weight", key)]
    for block in blocks:
        parts = [f"{block}{part}.weight" for part in "qkv"]
        if all(part in published for part in parts):
            published[f"{block}qkv.weight"] = torch.cat([published.pop(part) for part in parts])
    return published, sources


def _published_name(key: str) -> str | None:
    match = re.fullmatch(r"(?:(?:encoder\.layer|layers)\.(\d+)\.)?(.+?)(\.weight|\.bias)?", key)
    if match is None:
        return None
    layer, stem, kind = match[1], match[2], match[3] or ""
    name = _HUGGING_FACE.get(stem) if layer is None else _HUGGING_FACE_BLOCK.get(stem)
    if name is None:
        return None
    if kind == ".bias" and name in ("attn.q", "attn.v"):
        name, kind = f"{name}_bias", ""
    return f"{name}{kind}" if layer is None else f"blocks.{layer}.{name}{kind}"


def _our_name(key: str) -> str | None:
    for pattern, replacement in _PATTERNS:
        if match := re.fullmatch(pattern, key):
            return match.expand(replacement)
    return None


def _reshaped(name: str, tensor: Tensor) -> Tensor:
    if name == "mim_head.mask_token":
        return tensor.flatten()
    return tensor[0] if name == "vlmo.image_embeddings.positions" else tensor


def _depth(published: Mapping[str, Tensor]) -> int:
    return 1 + max(int(match[1]) for key in published if (match := re.match(r"blocks\.(\d+)\.", key)))


def _table_keys(published: Mapping[str, Tensor]) -> set[str]:
    layers = {f"blocks.{layer}.attn.{_TABLE}" for layer in range(_depth(published))}
    return published.keys() & (layers | {_SHARED_TABLE})


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
    shared = published.get(_SHARED_TABLE)
    own = [published[key] for layer in range(depth) if (key := f"blocks.{layer}.attn.{_TABLE}") in keys]
    if own and len(own) != depth:
        raise ValueError(f"{len(own)} of {depth} blocks have a {_TABLE}; expected all or none. The file is incomplete.")
    if shared is not None:
        own = [shared + table for table in own] or [shared] * depth
    return torch.cat(own, dim=1)


def _whole_table(table: Float[Tensor, "image_rows columns"]) -> Float[Tensor, "rows columns"]:
    """The image's rows, and zeros for those of text and pair."""
    num_new = _NUM_CROSS_ROWS + 2 * _MAX_TEXT_POSITIONS
    return torch.cat([table, table.new_zeros(num_new, table.shape[1])])


def _check_config(config: Mapping[str, Any]) -> None:
    if (kind := config.get("model_type", "beit")) != "beit":
        raise ValueError(f"config.json is of a model of type {kind!r}; expected 'beit'.")
    if (activation := config.get("hidden_act", "gelu")) != "gelu":
        raise ValueError(f"config.json has hidden_act {activation!r}; VLMo computes 'gelu'.")


def _config(
    published: Mapping[str, Tensor],
    table: Tensor | None,
    *,
    given: Mapping[str, Any],
    num_attention_heads: int | None,
    original: bool,
) -> VLMoConfig:
    projection = published["patch_embed.proj.weight"]
    width, depth, patch_size = len(projection), _depth(published), projection.shape[-1]
    scaled = "blocks.0.gamma_1" in published
    default_scale = 1e-5 if depth >= _LARGE_DEPTH else 0.1
    head = published.get("lm_head.weight")
    return VLMoConfig(
        hidden_size=width,
        num_hidden_layers=depth,
        num_attention_heads=_num_heads(table, width=width, depth=depth, given=given, asked=num_attention_heads),
        intermediate_size=len(published["blocks.0.mlp.fc1.weight"]),
        num_fusion_layers=0,  # stage 3 makes them, from the expert that its recipe names
        image_size=patch_size * _grid_side(published, table, given=given, patch_size=patch_size),
        patch_size=patch_size,
        num_channels=projection.shape[1],
        max_text_positions=_MAX_TEXT_POSITIONS,
        position_embedding="absolute" if "pos_embed" in published else "relative",
        layer_scale_init=float(given.get("layer_scale_init_value", default_scale)) if scaled else None,
        layer_norm_eps=_NORM_EPS if original else float(given.get("layer_norm_eps", _HUGGING_FACE_NORM_EPS)),
        num_visual_tokens=given.get("vocab_size", 8192) if head is None else len(head),
        **_labels(published, given=given),
    )


def _labels(published: Mapping[str, Tensor], *, given: Mapping[str, Any]) -> dict[str, Any]:
    if not published.keys() >= _CLASSIFIER:
        return {}
    if "id2label" not in given:
        return {"num_labels": len(published["head.weight"])}
    names = {int(number): name for number, name in given["id2label"].items()}
    return {"id2label": names, "label2id": {name: number for number, name in names.items()}}


def _num_heads(table: Tensor | None, *, width: int, depth: int, given: Mapping[str, Any], asked: int | None) -> int:
    found = given.get("num_attention_heads", _NUM_HEADS.get(width)) if table is None else table.shape[1] // depth
    if found is None and asked is None:
        raise ValueError(f"no position table tells how many attention heads this BEiT of width {width} has; give it.")
    if asked is not None and table is not None and asked != found:
        raise ValueError(f"num_attention_heads is {asked}, but the position tables of this BEiT have {found} columns.")
    return asked or found


def _grid_side(
    published: Mapping[str, Tensor], table: Tensor | None, *, given: Mapping[str, Any], patch_size: int
) -> int:
    """Patches along a side, by the position table."""
    if table is not None:
        side = math.isqrt(offsets := len(table) - _NUM_CLASS_ROWS)
        if side**2 == offsets and side % 2:
            return (side + 1) // 2
        raise ValueError(f"a position table of {len(table)} rows is not of a square picture; VLMo needs one.")
    if "pos_embed" in published:
        side = math.isqrt(count := published["pos_embed"].shape[1] - 1)
        if side**2 == count:
            return side
        raise ValueError(f"pos_embed has {count} patches, which is not of a square picture; VLMo needs one.")
    if not isinstance(size := given.get("image_size"), int):
        raise ValueError("no position table tells the picture size of this BEiT; give its folder, with config.json.")
    return size // patch_size


def _neutral(
    weights: Mapping[str, Tensor], config: VLMoConfig, *, without_norm: bool
) -> tuple[dict[str, Tensor], list[str]]:
    """Parameters that VLMo has, BEiT lacks, and that change nothing at these values; and what to tell about them."""
    like = weights["vlmo.image_embeddings.cls_token"]
    width = config.hidden_size
    neutral = {"vlmo.modality_types.weight": like.new_zeros(config.num_modality_types, width)}
    notes = ["BEiT has no modality types: they start at zero."]
    if config.position_embedding == "relative" and "vlmo.position_bias.table" not in weights:
        rows = (2 * config.grid[0] - 1) ** 2 + _NUM_CLASS_ROWS
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
