"""Export of a model folder to a file in the published VLMo layout, which the published code reads."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from vlmo.checkpoints import official
from vlmo.checkpoints.importing import PUBLISHED_EXTRAS, VLMO_LAYOUT
from vlmo.checkpoints.layout import DEFAULT_TEXT_LENGTH, MAX_TEXT_POSITIONS, NUM_CLASS_ROWS, listed, one_line
from vlmo.checkpoints.loading import check_model_folder, one_line_errors
from vlmo.checkpoints.reading import read_json, read_state_dict
from vlmo.folder import atomic_file
from vlmo.model import VLMoConfig, VLMoModel, VLMoPreTrainedModel

_SUFFIXES = (".pt", ".safetensors")
_STAGE_1_HEAD = "mim_head."
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


@dataclass(frozen=True)
class ExportReport:
    """Result of an export.

    Attributes:
        notes: What the file holds beside the model's tensors, and what of the model is not in it.
    """

    file: Path
    num_tensors: int
    notes: list[str] = field(default_factory=list)


def export_official(folder: str | Path, file: str | Path) -> ExportReport:
    """Write a model folder as one file in the published layout: `.pt`, under `state_dict`, or `.safetensors`.

    A folder that was imported from such a file gives it back bit by bit, unless the import changed sizes, completed it
    or converted mixed types.

    Raises:
        ValueError: The folder is broken, the layout cannot hold its model, or `file` exists; nothing has been written.
        OSError: `file` cannot be written; nothing is left of it.
    """
    file = Path(file)
    if file.suffix not in _SUFFIXES:
        raise ValueError(f"{file} ends in {file.suffix or 'nothing'}; expected {' or '.join(_SUFFIXES)}")
    if file.exists():
        raise ValueError(f"{file} exists; give another name")
    folder, model_class = check_model_folder(folder)
    with one_line_errors(folder):
        config = VLMoConfig.from_pretrained(folder)
    _check_config(config, folder)
    weights, _ = read_state_dict(folder)
    _check_weights(config, weights, model_class, folder)
    if model_class is VLMoModel:
        weights = {f"vlmo.{name}": tensor for name, tensor in weights.items()}
    published, notes = _published(config, weights, folder)
    extras = _kept_extras(folder)
    if extras is None:
        extras = _new_extras(config, published, text_length=_text_length(folder, config), notes=notes)
    published |= {key: tensor for key, tensor in extras.items() if key not in published}
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(file) as partial:
            partial.touch()
            rights = partial.stat().st_mode
            tensors = {key: tensor.contiguous() for key, tensor in published.items()}
            if file.suffix == ".pt":
                with partial.open("wb") as stream:
                    torch.save({"state_dict": tensors}, stream)
            else:
                save_file(tensors, partial)
            partial.chmod(rights)  # safetensors gives its files to their owner alone
    except (OSError, RuntimeError, SafetensorError) as problem:
        raise OSError(f"{file} cannot be written: {one_line(problem)}") from None
    return ExportReport(file, num_tensors=len(published), notes=notes)


def _check_config(config: VLMoConfig, folder: Path) -> None:
    problems = [
        f"{name} {value!r}, where it has {fixed!r}"
        for name, fixed in _FIXED.items()
        if (value := vars(config)[name]) != fixed
    ]
    if not config.num_modality_types:
        problems.append("no modality types")
    if config.position_embedding == "relative" and config.max_text_positions > MAX_TEXT_POSITIONS:
        problems.append(f"{config.max_text_positions} text positions, where it has {MAX_TEXT_POSITIONS}")
    if problems:
        raise ValueError(f"{folder}: the published VLMo layout cannot hold this model: {'; '.join(problems)}")


def _check_weights(
    config: VLMoConfig, weights: dict[str, Tensor], model_class: type[VLMoPreTrainedModel], folder: Path
) -> None:
    """Refuse a folder that lacks tensors of its model, or holds others."""
    with torch.device("meta"):
        shapes = {key: tensor.shape for key, tensor in model_class(config).state_dict().items()}
    problems = []
    if missing := shapes.keys() - weights.keys():
        problems.append(f"without {listed(missing)}")
    if foreign := weights.keys() - shapes.keys():
        problems.append(f"with {listed(foreign)}, which {model_class.__name__} does not have")
    if wrong := [key for key in shapes.keys() & weights.keys() if weights[key].shape != shapes[key]]:
        problems.append(f"with other shapes than its config.json asks for: {listed(wrong)}")
    if problems:
        raise ValueError(f"{folder} is broken: {model_class.__name__} {'; '.join(problems)}")


def _published(config: VLMoConfig, weights: dict[str, Tensor], folder: Path) -> tuple[dict[str, Tensor], list[str]]:
    """Return the weights under published names and in published shapes, and notes."""
    named = {name: key for name in weights if (key := official.NAMES.published(name)) is not None}
    published = {key: official.in_published_shape(name, weights[name]) for name, key in named.items()}
    foreign = [name for name in weights if name not in named]
    if not all(name.startswith(_STAGE_1_HEAD) for name in foreign):
        raise ValueError(
            f"{folder}: the published VLMo layout has no place for {listed(foreign)}; export a model of another task"
        )
    notes = [f"not in the layout, left out: {listed(foreign)}"] if foreign else []
    notes += [
        f"the published code computes with {name} {fixed:g}; this model was made with {value:g}"
        for name, fixed in _CONSTANTS.items()
        if (value := vars(config)[name]) != fixed
    ]
    known = official.NUM_HEADS.get((config.hidden_size, config.num_hidden_layers))
    if config.position_embedding == "absolute" and known != config.num_attention_heads:
        notes.append(f"the tensors do not tell the {config.num_attention_heads} attention heads; who reads must know")
    if config.projection_size != config.hidden_size and any(key.startswith("itc_") for key in published):
        notes.append(
            f"contrast vectors have {config.projection_size} numbers; the published code makes heads of"
            f" {config.hidden_size} and must be changed to load these"
        )
    held, table = config.max_text_positions, published.get(official.TABLE)
    if table is not None and held < MAX_TEXT_POSITIONS:
        # Text rows: offsets around the middle, the class token's rows last.
        above, offsets, classes = table.tensor_split([len(table) - 2 * held, len(table) - NUM_CLASS_ROWS])
        margin = table.new_zeros(MAX_TEXT_POSITIONS - held, table.shape[1])
        published[official.TABLE] = torch.cat([above, margin, offsets, margin, classes])
        notes.append(
            f"{official.TABLE}: rows for texts of up to {held} tokens, with zeros for longer ones, up to"
            f" {MAX_TEXT_POSITIONS}"
        )
    return published, notes


def _kept_extras(folder: Path) -> dict[str, Tensor] | None:
    """Return what an import kept of the published file; None where the folder does not stem from one."""
    path = folder / PUBLISHED_EXTRAS
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            if (file.metadata() or {}).get("layout") != VLMO_LAYOUT:
                return None
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except SafetensorError as problem:
        raise ValueError(f"{path} is truncated or damaged ({one_line(problem)})") from None


def _new_extras(
    config: VLMoConfig, published: dict[str, Tensor], *, text_length: int, notes: list[str]
) -> dict[str, Tensor]:
    """Return tensors that published files hold and our models do not use: text positions beside a table, and indices.

    The published code keeps a file's text positions only where they are as many as its `max_text_len` or more, and then
    resizes a table only where they are just as many: so there are as many as its recipes ask for, or as our texts need.
    """
    words = published["text_embeddings.word_embeddings.weight"]
    if config.position_embedding == "absolute":
        extras = {official.POSITION_IDS: torch.arange(config.max_text_positions)[None]}
    else:
        length = max(text_length, DEFAULT_TEXT_LENGTH)
        extras = {
            official.TEXT_POSITIONS: words.new_zeros(length, words.shape[1]),
            official.POSITION_IDS: torch.arange(length)[None],
            **official.index_buffers(config, text_length=length),
        }
        notes.append(f"load it with max_text_len {length}: with another, the published code cannot resize its table")
    notes.append(f"added, as published files hold them: {listed(extras)}")
    return extras


def _text_length(folder: Path, config: VLMoConfig) -> int:
    """Return the longest text of the folder's tokenizer; that of the model where there is none."""
    path = folder / "tokenizer_config.json"
    if not path.is_file():
        return config.max_text_positions
    settings = read_json(path)
    length = settings.get("model_max_length") if isinstance(settings, dict) else None
    if type(length) is not int or length < 1:
        raise ValueError(f"{path} has model_max_length {length!r}; expected the longest text in tokens")
    return min(length, config.max_text_positions)
