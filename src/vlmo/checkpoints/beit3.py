"""Published layout of BEiT-3 (arXiv 2208.10442), this backbone with its own parameters for each modality."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from vlmo import model as models
from vlmo.checkpoints import layout
from vlmo.checkpoints.layout import Conversion, HeadTask, NameTable, Tensors

# In front of both position tables.
_NUM_UNUSED_POSITIONS = 2
_IMAGE_POSITIONS = "beit3.encoder.embed_positions.A.weight"
_WORDS = "beit3.text_embed.weight"

NAMES = NameTable(
    layout.for_experts(
        {
            _WORDS: layout.OUR_WORDS,
            "beit3.vision_embed.cls_token": layout.OUR_CLASS_TOKEN,
            "beit3.vision_embed.proj.{kind}": "vlmo.image_embeddings.projection.{kind}",
            _IMAGE_POSITIONS: layout.OUR_IMAGE_POSITIONS,
            "beit3.encoder.embed_positions.B.weight": layout.OUR_TEXT_POSITIONS,
            "beit3.encoder.layer_norm.{expert}.{kind}": "vlmo.norm.{expert}.{kind}",
            # Files for VQA have no norm after the blocks, but one before the pooler, which reads the image's first
            # token.
            "pooler.norm.{kind}": "vlmo.norm.vision.{kind}",
            "pooler.dense.{kind}": "vlmo.pooler.dense.{kind}",
            "head.0.{kind}": "answer_head.dense.{kind}",
            "head.1.{kind}": "answer_head.norm.{kind}",
            "head.3.{kind}": "answer_head.classifier.{kind}",
            "head.norm1.{kind}": "reasoning_head.input_norm.{kind}",
            "head.dense1.{kind}": "reasoning_head.dense.{kind}",
            "head.norm2.{kind}": "reasoning_head.norm.{kind}",
            "head.dense2.{kind}": "reasoning_head.classifier.{kind}",
            "fc_norm.{kind}": "classifier_norm.{kind}",
            "head.{kind}": "classifier.{kind}",
            "vision_head.weight": "contrast_head.image_projection.weight",
            "language_head.weight": "contrast_head.text_projection.weight",
            "logit_scale": "contrast_head.logit_scale",
            "mlm_head.{kind}": "mlm_head.decoder.{kind}",
        }
        | layout.in_blocks(
            "beit3.encoder.layers.{layer}.",
            {
                "self_attn_layer_norm.{expert}.{kind}": "norm1.{expert}.{kind}",
                "self_attn.inner_attn_ln.{expert}.{kind}": "attention.inner_norm.{expert}.{kind}",
                "self_attn.out_proj.{expert}.{kind}": "attention.projection.{expert}.{kind}",
                "self_attn.q_proj.{expert}.bias": "attention.qkv.{expert}.query_bias",
                "self_attn.k_proj.{expert}.bias": "attention.qkv.{expert}.key_bias",
                "self_attn.v_proj.{expert}.bias": "attention.qkv.{expert}.value_bias",
                "self_attn.{part}_proj.{expert}.weight": "attention.{part}.{expert}.weight",
                "final_layer_norm.{expert}.{kind}": "experts.{expert}.norm.{kind}",
                "ffn.{expert}.fc{number}.{kind}": "experts.{expert}.fc{number}.{kind}",
                "ffn.{expert}.ffn_layernorm.{kind}": "experts.{expert}.inner_norm.{kind}",
            },
        ),
        {"A": "vision", "B": "language"},
    ),
    leftovers=r"beit3\.vision_embed\.mask_token|mim_head\..+|.*num_batches_tracked",
)

_ANSWERS = HeadTask(
    "fine-tuned on VQA",
    ("answer_head",),
    models.VLMoForVisualQuestionAnswering,
    {"use_pooler": True},
)
_CLASSES = HeadTask(
    "fine-tuned on classes", ("classifier_norm", "classifier"), models.VLMoForImageClassification
)
_MASKED_WORDS = HeadTask(
    "pre-trained, without its visual tokens' head", ("mlm_head.decoder",), models.VLMoForMaskedLM
)
_CAPTIONS = HeadTask(
    "fine-tuned for captions", ("mlm_head.decoder",), models.VLMoForImageCaptioning
)
HEADS = (
    _ANSWERS,
    HeadTask(
        "fine-tuned on NLVR2", ("reasoning_head",), models.VLMoForVisualReasoning, layout.TRUE_FALSE
    ),
    _CLASSES,
    HeadTask("with contrast heads", ("contrast_head",), models.VLMoForImageTextRetrieval),
    _CAPTIONS,
    HeadTask("without a head", (), models.VLMoModel),
)


def recognizes(state_dict: Mapping[str, Tensor]) -> bool:
    """Return True for the keys of BEiT-3."""
    return {_IMAGE_POSITIONS, _WORDS} <= state_dict.keys()


def convert(
    state_dict: Mapping[str, Tensor], *, num_attention_heads: int | None = None, **_: object
) -> Conversion:
    """Convert BEiT-3, fine-tuned for a task, to that task's model; pre-trained to masked words, else to a backbone.

    Args:
        num_attention_heads: Needed only where the width is neither that of base nor that of large.

    Raises:
        ValueError: A tensor that tells the sizes is missing, or the sizes do not fit together.
    """
    tensors = Tensors(state_dict, NAMES)
    weights = tensors.weights
    task, settings = layout.find_head(HEADS, tensors)
    # Pre-trained files and those for captions have the same head of words; only the first have that
    # of visual tokens.
    if task is _CAPTIONS and any(key.startswith("mim_head.") for key in tensors.unused):
        task = _MASKED_WORDS
    if "mlm_head.decoder" not in task.heads:
        tensors.leave_out("mlm_head.decoder.")
    # fairseq's positions begin behind those of padding, which no token has.
    texts = tensors.rows(layout.OUR_TEXT_POSITIONS) - _NUM_UNUSED_POSITIONS
    images = tensors.rows(layout.OUR_IMAGE_POSITIONS) - _NUM_UNUSED_POSITIONS
    words = tensors.rows(layout.OUR_WORDS)
    if texts < 1 or words < 2:  # padding is number 1
        raise ValueError(
            f"this BEiT-3 has {texts} text positions and {words} words; expected at least 1 and 2."
        )
    sizes = layout.common_sizes(tensors, num_attention_heads=num_attention_heads)
    grid = layout.grid_side(_IMAGE_POSITIONS, images, num_fixed=1)
    # Only files with contrast heads tell the size of the projection.
    settings.setdefault("projection_size", sizes["hidden_size"])
    config = models.VLMoConfig.beit3_base(
        image_size=sizes["patch_size"] * grid,
        vocab_size=words,
        max_text_positions=texts,
        **sizes,
        **settings,
    )
    notes = layout.note_on_depth("BEiT-3", config)
    if task in {_ANSWERS, _CLASSES}:
        _add_final_norms(weights, ("language",) if task is _ANSWERS else ("vision", "language"))
    elif task.model_class not in {models.VLMoForVisualReasoning, models.VLMoForImageCaptioning}:
        notes.append(
            "BEiT-3 has no matching head: it embeds images, texts and pairs, and scores no pair."
        )
    for name in (layout.OUR_IMAGE_POSITIONS, layout.OUR_TEXT_POSITIONS):
        weights[name] = weights[name][_NUM_UNUSED_POSITIONS:]
    return Conversion(
        kind=f"BEiT-3, {task.title}",
        tensors=tensors,
        model_class=task.model_class,
        config=config,
        # `--num_max_bpe_tokens` of the published fine-tuning commands.
        max_text_length=min(64, texts),
        text="sentencepiece",
        # The published code: datasets.py, build_imagenet_transform; build_transform of every other task takes 0.5.
        imagenet_pixels=task is _CLASSES,
        notes=notes,
    )


def _add_final_norms(weights: dict[str, Tensor], sides: tuple[str, ...]) -> None:
    """Add final norms as the identity, where the published code has no norm after the blocks."""
    cls_token = weights[layout.OUR_CLASS_TOKEN]
    width = cls_token.shape[-1]
    for side in sides:
        weights.setdefault(f"vlmo.norm.{side}.weight", cls_token.new_ones(width))
        weights.setdefault(f"vlmo.norm.{side}.bias", cls_token.new_zeros(width))
