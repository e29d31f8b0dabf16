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
    layout.for_experts(
        {
            "transformer.cls_token": layout.OUR_CLASS_TOKEN,
            "transformer.patch_embed.proj.{kind}": "vlmo.image_embeddings.projection.{kind}",
            "transformer.pos_embed": layout.OUR_IMAGE_POSITIONS,
            "transformer.norm.{kind}": "vlmo.norm.{kind}",
            TABLE: layout.OUR_TABLE,
            "text_embeddings.word_embeddings.weight": layout.OUR_WORDS,
            "text_embeddings.token_type_embeddings.weight": "vlmo.text_embeddings.segments.weight",
            TEXT_POSITIONS: layout.OUR_TEXT_POSITIONS,
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
    text_length = layout.DEFAULT_TEXT_LENGTH
    if layout.OUR_TEXT_POSITIONS in weights:
        text_length = tensors.rows(layout.OUR_TEXT_POSITIONS)
    if columns is not None:
        rows = tensors.rows(layout.OUR_TABLE)
        grid = layout.grid_side(TABLE, rows, num_fixed=NUM_FIXED_ROWS, relative=True)
        tensors.leave_out(
            layout.OUR_TEXT_POSITIONS
        )  # published files carry them, and never use them
    elif layout.OUR_IMAGE_POSITIONS in weights:
        rows = tensors.rows(layout.OUR_IMAGE_POSITIONS)
        grid = layout.grid_side("transformer.pos_embed", rows, num_fixed=1)
        settings["max_text_positions"] = tensors.rows(layout.OUR_TEXT_POSITIONS)
    else:
        raise ValueError(
            f"neither {TABLE} nor transformer.pos_embed is there; expected one of them"
        )
    # The published stage 2 has a pooler, which masked words do not use.
    if task is _LANGUAGE:
        tensors.leave_out("vlmo.pooler.")
    settings.setdefault("use_pooler", "vlmo.pooler.dense.weight" in weights)
    settings.setdefault("use_match_head", "match_head.classifier.weight" in weights)
    config = models.VLMoConfig(
        **settings,
        num_fusion_layers=len(fused),
        image_size=grid * settings["patch_size"],
        vocab_size=tensors.rows(layout.OUR_WORDS),
        position_embedding="absolute" if columns is None else "relative",
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
        Notes for people: what the file holds beside the model's tensors, and what of the model is
        not in it.

    Raises:
        ValueError: The folder is broken, the layout cannot hold its model, or `file` exists;
            nothing has been written.
        OSError: `file` cannot be written; nothing is left of it.
    """
    folder = Path(find_model(folder))
    file = Path(file)
    if file.suffix != ".pt":
        raise ValueError(f"{file} ends in {file.suffix or 'nothing'}; expected .pt")
    if file.exists():
        raise ValueError(f"{file} exists; give another name")
    model = load_model(folder)
    problems = _unlike_the_layout(model.config)
    if problems:
        raise ValueError(
            f"{folder}: the published VLMo layout cannot hold this model: {'; '.join(problems)}"
        )
    published: dict[str, Tensor] = {}
    left_out = []
    for name, tensor in model.state_dict().items():
        key = NAMES.published(f"vlmo.{name}" if isinstance(model, models.VLMoModel) else name)
        if key is None:
            left_out.append(name)
        elif name.endswith("logit_scale"):
            published[key] = tensor.reshape(())
        elif key == "transformer.pos_embed":
            published[key] = tensor[None]
        else:
            published[key] = tensor.contiguous()
    if not all(name.startswith("mim_head.") for name in left_out):
        raise ValueError(
            f"{folder}: the published VLMo layout has no name for {layout.listed(left_out)}"
        )
    notes = [f"not in the layout, left out: {layout.listed(left_out)}"] if left_out else []
    for name, constant in _CONSTANTS.items():
        value = getattr(model.config, name)
        if value != constant:
            notes.append(
                f"the published code computes with {name} {constant:g}; this model was made with {value:g}"
            )
    if model.config.position_embedding == "absolute":
        published[POSITION_IDS] = torch.arange(model.config.max_text_positions)[None]
    else:
        notes += _complete_table(published, model.config, folder)
    file.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(file) as partial, partial.open("wb") as stream:
        torch.save({"state_dict": published}, stream)
    return notes


def _unlike_the_layout(config: models.VLMoConfig) -> list[str]:
    """Return the settings of a model that the layout cannot express."""
    problems = []
    for name, fixed in _FIXED.items():
        value = getattr(config, name)
        if value != fixed:
            problems.append(f"{name} {value!r}, where it has {fixed!r}")
    if not config.num_modality_types:
        problems.append("no modality types")
    positions = config.max_text_positions
    if config.position_embedding == "relative" and positions > layout.MAX_TEXT_POSITIONS:
        problems.append(f"{positions} text positions, where it has {layout.MAX_TEXT_POSITIONS}")
    return problems


def _complete_table(
    published: dict[str, Tensor], config: models.VLMoConfig, folder: Path
) -> list[str]:
    """Add what published files hold beside a position table, and rows for texts of every length; return notes.

    The published code keeps a file's text positions, which it does not use, only where they are as
    many as its `max_text_len` or more, and then resizes a table only where they are just as many:
    so there are as many as its recipes ask for, or as our texts need. It computes the indices anew,
    but deletes them without a check when it resizes a table.
    """
    notes = []
    table = published[TABLE]
    positions = config.max_text_positions
    longest = layout.MAX_TEXT_POSITIONS
    if positions < longest:
        # Text rows: offsets around the middle, the class token's rows last.
        above, offsets, classes = table.tensor_split(
            [len(table) - 2 * positions, len(table) - NUM_CLASS_ROWS]
        )
        margin = table.new_zeros(longest - positions, table.shape[1])
        published[TABLE] = torch.cat([above, margin, offsets, margin, classes])
        notes.append(
            f"{TABLE}: rows for texts to {positions} tokens, zeros for longer ones up to {longest}"
        )
    length = positions
    if (folder / "tokenizer_config.json").is_file():
        length = min(positions, load_processor(folder).max_text_length)
    length = max(length, layout.DEFAULT_TEXT_LENGTH)
    index = relative_position_index(
        num_text=length, grid=config.grid, max_text=longest, table_grid=config.grid
    )
    # Copies, as a slice would be saved with all of the index.
    published |= {
        TEXT_POSITIONS: table.new_zeros(length, config.hidden_size),
        POSITION_IDS: torch.arange(length)[None],
        "relative_position_index": index[length:, length:].contiguous(),
        "text_relative_position_index": index[:length, :length].contiguous(),
        "text_imag_relative_position_index": index,
    }
    return [
        *notes,
        f"load it with max_text_len {length}: with another, the published code cannot resize its table",
    ]
