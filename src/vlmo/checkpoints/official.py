"""The layout of the published VLMo checkpoints: its names, and what its tensors say about sizes and task."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from jaxtyping import Float
from torch import Tensor

from vlmo.checkpoints.conversion import Conversion
from vlmo.checkpoints.report import spans
from vlmo.checkpoints.shapes import (
    DEFAULT_TEXT_LENGTH,
    MAX_TEXT_POSITIONS,
    NUM_CLASS_ROWS,
    NUM_CROSS_ROWS,
    count_blocks,
    one_number,
    shape_of,
    square_side,
    without_batch,
)
from vlmo.model import (
    VLMoConfig,
    VLMoForImageTextRetrieval,
    VLMoForMaskedLM,
    VLMoForPreTraining,
    VLMoForVisualQuestionAnswering,
    VLMoForVisualReasoning,
    VLMoModel,
)
from vlmo.model.backbone import VLMoPreTrainedModel

TABLE, TEXT_POSITIONS, POSITION_IDS = (
    "relative_position_bias_table",
    "text_embeddings.position_embeddings.weight",
    "text_embeddings.position_ids",
)
# Rows of a published table that do not depend on the picture.
NUM_FIXED_ROWS = NUM_CLASS_ROWS + NUM_CROSS_ROWS + 2 * MAX_TEXT_POSITIONS

# By (width, depth): base, base_plus and large. With absolute positions no tensor tells the number.
NUM_HEADS = {(768, 12): 12, (544, 24): 16, (1024, 24): 16}

_HEADS_OF_WIDTH = {width: heads for (width, _), heads in NUM_HEADS.items()}

INDEX = re.compile(r"(transformer\.)?(text_|text_imag_)?relative_position_index")

# Published name and ours. Braces stand for the same part of both; an expert is called otherwise here and there.
_NAMES: tuple[tuple[str, str], ...] = (
    ("transformer.cls_token", "vlmo.image_embeddings.cls_token"),
    ("transformer.patch_embed.proj.{kind}", "vlmo.image_embeddings.projection.{kind}"),
    ("transformer.pos_embed", "vlmo.image_embeddings.positions"),
    ("transformer.norm.{kind}", "vlmo.norm.{kind}"),
    ("transformer.blocks.{layer}.norm1.{kind}", "vlmo.blocks.{layer}.norm1.shared.{kind}"),
    ("transformer.blocks.{layer}.attn.qkv.weight", "vlmo.blocks.{layer}.attention.qkv.shared.weight"),
    ("transformer.blocks.{layer}.attn.q_bias", "vlmo.blocks.{layer}.attention.qkv.shared.query_bias"),
    ("transformer.blocks.{layer}.attn.v_bias", "vlmo.blocks.{layer}.attention.qkv.shared.value_bias"),
    ("transformer.blocks.{layer}.attn.proj.{kind}", "vlmo.blocks.{layer}.attention.projection.shared.{kind}"),
    ("transformer.blocks.{layer}.gamma_{number}", "vlmo.blocks.{layer}.gamma_{number}"),
    ("transformer.blocks.{layer}.norm2_{expert}.{kind}", "vlmo.blocks.{layer}.experts.{expert}.norm.{kind}"),
    (
        "transformer.blocks.{layer}.mlp_{expert}.fc{number}.{kind}",
        "vlmo.blocks.{layer}.experts.{expert}.fc{number}.{kind}",
    ),
    (TABLE, "vlmo.position_bias.table"),
    ("text_embeddings.word_embeddings.weight", "vlmo.text_embeddings.words.weight"),
    ("text_embeddings.token_type_embeddings.weight", "vlmo.text_embeddings.segments.weight"),
    (TEXT_POSITIONS, "vlmo.text_embeddings.positions"),
    ("text_embeddings.LayerNorm.{kind}", "vlmo.text_embeddings.norm.{kind}"),
    ("token_type_embeddings.weight", "vlmo.modality_types.weight"),
    ("pooler.dense.{kind}", "vlmo.pooler.dense.{kind}"),
    ("itc_{side}_proj.fc.weight", "contrast_head.{side}_projection.weight"),
    ("itc_vl_{side}_proj.fc.weight", "fusion_contrast_head.{side}_projection.weight"),
    ("logit_scale", "contrast_head.logit_scale"),
    ("logit_vl_scale", "fusion_contrast_head.logit_scale"),
    ("itm_score.fc.{kind}", "match_head.classifier.{kind}"),
    ("mlm_score.transform.dense.{kind}", "mlm_head.dense.{kind}"),
    ("mlm_score.transform.LayerNorm.{kind}", "mlm_head.norm.{kind}"),
    ("mlm_score.decoder.weight", "mlm_head.decoder.weight"),
    ("mlm_score.bias", "mlm_head.decoder.bias"),
    *(
        (f"{published}.{number}.{{kind}}", f"{ours}.{part}.{{kind}}")
        for published, ours in (("vqa_classifier", "answer_head"), ("nlvr2_classifier", "reasoning_head"))
        for number, part in ((0, "dense"), (1, "norm"), (3, "classifier"))
    ),
)
_PARTS = {
    "{layer}": r"(?P<layer>\d+)",
    "{kind}": "(?P<kind>weight|bias)",
    "{number}": "(?P<number>[12])",
    "{side}": "(?P<side>image|text)",
    "{expert}": r"(?P<expert>[a-z_]+)",
}
_EXPERTS = {"imag": "vision", "text": "language", "vl": "vision_language"}


@dataclass(frozen=True)
class _State:
    """One of the states that were published, told by its heads."""

    kind: str
    model_class: type[VLMoPreTrainedModel]
    heads: tuple[str, ...]  # our names


_VQA = _State("fine-tuned on VQA", VLMoForVisualQuestionAnswering, ("answer_head",))
_NLVR2 = _State("fine-tuned on NLVR2", VLMoForVisualReasoning, ("reasoning_head",))
_PRETRAINED = _State(
    "pre-trained on pairs (stage 3)",
    VLMoForPreTraining,
    ("contrast_head", "fusion_contrast_head", "match_head", "mlm_head"),
)
_RETRIEVAL = _State("fine-tuned for retrieval", VLMoForImageTextRetrieval, ("contrast_head", "match_head"))
_LANGUAGE = _State("pre-trained on text (stage 2)", VLMoForMaskedLM, ("mlm_head",))
_BACKBONE = _State("backbone without heads", VLMoModel, ())


def recognises(state_dict: Mapping[str, Tensor]) -> bool:
    """Whether these are the names of the published VLMo layout."""
    return any(re.match(r"transformer\.blocks\.\d+\.(mlp|norm2)_(imag|text)\.", key) for key in state_dict)


def convert(state_dict: Mapping[str, Tensor], *, num_attention_heads: int | None = None) -> Conversion:
    """A published checkpoint in our terms; sizes, picture size, text length and task are read from the tensors.

    Args:
        num_attention_heads: Needed only with absolute positions and sizes that were not published.

    Raises:
        ValueError: A tensor that tells a size is not there, or the sizes do not fit together.
    """
    names = {key: name for key in state_dict if (name := our_name(key)) is not None}
    state = _state_of(set(names.values()))
    config = _config(state_dict, state, num_attention_heads=num_attention_heads)
    weights: dict[str, Tensor] = {}
    unused: dict[str, Tensor] = {}
    unknown: list[str] = []
    for key, tensor in state_dict.items():
        name = names.get(key)
        if name is None:
            if INDEX.fullmatch(key) or key == POSITION_IDS:
                unused[key] = tensor
            else:
                unknown.append(key)
        elif _has_no_place(name, state, config):
            unused[key] = tensor
        elif not name.startswith(("vlmo.", *(f"{head}." for head in state.heads))):
            unknown.append(key)
        else:
            weights[name] = _in_our_shape(name, tensor)
    text_length = DEFAULT_TEXT_LENGTH
    if TEXT_POSITIONS in state_dict:
        text_length = shape_of(state_dict, TEXT_POSITIONS, axes=2)[0]
    return Conversion(
        kind=f"VLMo, {state.kind}",
        model_class=state.model_class,
        config=config,
        weights=weights,
        unused=unused,
        unknown=unknown,
        max_text_length=text_length,
        text="wordpiece",
    )


def our_name(key: str) -> str | None:
    """Our name of a published key, or None."""
    return _renamed(key, source=0)


def published_name(name: str) -> str | None:
    """The published key of one of our names, or None where the layout has no such tensor."""
    return _renamed(name, source=1)


def in_published_shape(name: str, tensor: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """One of our tensors as the layout has it: temperatures without axes, image positions with a leading axis."""
    if name.endswith("logit_scale"):
        return tensor.reshape(())
    return tensor[None] if name == "vlmo.image_embeddings.positions" else tensor


def _in_our_shape(name: str, tensor: Tensor) -> Tensor:
    if name.endswith("logit_scale"):
        return one_number(published_name(name) or name, tensor)
    if name == "vlmo.image_embeddings.positions":
        return without_batch(published_name(name) or name, tensor)
    return tensor


def _renamed(key: str, *, source: Literal[0, 1]) -> str | None:
    for pattern, template in _COMPILED[source]:
        if match := pattern.fullmatch(key):
            parts = match.groupdict()
            if "expert" in parts:
                experts = _EXPERTS if source == 0 else {ours: published for published, ours in _EXPERTS.items()}
                if parts["expert"] not in experts:
                    return None
                parts["expert"] = experts[parts["expert"]]
            return template.format(**parts)
    return None


def _compile(template: str) -> re.Pattern[str]:
    pattern = re.escape(template).replace(r"\{", "{").replace(r"\}", "}")
    for part, expression in _PARTS.items():
        pattern = pattern.replace(part, expression)
    return re.compile(pattern)


_COMPILED = (
    [(_compile(published), ours) for published, ours in _NAMES],
    [(_compile(ours), published) for published, ours in _NAMES],
)


def _state_of(names: set[str]) -> _State:
    heads = {name.split(".")[0] for name in names}
    if "answer_head" in heads:
        return _VQA
    if "reasoning_head" in heads:
        return _NLVR2
    if heads & {"contrast_head", "match_head"}:
        return _PRETRAINED if "mlm_head" in heads else _RETRIEVAL
    return _LANGUAGE if "mlm_head" in heads else _BACKBONE


def _has_no_place(name: str, state: _State, config: VLMoConfig) -> bool:
    """Tensors that published files carry and never use: text positions beside a table, the pooler of stage 2."""
    if name == "vlmo.text_embeddings.positions":
        return config.position_embedding == "relative"
    return state is _LANGUAGE and name.startswith("vlmo.pooler.")


def _config(state_dict: Mapping[str, Tensor], state: _State, *, num_attention_heads: int | None) -> VLMoConfig:
    width, channels, patch, _ = shape_of(state_dict, "transformer.patch_embed.proj.weight", axes=4)
    depth, num_fusion_layers = _depth(state_dict)
    image, heads = _positions(state_dict, width=width, depth=depth, num_attention_heads=num_attention_heads)
    optional: dict[str, Any] = {}
    if "itc_image_proj.fc.weight" in state_dict:
        optional["projection_size"] = shape_of(state_dict, "itc_image_proj.fc.weight", axes=2)[0]
    if state in {_VQA, _NLVR2}:
        head = "vqa_classifier" if state is _VQA else "nlvr2_classifier"
        optional["num_labels"] = shape_of(state_dict, f"{head}.3.weight", axes=2)[0]
        if state is _NLVR2 and optional["num_labels"] == 2:
            optional = {"id2label": {0: "False", 1: "True"}, "label2id": {"False": 0, "True": 1}}
    if image["position_embedding"] == "absolute":
        optional["max_text_positions"] = shape_of(state_dict, TEXT_POSITIONS, axes=2)[0]
    pooled = any(key.startswith("pooler.") for key in state_dict) and state is not _LANGUAGE
    return VLMoConfig(
        hidden_size=width,
        num_hidden_layers=depth,
        num_attention_heads=heads,
        intermediate_size=shape_of(state_dict, "transformer.blocks.0.mlp_imag.fc1.weight", axes=2)[0],
        num_fusion_layers=num_fusion_layers,
        image_size=image["grid"] * patch,
        patch_size=patch,
        num_channels=channels,
        vocab_size=shape_of(state_dict, "text_embeddings.word_embeddings.weight", axes=2)[0],
        position_embedding=image["position_embedding"],
        # Of BEiT's base and large; only a model that starts anew reads it.
        layer_scale_init=(0.1 if depth <= 12 else 1e-5) if "transformer.blocks.0.gamma_1" in state_dict else None,
        contrast_fusion_ending="itc_vl_image_proj.fc.weight" in state_dict,
        num_modality_types=shape_of(state_dict, "token_type_embeddings.weight", axes=2)[0],
        use_pooler=pooled or state in {_VQA, _NLVR2, _PRETRAINED},
        use_match_head=state is _PRETRAINED or any(key.startswith("itm_score.") for key in state_dict),
        **optional,
    )


def _positions(
    state_dict: Mapping[str, Tensor], *, width: int, depth: int, num_attention_heads: int | None
) -> tuple[dict[str, Any], int]:
    """Kind of positions and patches along a side; number of heads."""
    if TABLE in state_dict:
        rows, columns = shape_of(state_dict, TABLE, axes=2)
        side = square_side(rows - NUM_FIXED_ROWS)
        if side is None or side % 2 == 0:
            raise ValueError(
                f"{TABLE} has {rows} rows; expected (2w-1)^2 + {NUM_FIXED_ROWS} for a picture of w x w patches"
            )
        heads = columns // depth
        if columns % depth or num_attention_heads not in {None, heads}:
            asked = "" if num_attention_heads is None else f" of {num_attention_heads} heads"
            raise ValueError(
                f"{TABLE} has {columns} columns, which do not fit {depth} layers{asked}. Is the file whole?"
            )
        usual = _HEADS_OF_WIDTH.get(width, heads)
        if heads != usual and num_attention_heads is None:
            raise ValueError(
                f"{TABLE} has {columns} columns for {depth} layers, so {heads} heads; published models of width {width}"
                f" have {usual}. Is the file whole? Give --num-attention-heads {heads} if it is"
            )
        return {"position_embedding": "relative", "grid": (side + 1) // 2}, heads
    if "transformer.pos_embed" not in state_dict:
        raise ValueError(f"neither {TABLE} nor transformer.pos_embed is there; expected one of them")
    rows = shape_of(state_dict, "transformer.pos_embed", axes=3)[1]
    if (grid := square_side(rows - 1)) is None:
        raise ValueError(f"transformer.pos_embed has {rows} positions; expected w^2 + 1 for a picture of w x w patches")
    heads = NUM_HEADS.get((width, depth)) if num_attention_heads is None else num_attention_heads
    if heads is None:
        raise ValueError(
            f"the tensors do not tell the number of attention heads of a model of width {width} with {depth} layers;"
            " give --num-attention-heads"
        )
    return {"position_embedding": "absolute", "grid": grid}, heads


def _depth(state_dict: Mapping[str, Tensor]) -> tuple[int, int]:
    """Number of blocks, and how many at the top own a vision-language expert."""
    layers, fused = set(), set()
    for key in state_dict:
        if match := re.match(r"transformer\.blocks\.(\d+)\.(mlp_vl\.)?", key):
            layers.add(int(match[1]))
            if match[2]:
                fused.add(int(match[1]))
    depth = count_blocks(layers)
    if fused != set(range(depth - len(fused), depth)):
        raise ValueError(
            f"of blocks 0-{depth - 1}, those with mlp_vl are {spans(fused)}; expected the top ones. The file is"
            " incomplete"
        )
    return depth, len(fused)
