"""From a model folder to a file in the published VLMo layout, which the published code reads."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass, field
from pathlib import Path

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from vlmo.checkpoints.extras import index_buffers
from vlmo.checkpoints.importing import PUBLISHED_EXTRAS, VLMO_LAYOUT
from vlmo.checkpoints.official import (
    NUM_HEADS,
    POSITION_IDS,
    TABLE,
    TEXT_POSITIONS,
    in_published_shape,
    published_name,
)
from vlmo.checkpoints.reading import read_json, read_state_dict
from vlmo.checkpoints.report import listed, one_line
from vlmo.checkpoints.shapes import DEFAULT_TEXT_LENGTH, MAX_TEXT_POSITIONS, NUM_CLASS_ROWS
from vlmo.model import (
    VLMoConfig,
    VLMoForImageClassification,
    VLMoForImageTextRetrieval,
    VLMoForMaskedImageModeling,
    VLMoForMaskedLM,
    VLMoForPreTraining,
    VLMoForSemanticSegmentation,
    VLMoForVisualQuestionAnswering,
    VLMoForVisualReasoning,
    VLMoModel,
)
from vlmo.model.backbone import VLMoPreTrainedModel

_SUFFIXES = (".pt", ".safetensors")
_STAGE_1_HEAD = "mim_head."
_CLASSES: dict[str, type[VLMoPreTrainedModel]] = {
    model_class.__name__: model_class
    for model_class in (
        VLMoForImageClassification,
        VLMoForImageTextRetrieval,
        VLMoForMaskedImageModeling,
        VLMoForMaskedLM,
        VLMoForPreTraining,
        VLMoForSemanticSegmentation,
        VLMoForVisualQuestionAnswering,
        VLMoForVisualReasoning,
        VLMoModel,
    )
}
# What the layout has no words for, and what it has instead.
_FIXED = {
    "experts": "multiway",
    "attention": "shared",
    "token_order": "text_first",
    "final_norm": "shared",
    "text_embedding": "bert",
    "key_bias": False,
    "inner_norm": False,
}
# What no tensor tells, and what the published code computes with.
_CONSTANTS = {"layer_norm_eps": 1e-6, "text_layer_norm_eps": 1e-12}


@dataclass(frozen=True)
class ExportReport:
    """What was written.

    Attributes:
        notes: What the file holds beside the model's tensors, and what of the model is not in it.
    """

    file: Path
    num_tensors: int
    notes: list[str] = field(default_factory=list)


def export_official(folder: str | Path, file: str | Path) -> ExportReport:
    """Writes a model folder as one file in the published layout: `.pt`, under `state_dict`, or `.safetensors`.

    A folder that was imported from such a file gives it back bit by bit, unless the import changed sizes, completed it
    or brought mixed types to one.

    Raises:
        ValueError: The folder is broken, the layout cannot hold its model, or `file` exists; nothing has been written.
        OSError: `file` cannot be written; nothing is left of it.
    """
    folder, file = Path(folder), Path(file)
    if file.suffix not in _SUFFIXES:
        raise ValueError(f"{file} ends in {file.suffix or 'nothing'}; expected {' or '.join(_SUFFIXES)}")
    if file.exists():
        raise ValueError(f"{file} exists; give another name")
    weights, origin = read_state_dict(folder)
    if (origin.config or {}).get("model_type") != VLMoConfig.model_type:
        raise ValueError(f"{folder} is no model folder of this project; expected model_type {VLMoConfig.model_type!r}")
    config = _read_config(folder)
    _check(config, folder)
    model_class = _check_weights(config, weights, folder)
    if model_class is VLMoModel:
        weights = {f"vlmo.{name}": tensor for name, tensor in weights.items()}
    notes: list[str] = []
    published = _renamed(config, weights, folder=folder, notes=notes)
    extras = _extras(folder)
    if extras is None:
        extras = _made_up(config, published, text_length=_text_length(folder, config), notes=notes)
    published |= {key: tensor for key, tensor in extras.items() if key not in published}
    _write(published, file)
    return ExportReport(file, num_tensors=len(published), notes=notes)


def _read_config(folder: Path) -> VLMoConfig:
    try:
        return VLMoConfig.from_pretrained(folder)
    except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, StrictDataclassError) as problem:
        raise ValueError(f"{folder / 'config.json'} is no configuration of a VLMo: {one_line(problem)}") from None


def _check_weights(config: VLMoConfig, weights: dict[str, Tensor], folder: Path) -> type[VLMoPreTrainedModel]:
    """The class of the folder's model, when the folder holds all of its tensors and no other.

    Raises:
        ValueError: It does not.
    """
    name = (config.architectures or [""])[0]
    if name not in _CLASSES:
        raise ValueError(f"{folder / 'config.json'} names no model class ({name!r}); expected architectures of VLMo")
    with torch.device("meta"):
        shapes = {key: tensor.shape for key, tensor in _CLASSES[name](config).state_dict().items()}
    problems = []
    if missing := shapes.keys() - weights.keys():
        problems.append(f"without {listed(missing)}")
    if foreign := weights.keys() - shapes.keys():
        problems.append(f"with {listed(foreign)}, which {name} does not have")
    if wrong := [key for key in shapes.keys() & weights.keys() if weights[key].shape != shapes[key]]:
        problems.append(f"with other shapes than its config.json asks for: {listed(wrong)}")
    if problems:
        raise ValueError(f"{folder} is broken: {name} {'; '.join(problems)}")
    return _CLASSES[name]


def _check(config: VLMoConfig, folder: Path) -> None:
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


def _renamed(config: VLMoConfig, weights: dict[str, Tensor], *, folder: Path, notes: list[str]) -> dict[str, Tensor]:
    """Weights under published names and in published shapes."""
    published: dict[str, Tensor] = {}
    foreign: list[str] = []
    for name, tensor in weights.items():
        if (key := published_name(name)) is not None:
            published[key] = in_published_shape(name, tensor)
        else:
            foreign.append(name)
    if foreign and not all(name.startswith(_STAGE_1_HEAD) for name in foreign):
        raise ValueError(
            f"{folder}: the published VLMo layout has no place for {listed(foreign)}; export a model of another task"
        )
    if foreign:
        notes.append(f"not in the layout, left out: {listed(foreign)}")
    notes += _caveats(config, published)
    if config.max_text_positions < MAX_TEXT_POSITIONS and TABLE in published:
        published[TABLE] = _longer_text(published[TABLE], held=config.max_text_positions)
        notes.append(
            f"{TABLE}: rows for texts of up to {config.max_text_positions} tokens, with zeros for longer ones, up to"
            f" {MAX_TEXT_POSITIONS}"
        )
    return published


def _caveats(config: VLMoConfig, published: dict[str, Tensor]) -> list[str]:
    notes = [
        f"the published code computes with {name} {fixed:g}; this model was made with {value:g}"
        for name, fixed in _CONSTANTS.items()
        if (value := vars(config)[name]) != fixed
    ]
    known = NUM_HEADS.get((config.hidden_size, config.num_hidden_layers))
    if config.position_embedding == "absolute" and known != config.num_attention_heads:
        notes.append(f"the tensors do not tell the {config.num_attention_heads} attention heads; who reads must know")
    if config.projection_size != config.hidden_size and any(key.startswith("itc_") for key in published):
        notes.append(
            f"contrast vectors have {config.projection_size} numbers; the published code makes heads of"
            f" {config.hidden_size} and must be changed to load these"
        )
    return notes


def _longer_text(table: Tensor, *, held: int) -> Tensor:
    """The table with text rows for `MAX_TEXT_POSITIONS`: offsets around the middle, the class token's rows last."""
    above, offsets, classes = table.tensor_split([len(table) - 2 * held, len(table) - NUM_CLASS_ROWS])
    margin = table.new_zeros(MAX_TEXT_POSITIONS - held, table.shape[1])
    return torch.cat([above, margin, offsets, margin, classes])


def _extras(folder: Path) -> dict[str, Tensor] | None:
    """What an import kept of the published file; None where the folder does not stem from one."""
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


def _made_up(
    config: VLMoConfig, published: dict[str, Tensor], *, text_length: int, notes: list[str]
) -> dict[str, Tensor]:
    """What published files hold and a model of ours does not need: text positions beside a table, and indices.

    The published code keeps a file's text positions only where they are as many as its `max_text_len` or more, and then
    resizes a table only where they are just as many: so there are as many as its recipes ask for, or as our texts need.
    """
    words = published["text_embeddings.word_embeddings.weight"]
    if config.position_embedding == "absolute":
        extras = {POSITION_IDS: torch.arange(config.max_text_positions)[None]}
    else:
        length = max(text_length, DEFAULT_TEXT_LENGTH)
        extras = {
            TEXT_POSITIONS: words.new_zeros(length, words.shape[1]),
            POSITION_IDS: torch.arange(length)[None],
            **index_buffers(config, text_length=length),
        }
        notes.append(f"load it with max_text_len {length}: with another, the published code cannot resize its table")
    notes.append(f"made up, as published files hold them: {listed(extras)}")
    return extras


def _text_length(folder: Path, config: VLMoConfig) -> int:
    """Longest text of the folder's tokenizer; that of the model where there is none."""
    path = folder / "tokenizer_config.json"
    if not path.is_file():
        return config.max_text_positions
    settings = read_json(path)
    length = settings.get("model_max_length") if isinstance(settings, dict) else None
    if type(length) is not int or length < 1:
        raise ValueError(f"{path} has model_max_length {length!r}; expected the longest text in tokens")
    return min(length, config.max_text_positions)


def _write(published: dict[str, Tensor], file: Path) -> None:
    """Writes aside and renames, so that `file` is whole or not there."""
    aside = file.with_name(f".{file.name}.vlmo-aside")
    tensors = {key: tensor.contiguous() for key, tensor in published.items()}
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with aside.open("wb") as stream:
            rights = aside.stat().st_mode
            if file.suffix == ".pt":
                torch.save({"state_dict": tensors}, stream)
        if file.suffix == ".safetensors":
            save_file(tensors, aside)
            aside.chmod(rights)  # safetensors keeps files to their owner
        _flush_to_disk(aside)
        aside.replace(file)
        _flush_to_disk(file.parent)
    except (OSError, RuntimeError, SafetensorError) as problem:
        raise OSError(f"{file} cannot be written: {one_line(problem)}") from None
    finally:
        with contextlib.suppress(OSError):
            aside.unlink(missing_ok=True)


def _flush_to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
