"""Layout of the published VLMo checkpoints: names, sizes and task read from the tensors, and export into it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from vlmo import model as models
from vlmo.checkpoints.layout import (
    DEFAULT_TEXT_LENGTH,
    MAX_TEXT_POSITIONS,
    NUM_CLASS_ROWS,
    NUM_CROSS_ROWS,
    OUR_IMAGE_POSITIONS,
    OUR_TABLE,
    OUR_TEXT_POSITIONS,
    OUR_WORDS,
    USUAL_SIZES,
    Conversion,
    HeadTask,
    NameTable,
    common_sizes,
    find_task,
    grid_of_positions,
    grid_of_table,
    listed,
    note_on_depth,
    one_line,
    shape_of,
    spans,
    translate,
)
from vlmo.checkpoints.loading import check_model_folder, one_line_errors, read_state_dict
from vlmo.folder import read_json
from vlmo.folder.atomic import atomic_file
from vlmo.model.embeddings import relative_position_index

PUBLISHED_EXTRAS = "published_extras.safetensors"
"""Tensors of the published file that the model does not use, kept so that an export gives the whole file back."""
VLMO_LAYOUT = "vlmo"

TABLE, TEXT_POSITIONS, POSITION_IDS = (
    "relative_position_bias_table",
    "text_embeddings.position_embeddings.weight",
    "text_embeddings.position_ids",
)
# Rows of a published table that do not depend on the image size.
NUM_FIXED_ROWS = NUM_CLASS_ROWS + NUM_CROSS_ROWS + 2 * MAX_TEXT_POSITIONS
_LEFTOVERS = re.compile(r"(transformer\.)?(text_|text_imag_)?relative_position_index|text_embeddings\.position_ids")

NAMES = NameTable(
    (
        ("transformer.cls_token", "vlmo.image_embeddings.cls_token"),
        ("transformer.patch_embed.proj.{kind}", "vlmo.image_embeddings.projection.{kind}"),
        ("transformer.pos_embed", "vlmo.image_embeddings.positions"),
        ("transformer.norm.{kind}", "vlmo.norm.{kind}"),
        *(
            ("transformer.blocks.{layer}." + published, "vlmo.blocks.{layer}." + ours)
            for published, ours in (
                ("norm1.{kind}", "norm1.shared.{kind}"),
                ("attn.qkv.weight", "attention.qkv.shared.weight"),
                ("attn.q_bias", "attention.qkv.shared.query_bias"),
                ("attn.v_bias", "attention.qkv.shared.value_bias"),
                ("attn.proj.{kind}", "attention.projection.shared.{kind}"),
                ("gamma_{number}", "gamma_{number}"),
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
            for published, ours in (("vqa_classifier", "answer_head"), ("nlvr2_classifier", "reasoning_head"))
            for number, part in ((0, "dense"), (1, "norm"), (3, "classifier"))
        ),
    ),
    experts={"imag": "vision", "text": "language", "vl": "vision_language"},
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

_FOR_PAIRS = {"use_pooler": True, "use_match_head": True}
_LANGUAGE = HeadTask("pre-trained on text (stage 2)", ("mlm_head",), models.VLMoForMaskedLM)
TASKS = (
    HeadTask("fine-tuned on VQA", ("answer_head",), models.VLMoForVisualQuestionAnswering, {"use_pooler": True}),
    HeadTask("fine-tuned on NLVR2", ("reasoning_head",), models.VLMoForVisualReasoning, {"use_pooler": True}),
    HeadTask("pre-trained on pairs (stage 3)", ("contrast_head", "mlm_head"), models.VLMoForPreTraining, _FOR_PAIRS),
    HeadTask("pre-trained on pairs (stage 3)", ("match_head", "mlm_head"), models.VLMoForPreTraining, _FOR_PAIRS),
    HeadTask("fine-tuned for retrieval", ("contrast_head",), models.VLMoForImageTextRetrieval),
    HeadTask("fine-tuned for retrieval", ("match_head",), models.VLMoForImageTextRetrieval),
    _LANGUAGE,
    HeadTask("backbone without heads", (), models.VLMoModel),
)


def recognises(state_dict: Mapping[str, Tensor]) -> bool:
    """Return True for the keys of the published VLMo layout."""
    return any(re.match(r"transformer\.blocks\.\d+\.(mlp|norm2)_(imag|text)\.", key) for key in state_dict)


def convert(state_dict: Mapping[str, Tensor], *, num_attention_heads: int | None = None, **_: object) -> Conversion:
    """Convert a published checkpoint; sizes, image size, text length and task are read from the tensors.

    `num_attention_heads` is needed only with absolute positions and sizes that were not published. ValueError if a
    tensor that tells a size is missing, or sizes do not fit together.
    """
    named, keys = translate(state_dict, NAMES)
    task, title, settings = find_task(TASKS, named, NAMES)
    config = _config(named, settings, num_attention_heads=num_attention_heads, reads_pooler=task is not _LANGUAGE)
    text_length = DEFAULT_TEXT_LENGTH
    if OUR_TEXT_POSITIONS in named:
        text_length = shape_of(named, OUR_TEXT_POSITIONS, axes=2, names=NAMES)[0]
    # Published files carry text positions beside a table and the pooler of stage 2, and never use them.
    idle = {OUR_TEXT_POSITIONS} if config.position_embedding == "relative" else set()
    idle |= {name for name in named if task is _LANGUAGE and "pooler" in name}
    unused = [key for key in state_dict if _LEFTOVERS.fullmatch(key)] + [keys[name] for name in named if name in idle]
    known = {*unused, *keys.values()}
    return Conversion(
        kind=f"VLMo, {title}",
        model_class=task.model_class,
        config=config,
        weights={name: tensor for name, tensor in named.items() if name not in idle},
        unused={key: state_dict[key] for key in unused},
        unknown=[key for key in state_dict if key not in known],
        max_text_length=text_length,
        text="wordpiece",
        notes=note_on_depth("VLMo", config),
    )


def _config(
    named: Mapping[str, Tensor], settings: dict[str, Any], *, num_attention_heads: int | None, reads_pooler: bool
) -> models.VLMoConfig:
    table = shape_of(named, OUR_TABLE, axes=2, names=NAMES) if OUR_TABLE in named else None
    sizes = common_sizes(
        named, NAMES, columns=None if table is None else table[1], num_attention_heads=num_attention_heads
    )
    fused = {int(name.split(".")[2]) for name in named if ".vision_language." in name}
    depth = sizes["num_hidden_layers"]
    if fused != set(range(depth - len(fused), depth)):
        raise ValueError(f"of blocks 0-{depth - 1}, those with mlp_vl are {spans(fused)}; expected the top ones")
    if table is not None:
        grid = grid_of_table(TABLE, table[0], num_fixed=NUM_FIXED_ROWS)
    elif OUR_IMAGE_POSITIONS in named:
        positions = shape_of(named, OUR_IMAGE_POSITIONS, axes=2, names=NAMES)[0]
        grid = grid_of_positions("transformer.pos_embed", positions)
        sizes["max_text_positions"] = shape_of(named, OUR_TEXT_POSITIONS, axes=2, names=NAMES)[0]
    else:
        raise ValueError(f"neither {TABLE} nor transformer.pos_embed is there; expected one of them")
    sizes["use_pooler"] = reads_pooler and any(name.startswith("vlmo.pooler.") for name in named)
    sizes["use_match_head"] = any(name.startswith("match_head.") for name in named)
    sizes |= settings
    return models.VLMoConfig(
        num_fusion_layers=len(fused),
        image_size=grid * sizes["patch_size"],
        vocab_size=shape_of(named, OUR_WORDS, axes=2, names=NAMES)[0],
        position_embedding="absolute" if table is None else "relative",
        # Of BEiT's base and large; only a newly initialised model reads it.
        layer_scale_init=(0.1 if depth <= 12 else 1e-5) if "vlmo.blocks.0.gamma_1" in named else None,
        contrast_fusion_branch="fusion_contrast_head.image_projection.weight" in named,
        num_modality_types=shape_of(named, "vlmo.modality_types.weight", axes=2, names=NAMES)[0],
        **sizes,
    )


def export_official(folder: str | Path, file: str | Path) -> list[str]:
    """Write a model folder as one file of torch in the published layout, under `state_dict`.

    A folder that was imported from such a file gives it back bit by bit, unless the import changed sizes, completed it
    or converted mixed types.

    Returns:
        Notes for people: what the file holds beside the model's tensors, and what of the model is not in it.

    Raises:
        ValueError: The folder is broken, the layout cannot hold its model, or `file` exists; nothing has been written.
        OSError: `file` cannot be written; nothing is left of it.
    """
    file = Path(file)
    if file.suffix != ".pt":
        raise ValueError(f"{file} ends in {file.suffix or 'nothing'}; expected .pt")
    if file.exists():
        raise ValueError(f"{file} exists; give another name")
    folder, model_class = check_model_folder(folder)
    with one_line_errors(folder):
        config = models.VLMoConfig.from_pretrained(folder)
    weights, _ = read_state_dict(folder)
    _check_fits(config, weights, model_class, folder)
    if model_class is models.VLMoModel:
        weights = {f"vlmo.{name}": tensor for name, tensor in weights.items()}
    published, notes = _published(config, weights, folder)
    extras = None
    if (kept := folder / PUBLISHED_EXTRAS).is_file():
        try:
            with safe_open(kept, framework="pt") as stored:
                if (stored.metadata() or {}).get("layout") == VLMO_LAYOUT:
                    extras = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 (no mapping)
        except SafetensorError as problem:
            raise ValueError(f"{kept} is truncated or damaged ({one_line(problem)})") from None
    if extras is None:
        extras = _new_extras(config, published, text_length=_text_length(folder, config), notes=notes)
    published |= {key: tensor for key, tensor in extras.items() if key not in published}
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(file) as partial, partial.open("wb") as stream:
            torch.save({"state_dict": {key: tensor.contiguous() for key, tensor in published.items()}}, stream)
    except (OSError, RuntimeError) as problem:
        reason = getattr(problem, "strerror", None) or one_line(problem)
        raise OSError(f"{file} cannot be written: {reason}") from None
    return notes


def _check_fits(
    config: models.VLMoConfig, weights: dict[str, Tensor], model_class: type[models.VLMoPreTrainedModel], folder: Path
) -> None:
    """Refuse a model that the layout cannot hold, and a folder that lacks tensors of its model, or holds others."""
    given = vars(config)
    problems = [
        f"{name} {given[name]!r}, where it has {fixed!r}" for name, fixed in _FIXED.items() if given[name] != fixed
    ]
    if not config.num_modality_types:
        problems.append("no modality types")
    if config.position_embedding == "relative" and config.max_text_positions > MAX_TEXT_POSITIONS:
        problems.append(f"{config.max_text_positions} text positions, where it has {MAX_TEXT_POSITIONS}")
    if problems:
        raise ValueError(f"{folder}: the published VLMo layout cannot hold this model: {'; '.join(problems)}")
    with torch.device("meta"):
        shapes = {key: tensor.shape for key, tensor in model_class(config).state_dict().items()}
    for problem, keys in (
        ("without {}", shapes.keys() - weights.keys()),
        ("with {}, which it does not have", weights.keys() - shapes.keys()),
        (
            "with other shapes than its config.json asks for: {}",
            {k for k in weights if weights[k].shape != shapes.get(k)},
        ),
    ):
        if keys:
            raise ValueError(f"{folder} is broken: {model_class.__name__} {problem.format(listed(keys))}")


def _published(
    config: models.VLMoConfig, weights: dict[str, Tensor], folder: Path
) -> tuple[dict[str, Tensor], list[str]]:
    """Return the weights under published names and in published shapes, and notes."""
    named = {name: key for name in weights if (key := NAMES.published(name)) is not None}
    published = {key: weights[name] for name, key in named.items()}
    for name, key in named.items():
        if name.endswith("logit_scale"):
            published[key] = published[key].reshape(())
        elif name == OUR_IMAGE_POSITIONS:
            published[key] = published[key][None]
    foreign = [name for name in weights if name not in named]
    if not all(name.startswith("mim_head.") for name in foreign):
        raise ValueError(f"{folder}: the published VLMo layout has no name for {listed(foreign)}")
    notes = [f"not in the layout, left out: {listed(foreign)}"] if foreign else []
    notes += [
        f"the published code computes with {name} {fixed:g}; this model was made with {value:g}"
        for name, fixed in _CONSTANTS.items()
        if (value := vars(config)[name]) != fixed
    ]
    known, _ = USUAL_SIZES.get(config.hidden_size, (None, None))
    if config.position_embedding == "absolute" and known != config.num_attention_heads:
        notes.append(f"the tensors do not tell the {config.num_attention_heads} attention heads; who reads must know")
    if config.projection_size != config.hidden_size and any(key.startswith("itc_") for key in published):
        notes.append(
            f"contrast vectors have {config.projection_size} numbers; the published code makes heads of"
            f" {config.hidden_size} and must be changed to load these"
        )
    held, table = config.max_text_positions, published.get(TABLE)
    if table is not None and held < MAX_TEXT_POSITIONS:
        # Text rows: offsets around the middle, the class token's rows last.
        above, offsets, classes = table.tensor_split([len(table) - 2 * held, len(table) - NUM_CLASS_ROWS])
        margin = table.new_zeros(MAX_TEXT_POSITIONS - held, table.shape[1])
        published[TABLE] = torch.cat([above, margin, offsets, margin, classes])
        notes.append(
            f"{TABLE}: rows for texts of up to {held} tokens, with zeros for longer ones, up to {MAX_TEXT_POSITIONS}"
        )
    return published, notes


def _new_extras(
    config: models.VLMoConfig, published: dict[str, Tensor], *, text_length: int, notes: list[str]
) -> dict[str, Tensor]:
    """Return tensors that published files hold and our models do not use: text positions beside a table, and indices.

    The published code keeps a file's text positions only where they are as many as its `max_text_len` or more, and then
    resizes a table only where they are just as many: so there are as many as its recipes ask for, or as our texts need.
    """
    if config.position_embedding == "absolute":
        extras = {POSITION_IDS: torch.arange(config.max_text_positions)[None]}
    else:
        length = max(text_length, DEFAULT_TEXT_LENGTH)
        # Rows of the table for each (query, key). The published code computes them anew, but deletes them without a
        # check when it resizes a table.
        index = relative_position_index(
            num_text=length, grid=config.grid, max_text=MAX_TEXT_POSITIONS, table_grid=config.grid
        )
        extras = {
            TEXT_POSITIONS: published["text_embeddings.word_embeddings.weight"].new_zeros(length, config.hidden_size),
            POSITION_IDS: torch.arange(length)[None],
            "relative_position_index": index[length:, length:],
            "text_relative_position_index": index[:length, :length],
            "text_imag_relative_position_index": index,
        }
        notes.append(f"load it with max_text_len {length}: with another, the published code cannot resize its table")
    notes.append(f"added, as published files hold them: {listed(extras)}")
    return extras


def _text_length(folder: Path, config: models.VLMoConfig) -> int:
    """Return the longest text of the folder's tokenizer; that of the model where there is none."""
    path = folder / "tokenizer_config.json"
    if not path.is_file():
        return config.max_text_positions
    settings = read_json(path)
    length = settings.get("model_max_length") if isinstance(settings, dict) else None
    if type(length) is not int or length < 1:
        raise ValueError(f"{path} has model_max_length {length!r}; expected the longest text in tokens")
    return min(length, config.max_text_positions)
