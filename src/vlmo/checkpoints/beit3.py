"""BEiT-3 (arXiv 2208.10442), this backbone with its own parameters for each modality: published layout, and timm's."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from vlmo import model as models
from vlmo.checkpoints.layout import (
    OUR_IMAGE_POSITIONS,
    OUR_TEXT_POSITIONS,
    OUR_WORDS,
    Conversion,
    HeadTask,
    NameTable,
    common_sizes,
    find_task,
    grid_of_positions,
    note_on_depth,
    shape_of,
    translate,
)

_BLOCK = "vlmo.blocks.{layer}."
_NUM_UNUSED_POSITIONS = 2  # in front of both position tables
_IMAGE_POSITIONS = "beit3.encoder.embed_positions.A.weight"
_WORDS = "beit3.text_embed.weight"
_JOINT_BIAS = "joint_bias"  # of query, key and value
_UNUSED = re.compile(r"beit3\.vision_embed\.mask_token|(mlm_head|mim_head)\..+|.*num_batches_tracked")

NAMES = NameTable(
    (
        (_WORDS, OUR_WORDS),
        ("beit3.vision_embed.cls_token", "vlmo.image_embeddings.cls_token"),
        ("beit3.vision_embed.proj.{kind}", "vlmo.image_embeddings.projection.{kind}"),
        (_IMAGE_POSITIONS, OUR_IMAGE_POSITIONS),
        ("beit3.encoder.embed_positions.B.weight", OUR_TEXT_POSITIONS),
        ("beit3.encoder.layer_norm.{expert}.{kind}", "vlmo.norm.{expert}.{kind}"),
        # Files for VQA have no norm after the blocks, but one before the pooler, which reads the image's first token.
        ("pooler.norm.{kind}", "vlmo.norm.vision.{kind}"),
        ("pooler.dense.{kind}", "vlmo.pooler.dense.{kind}"),
        ("head.0.{kind}", "answer_head.dense.{kind}"),
        ("head.1.{kind}", "answer_head.norm.{kind}"),
        ("head.3.{kind}", "answer_head.classifier.{kind}"),
        ("head.norm1.{kind}", "reasoning_head.input_norm.{kind}"),
        ("head.dense1.{kind}", "reasoning_head.dense.{kind}"),
        ("head.norm2.{kind}", "reasoning_head.norm.{kind}"),
        ("head.dense2.{kind}", "reasoning_head.classifier.{kind}"),
        ("fc_norm.{kind}", "classifier_norm.{kind}"),
        ("head.{kind}", "classifier.{kind}"),
        ("vision_head.weight", "contrast_head.image_projection.weight"),
        ("language_head.weight", "contrast_head.text_projection.weight"),
        ("logit_scale", "contrast_head.logit_scale"),
        *(
            ("beit3.encoder.layers.{layer}." + theirs, _BLOCK + ours)
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


_CLASSES = HeadTask("fine-tuned on {} classes", ("classifier_norm", "classifier"), models.VLMoForImageClassification)
_BACKBONE = HeadTask("without a head", (), models.VLMoModel)
TASKS = (
    HeadTask("fine-tuned on VQA", ("answer_head",), models.VLMoForVisualQuestionAnswering, {"use_pooler": True}),
    HeadTask("fine-tuned on NLVR2", ("reasoning_head",), models.VLMoForVisualReasoning),
    _CLASSES,
    HeadTask("with contrast heads", ("contrast_head",), models.VLMoForImageTextRetrieval),
    _BACKBONE,
)


def recognises(state_dict: Mapping[str, Tensor]) -> bool:
    """Return True for the keys of BEiT-3."""
    return {_IMAGE_POSITIONS, _WORDS} <= state_dict.keys()


def convert(state_dict: Mapping[str, Tensor], *, num_attention_heads: int | None = None, **_: object) -> Conversion:
    """Convert BEiT-3, fine-tuned for retrieval, VQA, NLVR2 or ImageNet, to that task's model; else to a backbone.

    Args:
        num_attention_heads: Needed only where the width is neither that of base nor that of large.

    Raises:
        ValueError: A tensor that tells the sizes is missing, or the sizes do not fit together.
    """
    weights, keys = translate(state_dict, NAMES)
    task, title, settings = find_task(TASKS, weights, NAMES)
    texts = shape_of(weights, OUR_TEXT_POSITIONS, axes=2, names=NAMES)[0] - _NUM_UNUSED_POSITIONS
    words = shape_of(weights, OUR_WORDS, axes=2, names=NAMES)[0]
    if texts < 1 or words < 2:  # padding is number 1
        raise ValueError(f"this BEiT-3 has {texts} text positions and {words} words; expected at least 1 and 2.")
    settings |= {"vocab_size": words, "max_text_positions": texts}
    config = _config(weights, NAMES, settings, asked=num_attention_heads, num_unused=_NUM_UNUSED_POSITIONS)
    notes: list[str] = []
    if task.model_class in {models.VLMoForVisualQuestionAnswering, models.VLMoForImageClassification}:
        # The published code has no norm after the blocks in these tasks.
        _add_norms(weights, config, sides=("language",) if config.use_pooler else ("vision", "language"))
    elif task.model_class is not models.VLMoForVisualReasoning:
        notes.append(
            "BEiT-3 has no matching head and no pooler: it embeds images, texts and pairs, and scores no pair."
        )
    weights |= {name: weights[name][_NUM_UNUSED_POSITIONS:] for name in (OUR_IMAGE_POSITIONS, OUR_TEXT_POSITIONS)}
    others = state_dict.keys() - keys.values()
    return Conversion(
        kind=f"BEiT-3, {title}",
        model_class=task.model_class,
        config=config,
        weights=weights,
        unused={key: state_dict[key] for key in others if _UNUSED.fullmatch(key)},
        unknown=sorted(key for key in others if not _UNUSED.fullmatch(key)),
        # `--num_max_bpe_tokens` of the published fine-tuning commands
        max_text_length=min(64, config.max_text_positions),
        text="sentencepiece",
        # The published code: datasets.py, build_imagenet_transform; build_transform of every other task takes 0.5.
        imagenet_pixels=task is _CLASSES,
        notes=notes + note_on_depth("BEiT-3", config),
    )


def _config(
    named: Mapping[str, Tensor],
    names: NameTable,
    settings: Mapping[str, Any],
    *,
    asked: int | None,
    num_unused: int = 0,
) -> models.VLMoConfig:
    """Return the sizes of a file, with `settings`; `num_unused` positions stand in front of the image's."""
    sizes = common_sizes(named, names, columns=None, num_attention_heads=asked)
    positions = shape_of(named, OUR_IMAGE_POSITIONS, axes=2, names=names)[0] - num_unused
    grid = grid_of_positions(str(names.published(OUR_IMAGE_POSITIONS)), positions)
    sizes |= {"image_size": sizes["patch_size"] * grid, "projection_size": sizes["hidden_size"]}
    return models.VLMoConfig.beit3_base(**{**sizes, **settings})


# timm's models beit3_*: the vision branch alone, as a Transformer of timm.

TIMM = NameTable(
    (
        ("cls_token", "vlmo.image_embeddings.cls_token"),
        ("patch_embed.proj.{kind}", "vlmo.image_embeddings.projection.{kind}"),
        ("pos_embed", OUR_IMAGE_POSITIONS),
        ("norm.{kind}", "vlmo.norm.vision.{kind}"),
        ("fc_norm.{kind}", "classifier_norm.{kind}"),
        ("head.{kind}", "classifier.{kind}"),
        *(
            ("blocks.{layer}." + theirs, _BLOCK + ours)
            for theirs, ours in (
                ("norm1.{kind}", "norm1.vision.{kind}"),
                ("attn.qkv.weight", "attention.qkv.vision.weight"),
                ("attn.qkv.bias", _JOINT_BIAS),
                ("attn.norm.{kind}", "attention.inner_norm.vision.{kind}"),
                ("attn.proj.{kind}", "attention.projection.vision.{kind}"),
                ("norm2.{kind}", "experts.vision.norm.{kind}"),
                ("mlp.fc{number}.{kind}", "experts.vision.fc{number}.{kind}"),
                ("mlp.norm.{kind}", "experts.vision.inner_norm.{kind}"),
            )
        ),
    )
)
_TIMM_CREATED = [r"vlmo\.text_embeddings\.", r"vlmo\.blocks\.\d+\.(.+\.)?language\."]


def is_timm(state_dict: Mapping[str, Tensor]) -> bool:
    """Return True for the keys of timm's beit3 models: no other of its Transformers norms inside both layers."""
    inner = {"blocks.0.attn.norm.weight", "blocks.0.mlp.norm.weight"}
    return {"cls_token", "pos_embed", "blocks.0.attn.qkv.bias"} | inner <= state_dict.keys()


def convert_timm(
    state_dict: Mapping[str, Tensor], *, num_attention_heads: int | None = None, **_: object
) -> Conversion:
    """Convert timm's BEiT-3 to an image classifier, or without a classifier to a backbone; ValueError as `convert`."""
    named, keys = translate(state_dict, TIMM)
    task, title, settings = find_task((_CLASSES, _BACKBONE), named, TIMM)
    is_classifier = task is _CLASSES
    # It reads no text.
    config = _config(named, TIMM, settings | {"vocab_size": 2}, asked=num_attention_heads)
    width = config.hidden_size
    weights = {name: tensor for name, tensor in named.items() if is_classifier or not name.startswith("classifier")}
    unused = [keys[name] for name in named if name not in weights]
    for layer in range(config.num_hidden_layers):
        joint = weights.pop(_BLOCK.format(layer=layer) + _JOINT_BIAS, None)
        if joint is not None and joint.shape == (3 * width,):
            for part, bias in zip(("query", "key", "value"), joint.split(width), strict=True):
                weights[f"{_BLOCK.format(layer=layer)}attention.qkv.vision.{part}_bias"] = bias
    notes = ["It embeds images alone: the language branch is random.", *note_on_depth("BEiT-3", config)]
    if not is_classifier and "vlmo.norm.vision.weight" not in weights:
        notes.append("It has no norm after the blocks: that starts at weight one and bias zero.")
    _add_norms(weights, config, sides=("vision", "language"))
    return Conversion(
        kind=f"BEiT-3 of timm, {title}",
        model_class=task.model_class,
        config=config,
        weights=weights,
        unused={key: state_dict[key] for key in unused},
        unknown=sorted(state_dict.keys() - keys.values()),
        created=_TIMM_CREATED,
        imagenet_pixels=is_classifier,  # as the same weights in `convert`, though timm gives ImageNet's for all
        notes=notes,
    )


def _add_norms(weights: dict[str, Tensor], config: models.VLMoConfig, *, sides: tuple[str, ...]) -> None:
    """Add norms after the blocks, of weight one and bias zero, where the file has none."""
    like = weights["vlmo.image_embeddings.cls_token"]
    for side in sides:
        weights.setdefault(f"vlmo.norm.{side}.weight", like.new_ones(config.hidden_size))
        weights.setdefault(f"vlmo.norm.{side}.bias", like.new_zeros(config.hidden_size))
