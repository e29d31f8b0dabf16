"""Published layout of BEiT-2's visual tokenizer, VQ-KD (arXiv 2208.06366; unilm `beit2/modeling_vqkd.py`)."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from vlmo import model as models
from vlmo.checkpoints import beit, layout
from vlmo.checkpoints.layout import Conversion, NameTable, Tensors

_CODEBOOK = "quantize.embedding.weight"
NAMES = NameTable(
    beit.NAMES
    | {
        "encode_task_layer.0.{kind}": "dense.{kind}",
        "encode_task_layer.2.{kind}": "projection.{kind}",
        _CODEBOOK: "codebook.weight",
    },
    prefix=r"encoder\.",
    leftovers=r"(decoder|decode_task_layer|teacher_model|scaling_layer|loss)\..+"
    r"|quantize\.(cluster_size|embedding\.(cluster_size|embed_avg|initted))",
)


def recognizes(state_dict: Mapping[str, Tensor]) -> bool:
    """Return True for the keys of VQ-KD."""
    return {_CODEBOOK, "encoder.pos_embed"} <= state_dict.keys()


def convert(
    state_dict: Mapping[str, Tensor], *, num_attention_heads: int | None = None, **_: object
) -> Conversion:
    """Convert VQ-KD, which takes pixels from -1 to 1, to a visual tokenizer; ValueError where sizes do not fit."""
    tensors = Tensors(state_dict, NAMES)
    sizes = layout.common_sizes(tensors, num_attention_heads=num_attention_heads)
    num_visual_tokens, projection_size = tensors.shape("codebook.weight", axes=2)
    grid = layout.grid_side(
        "encoder.pos_embed", tensors.rows(layout.OUR_IMAGE_POSITIONS), num_fixed=1
    )
    weights = tensors.weights
    for name in list(weights):
        ours = name.replace(".vision.", ".shared.").replace("classifier_norm.", "vlmo.norm.")
        weights[ours] = weights.pop(name)
    for name in (layout.OUR_WORDS, layout.OUR_TEXT_POSITIONS):
        weights[name] = weights[layout.OUR_CLASS_TOKEN].new_zeros(1, sizes["hidden_size"])
    config = models.VLMoConfig(
        **sizes | {"layer_scale_init": None},
        num_visual_tokens=num_visual_tokens,
        projection_size=projection_size,
        image_size=sizes["patch_size"] * grid,
        position_embedding="absolute",
        experts="shared",
        num_fusion_layers=0,
        # An encoder of images alone: the text side is a word and its position, which nothing reads.
        vocab_size=1,
        max_text_positions=1,
        text_embedding="plain",
        num_modality_types=0,
        contrast_fusion_branch=False,
        use_pooler=False,
        use_match_head=False,
    )
    return Conversion(
        "BEiT-2's visual tokenizer (VQ-KD)", tensors, models.VQKDVisualTokenizer, config
    )
