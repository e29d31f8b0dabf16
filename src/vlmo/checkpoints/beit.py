"""Published layouts of BEiT (arXiv 2106.08254) and BEiT-2, and of BEiT and Data2Vec of Hugging Face."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor

from vlmo import model as models
from vlmo.checkpoints.layout import (
    MAX_TEXT_POSITIONS,
    NUM_CLASS_ROWS,
    NUM_CROSS_ROWS,
    OUR_IMAGE_POSITIONS,
    OUR_TABLE,
    Conversion,
    NameTable,
    check_alike,
    count_blocks,
    count_heads,
    grid_of_positions,
    grid_of_table,
    note_on_depth,
    shape_of,
    translate,
)

_LARGE_DEPTH = 24
_NORM_EPS, _HUGGING_FACE_NORM_EPS = 1e-6, 1e-12  # of the published code, and BeitConfig's default
_CLASS_TOKEN = "vlmo.image_embeddings.cls_token"
_PATCHES, _FIRST_LAYER = "vlmo.image_embeddings.projection.weight", "vlmo.blocks.0.experts.vision.fc1.weight"
_NORM, _MASK_TOKEN, _TOKEN_HEAD = "vlmo.norm.weight", "mim_head.mask_token", "mim_head.decoder.weight"
_DATA2VEC = "data2vec-vision"  # arXiv 2202.03555: BEiT's model, trained in another way
_SHARED = "shared_table"  # which is joined with each `layer_table` into our table
_CLASSIFIER = {"classifier_norm.weight", "classifier.weight"}
# Also the layers in which BEiT-2 (arXiv 2208.06366) pre-trains its class token.
_LEFTOVERS = re.compile(r"(.*\.)?(relative_position_index|num_batches_tracked)|cls_pt_(layers|lm_head)\..+")
_BIAS = "relative_position_bias_table"

_BLOCK = "vlmo.blocks.{layer}."
_ATTENTION = f"{_BLOCK}attention."
PUBLISHED = NameTable(
    (
        ("cls_token", _CLASS_TOKEN),
        ("patch_embed.proj.{kind}", "vlmo.image_embeddings.projection.{kind}"),
        ("pos_embed", OUR_IMAGE_POSITIONS),
        ("norm.{kind}", "vlmo.norm.{kind}"),
        ("mask_token", _MASK_TOKEN),
        ("lm_head.{kind}", "mim_head.decoder.{kind}"),
        ("fc_norm.{kind}", "classifier_norm.{kind}"),
        ("head.{kind}", "classifier.{kind}"),
        (f"rel_pos_bias.{_BIAS}", _SHARED),
        (f"blocks.{{layer}}.attn.{_BIAS}", "layer_table.{layer}"),
        ("blocks.{layer}.norm1.{kind}", f"{_BLOCK}norm1.shared.{{kind}}"),
        ("blocks.{layer}.attn.qkv.weight", f"{_ATTENTION}qkv.shared.weight"),
        ("blocks.{layer}.attn.q_bias", f"{_ATTENTION}qkv.shared.query_bias"),
        ("blocks.{layer}.attn.v_bias", f"{_ATTENTION}qkv.shared.value_bias"),
        ("blocks.{layer}.attn.proj.{kind}", f"{_ATTENTION}projection.shared.{{kind}}"),
        ("blocks.{layer}.gamma_{number}", f"{_BLOCK}gamma_{{number}}"),
        ("blocks.{layer}.norm2.{kind}", f"{_BLOCK}experts.vision.norm.{{kind}}"),
        ("blocks.{layer}.mlp.fc{number}.{kind}", f"{_BLOCK}experts.vision.fc{{number}}.{{kind}}"),
    )
)
# Names in files, and in a model of transformers 5, which calls blocks `layers`.
HUGGING_FACE = NameTable(
    (
        ("embeddings.cls_token", _CLASS_TOKEN),
        ("embeddings.patch_embeddings.projection.{kind}", "vlmo.image_embeddings.projection.{kind}"),
        ("embeddings.position_embeddings", OUR_IMAGE_POSITIONS),
        ("layernorm.{kind}", "vlmo.norm.{kind}"),
        ("embeddings.mask_token", _MASK_TOKEN),
        ("lm_head.{kind}", "mim_head.decoder.{kind}"),
        ("pooler.layernorm.{kind}", "classifier_norm.{kind}"),
        ("classifier.{kind}", "classifier.{kind}"),
        (f"encoder.relative_position_bias.{_BIAS}", _SHARED),
        (f"shared_position_bias.{_BIAS}", _SHARED),
        *(
            (f"{blocks}.{{layer}}.{theirs}", _BLOCK + ours)
            for in_file, in_memory, ours in (
                ("layernorm_before.{kind}", "layernorm_before.{kind}", "norm1.shared.{kind}"),
                ("layernorm_after.{kind}", "layernorm_after.{kind}", "experts.vision.norm.{kind}"),
                ("lambda_{number}", "lambda_{number}", "gamma_{number}"),
                ("attention.attention.query.weight", "attention.q_proj.weight", "attention.q.shared.weight"),
                ("attention.attention.key.weight", "attention.k_proj.weight", "attention.k.shared.weight"),
                ("attention.attention.value.weight", "attention.v_proj.weight", "attention.v.shared.weight"),
                ("attention.attention.query.bias", "attention.q_proj.bias", "attention.qkv.shared.query_bias"),
                ("attention.attention.value.bias", "attention.v_proj.bias", "attention.qkv.shared.value_bias"),
                ("attention.output.dense.{kind}", "attention.o_proj.{kind}", "attention.projection.shared.{kind}"),
                ("intermediate.dense.{kind}", "mlp.fc1.{kind}", "experts.vision.fc1.{kind}"),
                ("output.dense.{kind}", "mlp.fc2.{kind}", "experts.vision.fc2.{kind}"),
            )
            for blocks, theirs in (("encoder.layer", in_file), ("layers", in_memory))
        ),
        (f"encoder.layer.{{layer}}.attention.attention.relative_position_bias.{_BIAS}", "layer_table.{layer}"),
        (f"layers.{{layer}}.relative_position_bias.{_BIAS}", "layer_table.{layer}"),
    ),
    prefix=r"beit\.|data2vec_vision\.",
)


def is_published(state_dict: Mapping[str, Tensor]) -> bool:
    """Return True for the keys of the published layout; those of a plain vision Transformer have no `q_bias`."""
    return {"cls_token", "blocks.0.norm2.weight", "blocks.0.attn.q_bias"} <= state_dict.keys()


def is_hugging_face(state_dict: Mapping[str, Tensor]) -> bool:
    """Return True for the keys of a Beit model, from a file or in the memory of transformers 5."""
    names = {HUGGING_FACE.ours(key) for key in state_dict}
    plain = any(key.endswith((".0.attention.attention.key.bias", ".0.attention.k_proj.bias")) for key in state_dict)
    return {_CLASS_TOKEN, "vlmo.blocks.0.attention.q.shared.weight"} <= names and not plain


def convert(
    state_dict: Mapping[str, Tensor],
    *,
    config: Mapping[str, Any] | None = None,
    num_attention_heads: int | None = None,
) -> Conversion:
    """Convert BEiT to a stage-1 model; with its classifier (`head` behind `fc_norm`), to an image classifier.

    Args:
        config: `config.json` of a Hugging Face folder.
        num_attention_heads: Needed only where neither `config`, nor a position table, nor the width of base or large
            tells it.

    Raises:
        ValueError: VLMo does not have the file's architecture, or its sizes do not fit together.
    """
    given = _checked_config(config or {})
    original = is_published(state_dict)
    named, sources = translate(state_dict, PUBLISHED if original else HUGGING_FACE)
    fine_tuned = named.keys() >= _CLASSIFIER
    depth = count_blocks(named)
    table = _join_tables(named, sources, depth=depth)
    ours = _config(named, table, depth=depth, given=given, asked=num_attention_heads, original=original)
    read = vars(ours)
    wrong = [
        f"{name} {given[name]}, the weights {read[name]}"
        for name in _SIZES
        if given.get(name, read[name]) != read[name]
    ]
    if wrong:
        raise ValueError(f"config.json says {'; '.join(wrong)}; expected the same. Is the folder whole?")
    foreign = "mim_head." if fine_tuned else "classifier"
    weights = {name: tensor for name, tensor in named.items() if not name.startswith(foreign)}
    if table is not None:
        weights[OUR_TABLE] = _with_text_rows(table)
    # A truncated file must not pass for one whose last norm is that of the pooled vector.
    mean_pooled = "classifier_norm.weight" in named or bool(given.get("use_mean_pooling"))
    neutral, notes = _neutral(weights, ours, without_norm=mean_pooled and _TOKEN_HEAD not in named)
    notes += note_on_depth("BEiT", ours)
    if "classifier.weight" in named and not fine_tuned:
        notes.append("Its classifier reads [I_CLS] and ours the mean of the patches, so it was left out.")
    others = state_dict.keys() - sources.values()
    unused = [sources[name] for name in named if name.startswith(foreign)]
    unused += [key for key in others if _LEFTOVERS.fullmatch(key)]
    created = [r"vlmo\.text_embeddings\.", r"vlmo\.blocks\.\d+\.experts\.language\."]
    if not fine_tuned:
        created += [r"mim_head\.mask_token"] * (_MASK_TOKEN not in named)
        created += [r"mim_head\.decoder\."] * (_TOKEN_HEAD not in named)
    state = "pre-trained" if _TOKEN_HEAD in named else "without a head"
    if fine_tuned:
        state = f"fine-tuned on {len(named['classifier.weight'])} classes"
    family = "Data2Vec" if given.get("model_type") == _DATA2VEC else "BEiT"
    return Conversion(
        kind=f"{family}{'' if original else ' of Hugging Face'}, {state}",
        model_class=models.VLMoForImageClassification if fine_tuned else models.VLMoForMaskedImageModeling,
        config=ours,
        weights=weights | neutral,
        unused={key: state_dict[key] for key in sorted(unused)},
        unknown=sorted(others.difference(unused)),
        created=created,
        notes=notes,
    )


def _join_tables(
    named: dict[str, Tensor], sources: Mapping[str, str], *, depth: int
) -> Float[Tensor, "rows layers*heads"] | None:
    """Take the tables of all layers out of `named` and join them; a shared one is added to that of each layer."""
    tables = {name: named.pop(name) for name in list(named) if name.startswith(("layer_table.", _SHARED))}
    if not tables:
        return None
    if OUR_IMAGE_POSITIONS in named:
        raise ValueError(
            f"this BEiT has absolute positions ({sources[OUR_IMAGE_POSITIONS]}) and relative ones"
            f" ({sources[min(tables)]}); VLMo has either the one or the other, so it cannot be imported."
        )
    check_alike({sources[name]: table for name, table in sorted(tables.items())})
    shared = tables.pop(_SHARED, None)
    own = [tables[name] for layer in range(depth) if (name := f"layer_table.{layer}") in tables]
    if tables and (len(own) != depth or len(tables) != depth):
        raise ValueError(f"{len(own)} of {depth} blocks have a {_BIAS}; expected all or none. The file is incomplete.")
    if shared is not None:
        own = [shared + table for table in own] or [shared] * depth
    return torch.cat(own, dim=1)


def _with_text_rows(table: Float[Tensor, "image_rows columns"]) -> Float[Tensor, "rows columns"]:
    """Add zeros for the rows of text and pair."""
    num_new = NUM_CROSS_ROWS + 2 * MAX_TEXT_POSITIONS
    return torch.cat([table, table.new_zeros(num_new, table.shape[1])])


def _config(
    named: Mapping[str, Tensor],
    table: Tensor | None,
    *,
    depth: int,
    given: Mapping[str, Any],
    asked: int | None,
    original: bool,
) -> models.VLMoConfig:
    shape = partial(shape_of, named, names=PUBLISHED)
    width, channels, patch_size, _ = shape(_PATCHES, axes=4)
    layer_scale = float(given.get("layer_scale_init_value", 1e-5 if depth >= _LARGE_DEPTH else 0.1))
    if table is not None:
        grid = grid_of_table("the position table of this BEiT", len(table), num_fixed=NUM_CLASS_ROWS)
    elif OUR_IMAGE_POSITIONS in named:
        grid = grid_of_positions("pos_embed", len(named[OUR_IMAGE_POSITIONS]))
    elif "image_size" in given:
        grid = given["image_size"] // patch_size
    else:
        raise ValueError("no position table tells the image size of this BEiT; give its folder, with config.json.")
    has_classes = named.keys() >= _CLASSIFIER
    return models.VLMoConfig(
        hidden_size=width,
        num_hidden_layers=depth,
        num_attention_heads=count_heads(
            None if table is None else table.shape[1],
            width=width,
            depth=depth,
            asked=asked or given.get("num_attention_heads"),
        ),
        intermediate_size=shape(_FIRST_LAYER, axes=2)[0],
        num_fusion_layers=0,  # stage 3 adds them, from the expert that its recipe names
        image_size=patch_size * grid,
        patch_size=patch_size,
        num_channels=channels,
        max_text_positions=MAX_TEXT_POSITIONS,
        position_embedding="absolute" if OUR_IMAGE_POSITIONS in named else "relative",
        layer_scale_init=layer_scale if "vlmo.blocks.0.gamma_1" in named else None,
        layer_norm_eps=_NORM_EPS if original else float(given.get("layer_norm_eps", _HUGGING_FACE_NORM_EPS)),
        num_visual_tokens=shape(_TOKEN_HEAD, axes=2)[0] if _TOKEN_HEAD in named else given.get("vocab_size", 8192),
        **(_class_names(given, count=shape("classifier.weight", axes=2)[0]) if has_classes else {}),
    )


def _neutral(
    weights: Mapping[str, Tensor], config: models.VLMoConfig, *, without_norm: bool
) -> tuple[dict[str, Tensor], list[str]]:
    """Return parameters that BEiT lacks, at values that change nothing, and notes about them."""
    like = weights[_CLASS_TOKEN]
    width = config.hidden_size
    neutral = {"vlmo.modality_types.weight": like.new_zeros(config.num_modality_types, width)}
    notes = ["BEiT has no modality types: they start at zero."]
    if config.position_embedding == "relative" and OUR_TABLE not in weights:
        rows = (2 * config.grid[0] - 1) ** 2 + NUM_CLASS_ROWS
        columns = config.num_hidden_layers * config.num_attention_heads
        neutral[OUR_TABLE] = _with_text_rows(like.new_zeros(rows, columns))
        notes.append("It has no positions: the position table starts at zero.")
    if without_norm and _NORM not in weights:
        neutral |= {_NORM: like.new_ones(width), "vlmo.norm.bias": like.new_zeros(width)}
        notes.append("It has no final norm: the norm starts as the identity (weight one, bias zero).")
    return neutral, notes


_SIZES = ("num_hidden_layers", "num_attention_heads", "hidden_size", "intermediate_size", "image_size", "patch_size")


def _checked_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Validate `config.json` of a Beit folder; pairs of equal image or patch sizes become one number."""
    given = dict(config)
    if (kind := given.get("model_type", "beit")) not in {"beit", _DATA2VEC}:
        raise ValueError(f"config.json is of a model of type {kind!r}; expected 'beit' or {_DATA2VEC!r}.")
    if (activation := given.get("hidden_act", "gelu")) != "gelu":
        raise ValueError(f"config.json has hidden_act {activation!r}; VLMo computes 'gelu'.")
    for name in ("image_size", "patch_size"):
        match given.get(name):
            case [height, width] if height == width:
                given[name] = height
    for name in (*_SIZES, "vocab_size"):
        if name in given and (type(given[name]) is not int or given[name] < 1):
            raise ValueError(f"config.json has {name} {given[name]!r}; expected a whole number of at least 1.")
    for name, least in (("layer_norm_eps", "above 0"), ("layer_scale_init_value", "of at least 0")):
        value = given.get(name, 1.0)
        if type(value) not in {int, float} or value < 0 or (value == 0 and least == "above 0"):
            raise ValueError(f"config.json has {name} {value!r}; expected a number {least}.")
    return given


def _class_names(given: Mapping[str, Any], *, count: int) -> dict[str, Any]:
    """Return the names of the classes as `VLMoConfig` takes them; their number where `config.json` names none."""
    named = given.get("id2label")
    if named is None:
        return {"num_labels": count}
    names: dict[int, str] = {}
    if isinstance(named, dict):
        pairs = cast("dict[Any, Any]", named).items()
        names = {int(number): name for number, name in pairs if str(number).isdecimal() and isinstance(name, str)}
    if sorted(names) != list(range(count)) or len(names) != len(named):
        raise ValueError(f"id2label of config.json does not name the {count} classes by numbers from 0.")
    return {"id2label": names, "label2id": {name: number for number, name in names.items()}}
