"""Published layout of BEiT-3 (arXiv 2208.10442), this backbone with its own parameters for each modality."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from vlmo import model as models
from vlmo.checkpoints import layout
from vlmo.checkpoints.layout import Conversion, HeadTask, NameTable, Tensors

_NUM_UNUSED_POSITIONS = 2  # in front of both position tables
_IMAGE_POSITIONS = "beit3.encoder.embed_positions.A.weight"
_WORDS = "beit3.text_embed.weight"

NAMES = NameTable(
    (
        (_WORDS, layout.OUR_WORDS),
        ("beit3.vision_embed.cls_token", "vlmo.image_embeddings.cls_token"),
        ("beit3.vision_embed.proj.{kind}", "vlmo.image_embeddings.projection.{kind}"),
        (_IMAGE_POSITIONS, layout.OUR_IMAGE_POSITIONS),
        ("beit3.encoder.embed_positions.B.weight", layout.OUR_TEXT_POSITIONS),
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
        ("mlm_head.{kind}", "mlm_head.decoder.{kind}"),
        *(
            ("beit3.encoder.layers.{layer}." + theirs, "vlmo.blocks.{layer}." + ours)
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


def recognises(state_dict: Mapping[str, Tensor]) -> bool:
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
    task, settings = layout.find_head(HEADS, tensors)
    if task is _CAPTIONS and any(key.startswith("mim_head.") for key in tensors.unused):
        task = _MASKED_WORDS
    if "mlm_head.decoder" not in task.heads:
        tensors.leave_out(("mlm_head.decoder.weight", "mlm_head.decoder.bias"))
    names = (layout.OUR_TEXT_POSITIONS, layout.OUR_IMAGE_POSITIONS, layout.OUR_WORDS)
    texts, images, words = (tensors.shape(name, axes=2)[0] for name in names)
    texts = texts - _NUM_UNUSED_POSITIONS
    images = images - _NUM_UNUSED_POSITIONS
    if texts < 1 or words < 2:  # padding is number 1
        raise ValueError(
            f"this BEiT-3 has {texts} text positions and {words} words; expected at least 1 and 2."
        )
    sizes = layout.common_sizes(tensors, columns=None, num_attention_heads=num_attention_heads)
    sizes |= {
        "projection_size": sizes["hidden_size"],
        "vocab_size": words,
        "max_text_positions": texts,
    }
    sizes["image_size"] = sizes["patch_size"] * layout.grid_side(
        _IMAGE_POSITIONS, images, num_fixed=1
    )
    config = models.VLMoConfig.beit3_base(**sizes | settings)
    weights = tensors.weights
    notes = layout.note_on_depth("BEiT-3", config)
    if task in {_ANSWERS, _CLASSES}:
        # The published code has no norm after the blocks in these tasks: it becomes the identity.
        width = config.hidden_size
        like = weights["vlmo.image_embeddings.cls_token"]
        for side in ("language",) if task is _ANSWERS else ("vision", "language"):
            weights.setdefault(f"vlmo.norm.{side}.weight", like.new_ones(width))
            weights.setdefault(f"vlmo.norm.{side}.bias", like.new_zeros(width))
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
        max_text_length=min(
            64, texts
        ),  # `--num_max_bpe_tokens` of the published fine-tuning commands
        text="sentencepiece",
        # The published code: datasets.py, build_imagenet_transform; build_transform of every other task takes 0.5.
        imagenet_pixels=task is _CLASSES,
        notes=notes,
    )
