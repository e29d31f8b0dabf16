"""Published layouts of BEiT (arXiv 2106.08254) and BEiT-2, and of BEiT and Data2Vec of Hugging Face."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from jaxtyping import Float
from torch import Tensor
from transformers import BeitConfig, Data2VecVisionConfig

from vlmo import model as models
from vlmo.checkpoints.layout import (
    MAX_TEXT_POSITIONS,
    NUM_CLASS_ROWS,
    NUM_CROSS_ROWS,
    OUR_IMAGE_POSITIONS,
    OUR_TABLE,
    Conversion,
    HeadTask,
    NameTable,
    common_sizes,
    find_task,
    grid_of_positions,
    grid_of_table,
    note_on_depth,
    one_line,
    translate,
)

_LARGE_DEPTH = 24
_NORM_EPS = 1e-6  # of the published code
_CLASS_TOKEN = "vlmo.image_embeddings.cls_token"
_NORM, _MASK_TOKEN, _TOKEN_HEAD = "vlmo.norm.weight", "mim_head.mask_token", "mim_head.decoder.weight"
_SHARED = "shared_table"  # which is joined with each `layer_table` into our table
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


_CLASSIFIED = HeadTask("fine-tuned on {} classes", ("classifier_norm", "classifier"), models.VLMoForImageClassification)
TASKS = (
    _CLASSIFIED,
    HeadTask("pre-trained", ("mim_head.decoder",), models.VLMoForMaskedImageModeling),
    HeadTask("without a head", (), models.VLMoForMaskedImageModeling),
)
# arXiv 2202.03555: BEiT's model, trained in another way
_CONFIGS = {"beit": BeitConfig, "data2vec-vision": Data2VecVisionConfig}
_SIZES = ("num_hidden_layers", "num_attention_heads", "hidden_size", "intermediate_size", "image_size", "patch_size")


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
    given: Any = None if config is None else _read_config(config)
    original = is_published(state_dict)
    named, sources = translate(state_dict, PUBLISHED if original else HUGGING_FACE)
    task, title, settings = find_task(TASKS, named, PUBLISHED)
    table = _join_tables(named, sources)
    asked = num_attention_heads or (None if given is None else given.num_attention_heads)
    sizes = common_sizes(named, PUBLISHED, columns=None if table is None else table.shape[1], num_attention_heads=asked)
    sizes["image_size"] = sizes["patch_size"] * _grid(named, table, given, patch_size=sizes["patch_size"])
    stated = {name: getattr(given, name, sizes[name]) for name in _SIZES}
    if wrong := [
        f"{name} {value}, the weights {sizes[name]}" for name, value in stated.items() if value != sizes[name]
    ]:
        raise ValueError(f"config.json says {'; '.join(wrong)}; expected the same. Is the folder whole?")
    layer_scale = 1e-5 if sizes["num_hidden_layers"] >= _LARGE_DEPTH else 0.1
    layer_scale = layer_scale if given is None else given.layer_scale_init_value
    settings.setdefault("num_visual_tokens", 8192 if given is None else given.vocab_size)
    if task is _CLASSIFIED and config is not None and config.get("id2label") is not None:
        names, count = given.id2label, settings.pop("num_labels")
        if sorted(names) != list(range(count)):
            raise ValueError(f"id2label of config.json does not name the {count} classes by numbers from 0.")
        settings |= {"id2label": names, "label2id": {name: number for number, name in names.items()}}
    ours = models.VLMoConfig(
        num_fusion_layers=0,  # stage 3 adds them, from the expert that its recipe names
        max_text_positions=MAX_TEXT_POSITIONS,
        position_embedding="absolute" if OUR_IMAGE_POSITIONS in named else "relative",
        layer_scale_init=layer_scale if "vlmo.blocks.0.gamma_1" in named else None,
        layer_norm_eps=_NORM_EPS if original else (given or BeitConfig()).layer_norm_eps,
        **sizes,
        **settings,
    )
    foreign = "mim_head." if task is _CLASSIFIED else "classifier"
    weights = {name: tensor for name, tensor in named.items() if not name.startswith(foreign)}
    if table is not None:
        weights[OUR_TABLE] = _with_text_rows(table)
    # A truncated file must not pass for one whose last norm is that of the pooled vector.
    mean_pooled = "classifier_norm.weight" in named or (given is not None and given.use_mean_pooling)
    neutral, notes = _neutral(weights, ours, without_norm=mean_pooled and _TOKEN_HEAD not in named)
    notes += note_on_depth("BEiT", ours)
    if "classifier.weight" in named and task is not _CLASSIFIED:
        notes.append("Its classifier reads [I_CLS] and ours the mean of the patches, so it was left out.")
    others = state_dict.keys() - sources.values()
    unused = [sources[name] for name in named if name.startswith(foreign)]
    unused += [key for key in others if _LEFTOVERS.fullmatch(key)]
    created = [r"vlmo\.text_embeddings\.", r"vlmo\.blocks\.\d+\.experts\.language\."]
    if task is not _CLASSIFIED:
        created += [r"mim_head\.mask_token"] * (_MASK_TOKEN not in named)
        created += [r"mim_head\.decoder\."] * (_TOKEN_HEAD not in named)
    family = "Data2Vec" if isinstance(given, Data2VecVisionConfig) else "BEiT"
    return Conversion(
        kind=f"{family}{'' if original else ' of Hugging Face'}, {title}",
        model_class=task.model_class,
        config=ours,
        weights=weights | neutral,
        unused={key: state_dict[key] for key in sorted(unused)},
        unknown=sorted(others.difference(unused)),
        created=created,
        notes=notes,
    )


def _read_config(config: Mapping[str, Any]) -> Any:
    """Return `config.json` of a folder as transformers reads it, images and patches as one number."""
    if (kind := config.get("model_type", "beit")) not in _CONFIGS:
        raise ValueError(f"config.json is of a model of type {kind!r}; expected {' or '.join(_CONFIGS)}.")
    # The head's weights tell the number of classes; transformers would make a name for each of any number given.
    config = {name: value for name, value in config.items() if name != "num_labels"}
    try:
        given: Any = _CONFIGS[kind].from_dict(config)
    except (StrictDataclassError, LookupError, TypeError, ValueError, AttributeError) as problem:
        raise ValueError(f"config.json cannot be read ({one_line(problem)}).") from None
    if given.hidden_act != "gelu":
        raise ValueError(f"config.json has hidden_act {given.hidden_act!r}; VLMo computes 'gelu'.")
    for name in ("image_size", "patch_size"):
        match getattr(given, name):
            case [height, width] if height == width:
                setattr(given, name, height)
    return given


def _grid(named: Mapping[str, Tensor], table: Tensor | None, given: Any, *, patch_size: int) -> int:
    """Return the patches along a side of a square image."""
    if table is not None:
        return grid_of_table("the position table of this BEiT", len(table), num_fixed=NUM_CLASS_ROWS)
    if OUR_IMAGE_POSITIONS in named:
        return grid_of_positions("pos_embed", len(named[OUR_IMAGE_POSITIONS]))
    if given is None:
        raise ValueError("no position table tells the image size of this BEiT; give its folder, with config.json.")
    return given.image_size // patch_size


def _join_tables(named: dict[str, Tensor], sources: Mapping[str, str]) -> Float[Tensor, "rows layers*heads"] | None:
    """Take the tables of all layers out of `named` and join them; a shared one is added to that of each layer."""
    depth = 1 + max((int(name.split(".")[2]) for name in named if name.startswith("vlmo.blocks.")), default=0)
    tables = {name: named.pop(name) for name in list(named) if name.startswith(("layer_table.", _SHARED))}
    if not tables:
        return None
    if OUR_IMAGE_POSITIONS in named:
        raise ValueError(
            f"this BEiT has absolute positions ({sources[OUR_IMAGE_POSITIONS]}) and relative ones"
            f" ({sources[min(tables)]}); VLMo has either the one or the other, so it cannot be imported."
        )
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
