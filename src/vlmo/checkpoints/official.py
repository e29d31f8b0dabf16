"""Layout of the published VLMo checkpoints: names, sizes and task read from the tensors, and export into it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from vlmo import model as models
from vlmo.checkpoints import layout
from vlmo.checkpoints.layout import Conversion, HeadTask, NameTable, Tensors
from vlmo.checkpoints.loading import load_model, load_processor
from vlmo.folder.atomic import atomic_file
from vlmo.model.embeddings import NUM_CLASS_ROWS, NUM_CROSS_ROWS, relative_position_index
from vlmo.released import find_model

TABLE = "relative_position_bias_table"
TEXT_POSITIONS = "text_embeddings.position_embeddings.weight"
POSITION_IDS = "text_embeddings.position_ids"
# Rows of a published table that do not depend on the image size.
NUM_FIXED_ROWS = NUM_CLASS_ROWS + NUM_CROSS_ROWS + 2 * layout.MAX_TEXT_POSITIONS

NAMES = NameTable(
    (
        ("transformer.cls_token", "vlmo.image_embeddings.cls_token"),
        ("transformer.patch_embed.proj.{kind}", "vlmo.image_embeddings.projection.{kind}"),
        ("transformer.pos_embed", "vlmo.image_embeddings.positions"),
        ("transformer.norm.{kind}", "vlmo.norm.{kind}"),
        *(
            ("transformer.blocks.{layer}." + published, "vlmo.blocks.{layer}." + ours)
            for published, ours in (
                *layout.ATTENTION_NAMES,
                ("norm2_{expert}.{kind}", "experts.{expert}.norm.{kind}"),
                ("mlp_{expert}.fc{number}.{kind}", "experts.{expert}.fc{number}.{kind}"),
            )
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
            for published, ours in (
                ("vqa_classifier", "answer_head"),
                ("nlvr2_classifier", "reasoning_head"),
            )
            for number, part in ((0, "dense"), (1, "norm"), (3, "classifier"))
        ),
    ),
    experts={"imag": "vision", "text": "language", "vl": "vision_language"},
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


def recognises(state_dict: Mapping[str, Tensor]) -> bool:
    """Return True for the keys of the published VLMo layout."""
    return any(
        key.startswith("transformer.blocks.0.") and ".mlp_imag." in key for key in state_dict
    )


def convert(
    state_dict: Mapping[str, Tensor], *, num_attention_heads: int | None = None, **_: object
) -> Conversion:
    """Convert a published checkpoint; sizes, image size, text length and task are read from the tensors.

    `num_attention_heads` is needed only with absolute positions and sizes that were not published. ValueError if a
    tensor that tells a size is missing, or sizes do not fit together.
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
    if fused != set(range(depth - len(fused), depth)):
        raise ValueError(
            f"of blocks 0-{depth - 1}, those with mlp_vl are {sorted(fused)}; expected the top ones"
        )
    text_length = layout.DEFAULT_TEXT_LENGTH
    if layout.OUR_TEXT_POSITIONS in weights:
        text_length = tensors.shape(layout.OUR_TEXT_POSITIONS, axes=2)[0]
    if layout.OUR_TABLE in weights:
        grid = layout.grid_side(
            TABLE, len(weights[layout.OUR_TABLE]), num_fixed=NUM_FIXED_ROWS, relative=True
        )
        tensors.leave_out(
            [layout.OUR_TEXT_POSITIONS]
        )  # published files carry them, and never use them
    elif layout.OUR_IMAGE_POSITIONS in weights:
        grid = layout.grid_side(
            "transformer.pos_embed",
            tensors.shape(layout.OUR_IMAGE_POSITIONS, axes=2)[0],
            num_fixed=1,
        )
        settings["max_text_positions"] = tensors.shape(layout.OUR_TEXT_POSITIONS, axes=2)[0]
    else:
        raise ValueError(
            f"neither {TABLE} nor transformer.pos_embed is there; expected one of them"
        )
    if task is _LANGUAGE:
        tensors.leave_out([name for name in weights if "pooler" in name])
    settings.setdefault("use_pooler", any(".pooler." in name for name in weights))
    settings.setdefault("use_match_head", any(name.startswith("match_head.") for name in weights))
    config = models.VLMoConfig(
        **settings,
        num_fusion_layers=len(fused),
        image_size=grid * settings["patch_size"],
        vocab_size=tensors.shape(layout.OUR_WORDS, axes=2)[0],
        position_embedding="absolute" if columns is None else "relative",
        contrast_fusion_branch="fusion_contrast_head.image_projection.weight" in weights,
        num_modality_types=tensors.shape("vlmo.modality_types.weight", axes=2)[0],
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


# Settings that the layout cannot express, and the value that it always has.
_FIXED = {
    "experts": "multiway",
    "attention": "shared",
    "token_order": "text_first",
    "final_norm": "shared",
    "text_embedding": "bert",
    "key_bias": False,
    "inner_norm": False,
}
# Constants of the published code that no tensor tells.
_CONSTANTS = {"layer_norm_eps": 1e-6, "text_layer_norm_eps": 1e-12}


def export_official(folder: str | Path, file: str | Path) -> list[str]:
    """Write a model folder as one file of torch in the published layout, under `state_dict`.

    Weights of a folder that was imported from such a file are those of the file, bit by bit.

    Returns:
        Notes for people: what the file holds beside the model's tensors, and what of the model is not in it.

    Raises:
        ValueError: The folder is broken, the layout cannot hold its model, or `file` exists; nothing has been written.
        OSError: `file` cannot be written; nothing is left of it.
    """
    folder = Path(find_model(folder))
    file = Path(file)
    if file.suffix != ".pt":
        raise ValueError(f"{file} ends in {file.suffix or 'nothing'}; expected .pt")
    if file.exists():
        raise ValueError(f"{file} exists; give another name")
    model = load_model(folder)
    config = model.config
    weights = model.state_dict()
    problems = [
        f"{name} {value!r}, where it has {fixed!r}"
        for name, fixed in _FIXED.items()
        if (value := vars(config)[name]) != fixed
    ]
    if not config.num_modality_types:
        problems.append("no modality types")
    if (
        config.position_embedding == "relative"
        and config.max_text_positions > layout.MAX_TEXT_POSITIONS
    ):
        problems.append(
            f"{config.max_text_positions} text positions, where it has {layout.MAX_TEXT_POSITIONS}"
        )
    if problems:
        raise ValueError(
            f"{folder}: the published VLMo layout cannot hold this model: {'; '.join(problems)}"
        )
    if isinstance(model, models.VLMoModel):
        weights = {f"vlmo.{name}": tensor for name, tensor in weights.items()}
    named = {name: key for name in weights if (key := NAMES.published(name)) is not None}
    foreign = weights.keys() - named
    if not all(name.startswith("mim_head.") for name in foreign):
        raise ValueError(
            f"{folder}: the published VLMo layout has no name for {layout.listed(foreign)}"
        )
    published = {key: weights[name] for name, key in named.items()}
    for name, key in named.items():
        if name.endswith("logit_scale"):
            published[key] = published[key].reshape(())
        elif name == layout.OUR_IMAGE_POSITIONS:
            published[key] = published[key][None]
    notes = [f"not in the layout, left out: {layout.listed(foreign)}"] if foreign else []
    notes += [
        f"the published code computes with {name} {fixed:g}; this model was made with {value:g}"
        for name, fixed in _CONSTANTS.items()
        if (value := vars(config)[name]) != fixed
    ]
    if config.position_embedding == "absolute":
        published[POSITION_IDS] = torch.arange(config.max_text_positions)[None]
    else:
        has_texts = (folder / "tokenizer_config.json").is_file()
        text_length = (
            load_processor(folder).max_text_length if has_texts else config.max_text_positions
        )
        notes += _complete_table(
            published, config, text_length=min(text_length, config.max_text_positions)
        )
    file.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(file) as partial, partial.open("wb") as stream:
        torch.save(
            {"state_dict": {key: tensor.contiguous() for key, tensor in published.items()}}, stream
        )
    return notes


def _complete_table(
    published: dict[str, Tensor], config: models.VLMoConfig, *, text_length: int
) -> list[str]:
    """Add what published files hold beside a position table, and rows for texts of every length; return notes.

    The published code keeps a file's text positions, which it does not use, only where they are as many as its
    `max_text_len` or more, and then resizes a table only where they are just as many: so there are as many as its
    recipes ask for, or as our texts need. It computes the indices anew, but deletes them without a check when it
    resizes a table.
    """
    notes = []
    held = config.max_text_positions
    table = published[TABLE]
    if held < layout.MAX_TEXT_POSITIONS:
        # Text rows: offsets around the middle, the class token's rows last.
        above, offsets, classes = table.tensor_split(
            [len(table) - 2 * held, len(table) - NUM_CLASS_ROWS]
        )
        margin = table.new_zeros(layout.MAX_TEXT_POSITIONS - held, table.shape[1])
        published[TABLE] = torch.cat([above, margin, offsets, margin, classes])
        notes.append(
            f"{TABLE}: rows for texts to {held} tokens, zeros for longer ones up to {layout.MAX_TEXT_POSITIONS}"
        )
    length = max(text_length, layout.DEFAULT_TEXT_LENGTH)
    index = relative_position_index(
        num_text=length,
        grid=config.grid,
        max_text=layout.MAX_TEXT_POSITIONS,
        table_grid=config.grid,
    )
    published |= {
        TEXT_POSITIONS: table.new_zeros(length, config.hidden_size),
        POSITION_IDS: torch.arange(length)[None],
        "relative_position_index": index[length:, length:],
        "text_relative_position_index": index[:length, :length],
        "text_imag_relative_position_index": index,
    }
    return [
        *notes,
        f"load it with max_text_len {length}: with another, the published code cannot resize its table",
    ]
