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

_NORM = "vlmo.norm.weight"
_MASK_TOKEN = "mim_head.mask_token"
_TOKEN_HEAD = "mim_head.decoder.weight"
# Joined with each `layer_table` into our table.
_SHARED_TABLE = "shared_table"
_TABLE = "relative_position_bias_table"
# Also the layers in which BEiT-2 pre-trains its class token.
_LEFTOVERS = r"(.*\.)?(relative_position_index|num_batches_tracked)|cls_pt_(layers|lm_head)\..+"

NAMES = {
    "cls_token": layout.OUR_CLASS_TOKEN,
    "patch_embed.proj.{kind}": "vlmo.image_embeddings.projection.{kind}",
    "pos_embed": layout.OUR_IMAGE_POSITIONS,
    "norm.{kind}": "vlmo.norm.{kind}",
    "mask_token": _MASK_TOKEN,
    "lm_head.{kind}": "mim_head.decoder.{kind}",
    "fc_norm.{kind}": "classifier_norm.{kind}",
    "head.{kind}": "classifier.{kind}",
    f"rel_pos_bias.{_TABLE}": _SHARED_TABLE,
    f"blocks.{{layer}}.attn.{_TABLE}": "layer_table.{layer}",
} | layout.in_blocks(
    "blocks.{layer}.",
    {
        **layout.ATTENTION_NAMES,
        "norm2.{kind}": "experts.vision.norm.{kind}",
        "mlp.fc{number}.{kind}": "experts.vision.fc{number}.{kind}",
    },
)
"""Published names and ours."""
PUBLISHED = NameTable(NAMES, leftovers=_LEFTOVERS)
HUGGING_FACE = NameTable(
    {
        "embeddings.cls_token": layout.OUR_CLASS_TOKEN,
        "embeddings.patch_embeddings.projection.{kind}": "vlmo.image_embeddings.projection.{kind}",
        "layernorm.{kind}": "vlmo.norm.{kind}",
        "embeddings.mask_token": _MASK_TOKEN,
        "lm_head.{kind}": "mim_head.decoder.{kind}",
        "pooler.layernorm.{kind}": "classifier_norm.{kind}",
        "classifier.{kind}": "classifier.{kind}",
        f"encoder.relative_position_bias.{_TABLE}": _SHARED_TABLE,
        f"encoder.layer.{{layer}}.attention.attention.relative_position_bias.{_TABLE}": "layer_table.{layer}",
    }
    | layout.in_blocks(
        "encoder.layer.{layer}.",
        {
            "layernorm_before.{kind}": "norm1.shared.{kind}",
            "attention.attention.query.weight": "attention.q.shared.weight",
            "attention.attention.key.weight": "attention.k.shared.weight",
            "attention.attention.value.weight": "attention.v.shared.weight",
            "attention.attention.query.bias": "attention.qkv.shared.query_bias",
            "attention.attention.value.bias": "attention.qkv.shared.value_bias",
            "attention.output.dense.{kind}": "attention.projection.shared.{kind}",
            "lambda_{number}": "gamma_{number}",
            "layernorm_after.{kind}": "experts.vision.norm.{kind}",
            "intermediate.dense.{kind}": "experts.vision.fc1.{kind}",
            "output.dense.{kind}": "experts.vision.fc2.{kind}",
        },
    ),
    # Data2Vec for images (arXiv 2202.03555) is BEiT's network under another name.
    prefix=r"(beit|data2vec_vision)\.",
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


def recognizes(state_dict: Mapping[str, Tensor]) -> bool:
    """Return True for the keys of a BEiT, published or of Hugging Face; other vision Transformers have other biases."""
    if _is_published(state_dict):
        return {"cls_token", "blocks.0.norm2.weight"} <= state_dict.keys()
    names = {HUGGING_FACE.ours(key) for key in state_dict}
    # ViT of Hugging Face has the same names, and a bias of the keys, which BEiT has not.
    has_key_bias = any(key.endswith(".0.attention.attention.key.bias") for key in state_dict)
    return {
        layout.OUR_CLASS_TOKEN,
        "vlmo.blocks.0.attention.q.shared.weight",
    } <= names and not has_key_bias


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
    if _is_published(state_dict):
        publisher = "BEiT"
        tensors = Tensors(state_dict, PUBLISHED)
        norm_eps = 1e-6
    else:
        publisher = "BEiT of Hugging Face"
        tensors = Tensors(state_dict, HUGGING_FACE)
        norm_eps = config.get("layer_norm_eps", 1e-12)
    weights = tensors.weights
    task, settings = layout.find_head(HEADS, tensors)
    # Other activations have the same tensors.
    activation = config.get("hidden_act", "gelu")
    if activation != "gelu":
        raise ValueError(f"config.json has hidden_act {activation!r}; VLMo computes 'gelu'.")
    settings |= _sizes(tensors, num_attention_heads=num_attention_heads)
    names = {int(number): str(name) for number, name in dict(config.get("id2label") or {}).items()}
    if task is _CLASSIFIED and names.keys() == set(range(settings["num_labels"])):
        del settings["num_labels"]
        settings["id2label"] = names
        settings["label2id"] = {name: number for number, name in names.items()}
    ours = models.VLMoConfig(
        # Stage 3 adds them, from the expert that its recipe names.
        num_fusion_layers=0,
        max_text_positions=layout.MAX_TEXT_POSITIONS,
        layer_norm_eps=norm_eps,
        **settings,
    )
    notes = layout.note_on_depth("BEiT", ours)
    # fc_norm is the norm of mean pooling, which takes the place of the final one.
    # A truncated file must not pass for one whose last norm is that of the pooled vector.
    mean_pooled = "classifier_norm.weight" in weights or config.get(
        "use_mean_pooling", bool(config)
    )
    # A file may hold both heads; a model has one.
    tensors.leave_out("mim_head." if task is _CLASSIFIED else "classifier")
    notes += _add_missing(weights, ours, mean_pooled=mean_pooled)
    return Conversion(
        kind=f"{publisher}, {task.title}",
        tensors=tensors,
        model_class=task.model_class,
        config=ours,
        created=_created(weights, masks=task is not _CLASSIFIED),
        notes=notes,
    )


def _sizes(tensors: Tensors, *, num_attention_heads: int | None) -> dict[str, Any]:
    """Return the settings that the tensors tell; a position table gets the rows of texts, which BEiT lacks."""
    weights = tensors.weights
    if layout.OUR_IMAGE_POSITIONS in weights:
        rows = tensors.rows(layout.OUR_IMAGE_POSITIONS)
        grid = layout.grid_side("pos_embed", rows, num_fixed=1)
        sizes = layout.common_sizes(tensors, num_attention_heads=num_attention_heads)
        positions = "absolute"
    else:
        table = _take_table(tensors)
        sizes = layout.common_sizes(
            tensors, columns=table.shape[1], num_attention_heads=num_attention_heads
        )
        grid = layout.grid_side(
            "the position table of this BEiT", len(table), num_fixed=NUM_CLASS_ROWS, relative=True
        )
        # They change nothing at zero.
        text_rows = table.new_zeros(NUM_CROSS_ROWS + 2 * layout.MAX_TEXT_POSITIONS, table.shape[1])
        weights[layout.OUR_TABLE] = torch.cat([table, text_rows])
        positions = "relative"
    return sizes | {"position_embedding": positions, "image_size": sizes["patch_size"] * grid}


def _created(weights: Mapping[str, Tensor], *, masks: bool) -> str:
    """Return a pattern of the weights that start anew; `masks` if the model has a head of masked patches."""
    # Stage 2 trains the text side, which a model of images does not have.
    created = r"vlmo\.text_embeddings\.|vlmo\.blocks\.\d+\.experts\.language\."
    if masks and _MASK_TOKEN not in weights:
        created += r"|mim_head\.mask_token"
    if masks and _TOKEN_HEAD not in weights:
        created += r"|mim_head\.decoder\."
    return created


def _add_missing(
    weights: dict[str, Tensor], config: models.VLMoConfig, *, mean_pooled: bool
) -> list[str]:
    """Add parameters that BEiT lacks, at values that change nothing; return notes."""
    width = config.hidden_size
    cls_token = weights[layout.OUR_CLASS_TOKEN]
    weights["vlmo.modality_types.weight"] = cls_token.new_zeros(config.num_modality_types, width)
    notes = ["BEiT has no modality types: they start at zero."]
    if mean_pooled and _NORM not in weights and _TOKEN_HEAD not in weights:
        weights[_NORM] = cls_token.new_ones(width)
        weights["vlmo.norm.bias"] = cls_token.new_zeros(width)
        notes.append(
            "It has no final norm: the norm starts as the identity (weight one, bias zero)."
        )
    return notes


def _take_table(tensors: Tensors) -> Float[Tensor, "rows layers*heads"]:
    """Take the tables of all layers out of the weights and join them; a shared one is added to that of each layer."""
    depth = len({name.split(".")[2] for name in tensors.weights if name.startswith("vlmo.blocks.")})
    shared = tensors.weights.pop(_SHARED_TABLE, None)
    names = [f"layer_table.{layer}" for layer in range(depth)]
    tables = [tensors.weights.pop(name) for name in names if name in tensors.weights]
    if shared is not None:
        # Biases add up in the logits, and so do their tables.
        tables = [shared + table for table in tables] or [shared] * depth
    if len(tables) != depth:
        raise ValueError(
            f"{len(tables)} of {depth} blocks have a {_TABLE}; VLMo needs all, or pos_embed instead."
        )
    return torch.cat(tables, dim=1)
