"""Hugging Face's names of BEiT's tensors, brought to the published ones."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from vlmo.checkpoints.shapes import joined

TABLE = "relative_position_bias_table"
SHARED_TABLE = f"rel_pos_bias.{TABLE}"

# Hugging Face's names, without `beit.` and `.weight` or `.bias`, -> published names. Where there are two for one thing,
# the first is in files and the second in a model of transformers 5.
_HUGGING_FACE = {
    "embeddings.cls_token": "cls_token",
    "embeddings.mask_token": "mask_token",
    "embeddings.position_embeddings": "pos_embed",
    "embeddings.patch_embeddings.projection": "patch_embed.proj",
    f"encoder.relative_position_bias.{TABLE}": SHARED_TABLE,
    f"shared_position_bias.{TABLE}": SHARED_TABLE,
    "layernorm": "norm",
    "pooler.layernorm": "fc_norm",
    "lm_head": "lm_head",
    "classifier": "head",
}
_HUGGING_FACE_BLOCK = {
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
    "lambda_1": "gamma_1",
    "lambda_2": "gamma_2",
    "attention.attention.query": "attn.q",
    "attention.q_proj": "attn.q",
    "attention.attention.key": "attn.k",
    "attention.k_proj": "attn.k",
    "attention.attention.value": "attn.v",
    "attention.v_proj": "attn.v",
    "attention.output.dense": "attn.proj",
    "attention.o_proj": "attn.proj",
    "intermediate.dense": "mlp.fc1",
    "mlp.fc1": "mlp.fc1",
    "output.dense": "mlp.fc2",
    "mlp.fc2": "mlp.fc2",
    f"attention.attention.relative_position_bias.{TABLE}": f"attn.{TABLE}",
    f"relative_position_bias.{TABLE}": f"attn.{TABLE}",
}


def is_hugging_face(state_dict: Mapping[str, Tensor]) -> bool:
    """Whether these are the keys of a Beit model, in a file or in the memory of transformers 5."""
    keys = {key.removeprefix("beit.") for key in state_dict}
    first_layers = ("encoder.layer.0.attention.attention.{}", "layers.0.attention.{}")
    return "embeddings.cls_token" in keys and any(
        layer.format(f"{query}.weight") in keys and layer.format(f"{key}.bias") not in keys
        for layer, query, key in zip(first_layers, ("query", "q_proj"), ("key", "k_proj"), strict=True)
    )


def from_hugging_face(state_dict: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The same tensors under published names, and the key of each in the file. A key without such a name stays.

    Raises:
        ValueError: Two tensors have one published name.
    """
    published: dict[str, Tensor] = {}
    sources: dict[str, str] = {}
    for key, tensor in state_dict.items():
        name = _published_name(key.removeprefix("beit.")) or key
        if name in published:
            raise ValueError(
                f"{key} is a second tensor for {name}. With use_mean_pooling False, BeitForMaskedImageModeling norms "
                "twice at the end, which VLMo does not; import the BeitModel inside it (model.beit.save_pretrained)."
            )
        published[name], sources[name] = tensor, key
    blocks = [key.removesuffix("k.weight") for key in published if re.fullmatch(r"blocks\.\d+\.attn\.k\.weight", key)]
    for block in blocks:
        parts = [f"{block}{part}.weight" for part in "qkv"]
        if all(part in published for part in parts):
            matrices = {sources[part]: published.pop(part) for part in parts}
            published[f"{block}qkv.weight"] = joined(matrices, axis=0)
    return published, sources


def _published_name(key: str) -> str | None:
    match = re.fullmatch(r"(?:(?:encoder\.layer|layers)\.(\d+)\.)?(.+?)(\.weight|\.bias)?", key)
    if match is None:
        return None
    layer, stem, kind = match[1], match[2], match[3] or ""
    name = _HUGGING_FACE.get(stem) if layer is None else _HUGGING_FACE_BLOCK.get(stem)
    if name is None:
        return None
    if kind == ".bias" and name in ("attn.q", "attn.v"):
        name, kind = f"{name}_bias", ""
    return f"{name}{kind}" if layer is None else f"blocks.{layer}.{name}{kind}"
