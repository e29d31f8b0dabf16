"""From a model folder to a file in the published VLMo layout, which the published code reads."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoProcessor

from vlmo.interop.importing import PUBLISHED_EXTRAS, VLMO_LAYOUT
from vlmo.interop.official import (
    MAX_TEXT_POSITIONS,
    NUM_HEADS,
    POSITION_IDS,
    TABLE,
    TEXT_POSITIONS,
    in_published_shape,
    published_name,
)
from vlmo.interop.reading import read_state_dict
from vlmo.interop.report import grouped
from vlmo.model import VLMoConfig
from vlmo.processing import VLMoProcessor

_SUFFIXES = (".pt", ".safetensors")
_NUM_CLASS_ROWS = 3
_STAGE_1_HEAD = "mim_head."
_BACKBONE = "VLMoModel"
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

    A folder that was imported from such a file gives it back bit by bit, unless its tables were resized.

    Raises:
        ValueError: The layout cannot hold this model, or `file` exists; nothing has been written.
    """
    folder, file = Path(folder), Path(file)
    if file.suffix not in _SUFFIXES:
        raise ValueError(f"{file} ends in {file.suffix or 'nothing'}; expected {' or '.join(_SUFFIXES)}")
    if file.exists():
        raise ValueError(f"{file} exists; give another name")
    weights, origin = read_state_dict(folder)
    if (origin.config or {}).get("model_type") != VLMoConfig.model_type:
        raise ValueError(f"{folder} is no model folder of this project; expected model_type {VLMoConfig.model_type!r}")
    config = VLMoConfig.from_pretrained(folder)
    _check(config, folder)
    notes: list[str] = []
    published = _renamed(config, weights, folder=folder, notes=notes)
    extras = _extras(folder)
    if extras is None:
        extras = _made_up(config, published, text_length=_text_length(folder, config))
        notes += [f"made up, as published files hold it: {key}" for key in extras]
    published |= {key: tensor for key, tensor in extras.items() if key not in published}
    _write(published, file)
    return ExportReport(file, num_tensors=len(published), notes=notes)


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
    if (config.architectures or [""])[0] == _BACKBONE:
        weights = {f"vlmo.{name}": tensor for name, tensor in weights.items()}
    published: dict[str, Tensor] = {}
    foreign: list[str] = []
    for name, tensor in weights.items():
        if (key := published_name(name)) is not None:
            published[key] = in_published_shape(name, tensor)
        else:
            foreign.append(name)
    if foreign and not all(name.startswith(_STAGE_1_HEAD) for name in foreign):
        raise ValueError(
            f"{folder}: the published VLMo layout has no place for {', '.join(grouped(foreign))}; export a model of"
            " another task"
        )
    if foreign:
        notes.append(f"not in the layout, left out: {', '.join(foreign)}")
    known = NUM_HEADS.get((config.hidden_size, config.num_hidden_layers))
    if config.position_embedding == "absolute" and known != config.num_attention_heads:
        notes.append(f"the tensors do not tell the {config.num_attention_heads} attention heads; who reads must know")
    if config.max_text_positions < MAX_TEXT_POSITIONS and TABLE in published:
        published[TABLE] = _longer_text(published[TABLE], held=config.max_text_positions)
        notes.append(
            f"{TABLE}: rows for texts of up to {config.max_text_positions} tokens, with zeros for longer ones, up to"
            f" {MAX_TEXT_POSITIONS}"
        )
    return published


def _longer_text(table: Tensor, *, held: int) -> Tensor:
    """The table with text rows for `MAX_TEXT_POSITIONS`: offsets around the middle, the class token's rows last."""
    above, offsets, classes = table.tensor_split([len(table) - 2 * held, len(table) - _NUM_CLASS_ROWS])
    margin = table.new_zeros(MAX_TEXT_POSITIONS - held, table.shape[1])
    return torch.cat([above, margin, offsets, margin, classes])


def _extras(folder: Path) -> dict[str, Tensor] | None:
    """What an import kept of the published file; None where the folder does not stem from one."""
    path = folder / PUBLISHED_EXTRAS
    if not path.is_file():
        return None
    with safe_open(path, framework="pt") as file:
        if (file.metadata() or {}).get("layout") != VLMO_LAYOUT:
            return None
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)


def _made_up(config: VLMoConfig, published: dict[str, Tensor], *, text_length: int) -> dict[str, Tensor]:
    """Tensors that published files hold and a model of ours does not need: text positions beside a table, their ids."""
    words = published["text_embeddings.word_embeddings.weight"]
    extras = {}
    if config.position_embedding == "absolute":
        text_length = config.max_text_positions
    else:
        extras[TEXT_POSITIONS] = words.new_zeros(text_length, words.shape[1])
    return extras | {POSITION_IDS: torch.arange(text_length)[None]}


def _text_length(folder: Path, config: VLMoConfig) -> int:
    """Longest text of the folder's processor; that of the model where there is no tokenizer."""
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt")):
        return config.max_text_positions
    processor = AutoProcessor.from_pretrained(folder)
    return processor.max_text_length if isinstance(processor, VLMoProcessor) else config.max_text_positions


def _write(published: dict[str, Tensor], file: Path) -> None:
    """Writes aside and renames, so that `file` is whole or not there."""
    aside = file.with_name(f"{file.name}.aside")
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        tensors = {key: tensor.contiguous() for key, tensor in published.items()}
        if file.suffix == ".pt":
            torch.save({"state_dict": tensors}, aside)
        else:
            save_file(tensors, aside)
        aside.replace(file)
    finally:
        aside.unlink(missing_ok=True)
