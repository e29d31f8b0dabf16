"""Published layout of BEiT-2's visual tokenizer, VQ-KD (arXiv 2208.06366; unilm `beit2/modeling_vqkd.py`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from vlmo import model as models
from vlmo.checkpoints import beit, layout
from vlmo.checkpoints.layout import Conversion, NameTable, Tensors

_CODEBOOK = "quantize.embedding.weight"
_HEADS = (
    ("encode_task_layer.0.{kind}", "dense.{kind}"),
    ("encode_task_layer.2.{kind}", "projection.{kind}"),
)
NAMES = NameTable(
    (*beit.NAMES, *_HEADS, (_CODEBOOK, "codebook.weight")),
    prefix=r"encoder\.",
    leftovers=r"(decoder|decode_task_layer|teacher_model|scaling_layer|loss)\..+"
    r"|quantize\.(cluster_size|embedding\.(cluster_size|embed_avg|initted))",
)
# An encoder of images alone: the text side is a word and its position, which nothing reads.
_SETTINGS: Any = {
    "vocab_size": 1,
    "max_text_positions": 1,
    "text_embedding": "plain",
    "num_modality_types": 0,
}
_SETTINGS |= {
    "experts": "shared",
    "position_embedding": "absolute",
    "layer_scale_init": None,
    "num_fusion_layers": 0,
}
_SETTINGS |= dict.fromkeys(("contrast_fusion_branch", "use_pooler", "use_match_head"), False)


def recognises(state_dict: Mapping[str, Tensor]) -> bool:
    """Return True for the keys of VQ-KD."""
    return {_CODEBOOK, "encoder.pos_embed"} <= state_dict.keys()


def convert(
    state_dict: Mapping[str, Tensor], *, num_attention_heads: int | None = None, **_: object
) -> Conversion:
    """Convert VQ-KD, which takes pixels from -1 to 1, to a visual tokenizer; ValueError where sizes do not fit."""
    tensors = Tensors(state_dict, NAMES)
    sizes = layout.common_sizes(tensors, columns=None, num_attention_heads=num_attention_heads)
    sizes["num_visual_tokens"], sizes["projection_size"] = tensors.shape("codebook.weight", axes=2)
    rows = tensors.shape(layout.OUR_IMAGE_POSITIONS, axes=2)[0]
    sizes["image_size"] = sizes["patch_size"] * layout.grid_side(
        "encoder.pos_embed", rows, num_fixed=1
    )
    for name in list(tensors.weights):
        ours = name.replace(".vision.", ".shared.").replace("classifier_norm.", "vlmo.norm.")
        tensors.weights[ours] = tensors.weights.pop(name)
    like = tensors.weights["vlmo.image_embeddings.cls_token"]
    tensors.weights |= {
        name: like.new_zeros(1, like.shape[-1])
        for name in (layout.OUR_WORDS, layout.OUR_TEXT_POSITIONS)
    }
    config = models.VLMoConfig(**sizes | _SETTINGS)
    return Conversion(
        "BEiT-2's visual tokenizer (VQ-KD)", tensors, models.VQKDVisualTokenizer, config
    )
