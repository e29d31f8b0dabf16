"""Published layouts of BEiT (arXiv 2106.08254) and BEiT-2 (arXiv 2208.06366), and of BEiT of Hugging Face."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from vlmo import model as models
from vlmo.checkpoints import layout
from vlmo.checkpoints.layout import Conversion, HeadTask, NameTable, Tensors
from vlmo.model.embeddings import NUM_CLASS_ROWS, NUM_CROSS_ROWS

_CLASS_TOKEN = "vlmo.image_embeddings.cls_token"
_NORM = "vlmo.norm.weight"
_MASK_TOKEN = "mim_head.mask_token"
_TOKEN_HEAD = "mim_head.decoder.weight"
_SHARED = "shared_table"  # which is joined with each `layer_table` into our table
# Also the layers in which BEiT-2 pre-trains its class token.
_LEFTOVERS = r"(.*\.)?(relative_position_index|num_batches_tracked)|cls_pt_(layers|lm_head)\..+"
_BIAS = "relative_position_bias_table"
_BLOCK = "vlmo.blocks.{layer}."

NAMES = (
    ("cls_token", _CLASS_TOKEN),
    ("patch_embed.proj.{kind}", "vlmo.image_embeddings.projection.{kind}"),
    ("pos_embed", layout.OUR_IMAGE_POSITIONS),
    ("norm.{kind}", "vlmo.norm.{kind}"),
    ("mask_token", _MASK_TOKEN),
    ("lm_head.{kind}", "mim_head.decoder.{kind}"),
    ("fc_norm.{kind}", "classifier_norm.{kind}"),
    ("head.{kind}", "classifier.{kind}"),
    (f"rel_pos_bias.{_BIAS}", _SHARED),
    (f"blocks.{{layer}}.attn.{_BIAS}", "layer_table.{layer}"),
    *(
        ("blocks.{layer}." + theirs, _BLOCK + ours)
        for theirs, ours in (
            *layout.ATTENTION_NAMES,
            ("norm2.{kind}", "experts.vision.norm.{kind}"),
            ("mlp.fc{number}.{kind}", "experts.vision.fc{number}.{kind}"),
        )
    ),
)
"""Published names and ours."""
PUBLISHED = NameTable(NAMES, leftovers=_LEFTOVERS)
HUGGING_FACE = NameTable(
    (
        ("embeddings.cls_token", _CLASS_TOKEN),
        (
            "embeddings.patch_embeddings.projection.{kind}",
            "vlmo.image_embeddings.projection.{kind}",
        ),
        ("layernorm.{kind}", "vlmo.norm.{kind}"),
        ("embeddings.mask_token", _MASK_TOKEN),
        ("lm_head.{kind}", "mim_head.decoder.{kind}"),
        ("pooler.layernorm.{kind}", "classifier_norm.{kind}"),
        ("classifier.{kind}", "classifier.{kind}"),
        (f"encoder.relative_position_bias.{_BIAS}", _SHARED),
        (
            f"encoder.layer.{{layer}}.attention.attention.relative_position_bias.{_BIAS}",
            "layer_table.{layer}",
        ),
        *(
            ("encoder.layer.{layer}." + theirs, _BLOCK + ours)
            for theirs, ours in (
                ("layernorm_before.{kind}", "norm1.shared.{kind}"),
                ("attention.attention.query.weight", "attention.q.shared.weight"),
                ("attention.attention.key.weight", "attention.k.shared.weight"),
                ("attention.attention.value.weight", "attention.v.shared.weight"),
                ("attention.attention.query.bias", "attention.qkv.shared.query_bias"),
                ("attention.attention.value.bias", "attention.qkv.shared.value_bias"),
                ("attention.output.dense.{kind}", "attention.projection.shared.{kind}"),
                ("lambda_{number}", "gamma_{number}"),
                ("layernorm_after.{kind}", "experts.vision.norm.{kind}"),
                ("intermediate.dense.{kind}", "experts.vision.fc1.{kind}"),
                ("output.dense.{kind}", "experts.vision.fc2.{kind}"),
            )
        ),
    ),
    prefix=r"(beit|data2vec_vision)\.",  # Data2Vec for images (arXiv 2202.03555) is BEiT's network under another name
    leftovers=_LEFTOVERS,
)

_CLASSIFIED = HeadTask(
    "fine-tuned on classes", ("classifier_norm", "classifier"), models.VLMoForImageClassification
)
HEADS = (
    _CLASSIFIED,
    HeadTask("pre-trained", ("mim_head.decoder",), models.VLMoForMaskedImageModeling),
    HeadTask("without a head", (), models.VLMoForMaskedImageModeling),
)


def recognises(state_dict: Mapping[str, Tensor]) -> bool:
    """Return True for the keys of a BEiT, published or of Hugging Face; other vision Transformers have other biases."""
    if _is_published(state_dict):
        return {"cls_token", "blocks.0.norm2.weight"} <= state_dict.keys()
    names = {HUGGING_FACE.ours(key) for key in state_dict}
    plain = any(key.endswith(".0.attention.attention.key.bias") for key in state_dict)
    return {_CLASS_TOKEN, "vlmo.blocks.0.attention.q.shared.weight"} <= names and not plain


def _is_published(state_dict: Mapping[str, Tensor]) -> bool:
    return "blocks.0.attn.q_bias" in state_dict


def convert(
    state_dict: Mapping[str, Tensor],
    *,
    config: Mapping[str, Any] | None = None,
    num_attention_heads: int | None = None,
) -> Conversion:
    """Convert BEiT to a stage-1 model; with its classifier (`head` behind `fc_norm`), to an image classifier.

    Args:
        config: `config.json` of a Hugging Face folder.
        num_attention_heads: By default those of base or large, or what a position table tells.

    Raises:
        ValueError: VLMo does not have the file's architecture, or its sizes do not fit together.
    """
    config = config or {}
    is_published = _is_published(state_dict)
    tensors = Tensors(state_dict, PUBLISHED if is_published else HUGGING_FACE)
    task, settings = layout.find_head(HEADS, tensors)
    table = None if layout.OUR_IMAGE_POSITIONS in tensors.weights else _take_table(tensors)
    columns = None if table is None else table.shape[1]
    sizes = layout.common_sizes(tensors, columns=columns, num_attention_heads=num_attention_heads)
    if (activation := config.get("hidden_act", "gelu")) != "gelu":
        raise ValueError(f"config.json has hidden_act {activation!r}; VLMo computes 'gelu'.")
    if table is None:
        grid = layout.grid_side(
            "pos_embed", tensors.shape(layout.OUR_IMAGE_POSITIONS, axes=2)[0], num_fixed=1
        )
    else:
        grid = layout.grid_side(
            "the position table of this BEiT", len(table), num_fixed=NUM_CLASS_ROWS, relative=True
        )
    names = {str(number): str(name) for number, name in dict(config.get("id2label") or {}).items()}
    if task is _CLASSIFIED and names.keys() == set(map(str, range(settings["num_labels"]))):
        del settings["num_labels"]
        settings["id2label"] = {int(number): name for number, name in names.items()}
        settings["label2id"] = {name: int(number) for number, name in names.items()}
    ours = models.VLMoConfig(
        num_fusion_layers=0,  # stage 3 adds them, from the expert that its recipe names
        max_text_positions=layout.MAX_TEXT_POSITIONS,
        image_size=sizes["patch_size"] * grid,
        position_embedding="absolute" if table is None else "relative",
        layer_norm_eps=1e-6 if is_published else config.get("layer_norm_eps", 1e-12),
        **sizes,
        **settings,
    )
    notes = layout.note_on_depth("BEiT", ours)
    # A truncated file must not pass for one whose last norm is that of the pooled vector.
    mean_pooled = "classifier_norm.weight" in tensors.weights or config.get(
        "use_mean_pooling", bool(config)
    )
    foreign = "mim_head." if task is _CLASSIFIED else "classifier"
    tensors.leave_out([name for name in tensors.weights if name.startswith(foreign)])
    weights = tensors.weights
    width = ours.hidden_size
    like = tensors.weights[_CLASS_TOKEN]
    # What BEiT lacks, at values that change nothing.
    if table is not None:
        text_rows = table.new_zeros(NUM_CROSS_ROWS + 2 * layout.MAX_TEXT_POSITIONS, table.shape[1])
        weights[layout.OUR_TABLE] = torch.cat([table, text_rows])
    weights["vlmo.modality_types.weight"] = like.new_zeros(ours.num_modality_types, width)
    notes.append("BEiT has no modality types: they start at zero.")
    if mean_pooled and _NORM not in weights and _TOKEN_HEAD not in weights:
        weights |= {_NORM: like.new_ones(width), "vlmo.norm.bias": like.new_zeros(width)}
        notes.append(
            "It has no final norm: the norm starts as the identity (weight one, bias zero)."
        )
    created = [r"vlmo\.text_embeddings\.", r"vlmo\.blocks\.\d+\.experts\.language\."]
    if task is not _CLASSIFIED:
        created += [r"mim_head\.mask_token"] * (_MASK_TOKEN not in weights)
        created += [r"mim_head\.decoder\."] * (_TOKEN_HEAD not in weights)
    return Conversion(
        kind=f"BEiT{'' if is_published else ' of Hugging Face'}, {task.title}",
        tensors=tensors,
        model_class=task.model_class,
        config=ours,
        created="|".join(created),
        notes=notes,
    )


def _take_table(tensors: Tensors) -> Float[Tensor, "rows layers*heads"]:
    """Take the tables of all layers out of the weights and join them; a shared one is added to that of each layer."""
    depth = len({name.split(".")[2] for name in tensors.weights if name.startswith("vlmo.blocks.")})
    shared = tensors.weights.pop(_SHARED, None)
    own = [
        tensors.weights.pop(name)
        for layer in range(depth)
        if (name := f"layer_table.{layer}") in tensors.weights
    ]
    if len(own) != (depth if own or shared is None else 0):
        raise ValueError(
            f"{len(own)} of {depth} blocks have a {_BIAS}; VLMo needs all, or pos_embed in their place."
        )
    if shared is not None:
        own = [shared + table for table in own] or [shared] * depth
    return torch.cat(own, dim=1)
