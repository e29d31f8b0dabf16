"""Layout of the published VLMo checkpoints: names, sizes and task read from the tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from vlmo import model as models
from vlmo.checkpoints import layout
from vlmo.checkpoints.layout import Conversion, HeadTask, NameTable, Tensors
from vlmo.model.embeddings import NUM_CLASS_ROWS, NUM_CROSS_ROWS

TABLE = "relative_position_bias_table"
# Rows of a published table that do not depend on the image size.
NUM_FIXED_ROWS = NUM_CLASS_ROWS + NUM_CROSS_ROWS + 2 * layout.MAX_TEXT_POSITIONS

NAMES = NameTable(
    layout.for_experts(
        {
            "transformer.cls_token": layout.OUR_CLASS_TOKEN,
            "transformer.patch_embed.proj.{kind}": "vlmo.image_embeddings.projection.{kind}",
            "transformer.pos_embed": layout.OUR_IMAGE_POSITIONS,
            "transformer.norm.{kind}": "vlmo.norm.{kind}",
            TABLE: layout.OUR_TABLE,
            "text_embeddings.word_embeddings.weight": layout.OUR_WORDS,
            "text_embeddings.token_type_embeddings.weight": "vlmo.text_embeddings.segments.weight",
            "text_embeddings.position_embeddings.weight": layout.OUR_TEXT_POSITIONS,
            "text_embeddings.LayerNorm.{kind}": "vlmo.text_embeddings.norm.{kind}",
            "token_type_embeddings.weight": "vlmo.modality_types.weight",
            "pooler.dense.{kind}": "vlmo.pooler.dense.{kind}",
            "itc_{side}_proj.fc.weight": "contrast_head.{side}_projection.weight",
            "itc_vl_{side}_proj.fc.weight": "fusion_contrast_head.{side}_projection.weight",
            "logit_scale": "contrast_head.logit_scale",
            "logit_vl_scale": "fusion_contrast_head.logit_scale",
            "itm_score.fc.{kind}": "match_head.classifier.{kind}",
            "mlm_score.transform.dense.{kind}": "mlm_head.dense.{kind}",
            "mlm_score.transform.LayerNorm.{kind}": "mlm_head.norm.{kind}",
            "mlm_score.decoder.weight": "mlm_head.decoder.weight",
            "mlm_score.bias": "mlm_head.decoder.bias",
            "vqa_classifier.0.{kind}": "answer_head.dense.{kind}",
            "vqa_classifier.1.{kind}": "answer_head.norm.{kind}",
            "vqa_classifier.3.{kind}": "answer_head.classifier.{kind}",
            "nlvr2_classifier.0.{kind}": "reasoning_head.dense.{kind}",
            "nlvr2_classifier.1.{kind}": "reasoning_head.norm.{kind}",
            "nlvr2_classifier.3.{kind}": "reasoning_head.classifier.{kind}",
        }
        | layout.in_blocks(
            "transformer.blocks.{layer}.",
            {
                **layout.ATTENTION_NAMES,
                "norm2_{expert}.{kind}": "experts.{expert}.norm.{kind}",
                "mlp_{expert}.fc{number}.{kind}": "experts.{expert}.fc{number}.{kind}",
            },
        ),
        {"imag": "vision", "text": "language", "vl": "vision_language"},
    ),
    leftovers=r"(transformer\.)?(text_|text_imag_)?relative_position_index|text_embeddings\.position_ids",
)

_FOR_PAIRS = {"use_pooler": True, "use_match_head": True}
_LANGUAGE = HeadTask("pre-trained on text (stage 2)", ("mlm_head",), models.VLMoForMaskedLM)
HEADS = (
    HeadTask(
        "fine-tuned on VQA",
        ("answer_head",),
        models.VLMoForVisualQuestionAnswering,
        {"use_pooler": True},
    ),
    HeadTask(
        "fine-tuned on NLVR2",
        ("reasoning_head",),
        models.VLMoForVisualReasoning,
        {"use_pooler": True, **layout.TRUE_FALSE},
    ),
    HeadTask(
        "pre-trained on pairs (stage 3)",
        ("contrast_head", "mlm_head"),
        models.VLMoForPreTraining,
        _FOR_PAIRS,
    ),
    HeadTask(
        "pre-trained on pairs (stage 3)",
        ("match_head", "mlm_head"),
        models.VLMoForPreTraining,
        _FOR_PAIRS,
    ),
    HeadTask("fine-tuned for retrieval", ("contrast_head",), models.VLMoForImageTextRetrieval),
    HeadTask("fine-tuned for retrieval", ("match_head",), models.VLMoForImageTextRetrieval),
    _LANGUAGE,
    HeadTask("backbone without heads", (), models.VLMoModel),
)


def recognizes(state_dict: Mapping[str, Tensor]) -> bool:
    """Return True for the keys of the published VLMo layout."""
    return any(
        key.startswith("transformer.blocks.0.") and ".mlp_imag." in key for key in state_dict
    )


def convert(
    state_dict: Mapping[str, Tensor], *, num_attention_heads: int | None = None, **_: object
) -> Conversion:
    """Convert a published checkpoint; sizes, image size, text length and task are read from the tensors.

    `num_attention_heads` is needed only with absolute positions and sizes that were not published.
    ValueError if a tensor that tells a size is missing, or sizes do not fit together.
    """
    tensors = Tensors(state_dict, NAMES)
    weights = tensors.weights
    task, settings = layout.find_head(HEADS, tensors)
    columns = tensors.shape(layout.OUR_TABLE, axes=2)[1] if layout.OUR_TABLE in weights else None
    settings |= layout.common_sizes(
        tensors, columns=columns, num_attention_heads=num_attention_heads
    )
    depth = settings["num_hidden_layers"]
    fused = {int(name.split(".")[2]) for name in weights if ".vision_language." in name}
    # Vision-language experts stand in the top blocks only (VLMo, "Multiway Transformer").
    if fused != set(range(depth - len(fused), depth)):
        raise ValueError(
            f"of blocks 0-{depth - 1}, those with mlp_vl are {sorted(fused)}; expected the top ones"
        )
    # Relative tables hold 196 words in all stages; the table of absolute positions, kept unused,
    # tells the stage's length.
    text_length = layout.DEFAULT_TEXT_LENGTH
    if layout.OUR_TEXT_POSITIONS in weights:
        text_length = tensors.rows(layout.OUR_TEXT_POSITIONS)
    settings |= _position_sizes(tensors, patch_size=settings["patch_size"])
    # The published stage 2 has a pooler, which masked words do not use.
    if task is _LANGUAGE:
        tensors.leave_out("vlmo.pooler.")
    settings.setdefault("use_pooler", "vlmo.pooler.dense.weight" in weights)
    settings.setdefault("use_match_head", "match_head.classifier.weight" in weights)
    config = models.VLMoConfig(
        **settings,
        num_fusion_layers=len(fused),
        vocab_size=tensors.rows(layout.OUR_WORDS),
        contrast_fusion_branch="fusion_contrast_head.image_projection.weight" in weights,
        num_modality_types=tensors.rows("vlmo.modality_types.weight"),
    )
    return Conversion(
        kind=f"VLMo, {task.title}",
        tensors=tensors,
        model_class=task.model_class,
        config=config,
        max_text_length=text_length,
        text="wordpiece",
        notes=layout.note_on_depth("VLMo", config),
    )


def _position_sizes(tensors: Tensors, *, patch_size: int) -> dict[str, Any]:
    """Return the settings that the position tables tell; ValueError without one of images."""
    if layout.OUR_TABLE in tensors.weights:
        rows = tensors.rows(layout.OUR_TABLE)
        grid = layout.grid_side(TABLE, rows, num_fixed=NUM_FIXED_ROWS, relative=True)
        # Published files carry them, and never use them.
        tensors.leave_out(layout.OUR_TEXT_POSITIONS)
        return {"position_embedding": "relative", "image_size": grid * patch_size}
    if layout.OUR_IMAGE_POSITIONS in tensors.weights:
        rows = tensors.rows(layout.OUR_IMAGE_POSITIONS)
        grid = layout.grid_side("transformer.pos_embed", rows, num_fixed=1)
        return {
            "position_embedding": "absolute",
            "image_size": grid * patch_size,
            "max_text_positions": tensors.rows(layout.OUR_TEXT_POSITIONS),
        }
    raise ValueError(f"neither {TABLE} nor transformer.pos_embed is there; expected one of them")
