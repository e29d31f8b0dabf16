"""Reading of checkpoint files without running code inside them."""

from __future__ import annotations

import json
import os
import pickle
import pickletools
import re
import struct
import warnings
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from vlmo.checkpoints.layout import listed, one_line, printable, spans

_WRAPPERS = ("state_dict", "module", "model")
_PARALLEL_PREFIX = "module."
_INDEX_SUFFIX = ".index.json"
_FOLDER_FILES = ("model.safetensors", "pytorch_model.bin")
# Name of the refused function in torch's messages.
_CULPRIT = re.compile(r"[Uu]nsupported (?:global: )?GLOBAL (\S+)|unrecognized function <?(?:[\w-]+ )*([\w.]+)")
# Errors of a damaged pickle, which depend on the byte where it breaks. MemoryError: a length of 2 to the 62nd.
_DAMAGED = (
    *(RuntimeError, EOFError, ValueError, LookupError, TypeError, AttributeError, AssertionError, OverflowError),
    *(OSError, struct.error, MemoryError),
)


@dataclass(frozen=True)
class Origin:
    """Content of a file or folder beside the weights.

    Attributes:
        beside: Entries of the file that are no weights, such as `epoch`.
        config: `config.json` of a folder.
    """

    beside: list[str] = field(default_factory=list)
    config: dict[str, Any] | None = None


def read_state_dict(path: str | Path) -> tuple[dict[str, Tensor], Origin]:
    """Return the named tensors of a torch file, a safetensors file, or a folder with one of these, maybe in shards.

    Tensors of large files stay on the disk until they are used.

    Raises:
        ValueError: There is no such file, no weights in it, it is damaged, or reading it would run code.
    """
    path = Path(path)
    if not path.is_dir():
        if not path.is_file():
            raise ValueError(f"no file {path}: expected a checkpoint, or a folder with config.json and weights")
        return _unwrap(_read_file(path), path)
    candidates = (path / f"{name}{suffix}" for name in _FOLDER_FILES for suffix in ("", _INDEX_SUFFIX))
    file = next((file for file in candidates if file.is_file()), None)
    if file is None:
        raise ValueError(
            f"{path} holds no weights: expected model.safetensors, pytorch_model.bin, or shards of one with their index"
        )
    config_file = path / "config.json"
    config = read_json(config_file) if config_file.is_file() else None
    if config is not None and not isinstance(config, dict):
        raise ValueError(f"{config_file} holds no JSON object; expected the configuration of a model")
    weights: dict[str, Tensor] = {}
    beside: list[str] = []
    for shard in _shards(file) if file.name.endswith(_INDEX_SUFFIX) else [file]:
        part, origin = _unwrap(_read_file(shard), shard)
        weights |= part
        beside += origin.beside
    return weights, Origin(beside, config)


def read_labels(path: str | Path, *, count: int) -> list[str]:
    """Return the names of `count` answers or classes, in the order of their numbers.

    The file is a JSON list, a JSON object {answer: number} or {number: answer}, JSON lines with `answer` and `label`,
    or text with one answer a line.

    Raises:
        ValueError: None of these forms, or the numbers are not 0 to `count` - 1.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"no file {path}: expected a list of answers")
    try:
        pairs = _parse_labels(path.read_text(encoding="utf-8").strip())
    except UnicodeDecodeError:
        raise ValueError(f"{path} is no text; expected answers as JSON, JSON lines or one a line") from None
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ValueError(
            f"{path} is no list of answers; expected a JSON list, JSON {{answer: number}} or {{number: answer}}, JSON"
            " lines with answer and label, or one answer a line"
        ) from None
    numbers = sorted(number for number, _ in pairs)
    if numbers != list(range(count)):
        held = f", numbered {spans(set(numbers))}" if len(numbers) == count else ""
        raise ValueError(
            f"{path} names {len(pairs)} answers{held}; the checkpoint has {count}, each with one number from 0. Give"
            " the list of answers that it was trained with"
        )
    if twice := [name for name, times in Counter(name for _, name in pairs).items() if times > 1]:
        raise ValueError(f"{path} names {listed(twice)} more than once; give each answer a name of its own")
    return [name for _, name in sorted(pairs)]


def read_json(path: Path) -> Any:
    """Return the content of a JSON file.

    Raises:
        ValueError: It is no JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as problem:
        raise ValueError(f"{path} is no JSON ({one_line(problem)})") from None


def _shards(index: Path) -> list[Path]:
    content = read_json(index)
    names = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(names, dict) or not names:
        raise ValueError(f"{index} has no weight_map; expected the index of a sharded model")
    # Only names, so that an index cannot point outside its folder.
    return [index.with_name(Path(str(name)).name) for name in sorted(set(map(str, names.values())))]


def _read_file(path: Path) -> object:
    """Return the content of a file: tensors and plain containers only."""
    if not path.is_file():
        raise ValueError(f"no file {path}, which the index of the folder names; the download is incomplete")
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, framework="pt") as file:
                return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        except SafetensorError as problem:
            raise ValueError(f"{path} is truncated, damaged or no safetensors file ({one_line(problem)})") from None
    with path.open("rb") as file:
        zipped = file.read(4) == b"PK\x03\x04"  # the form before torch 1.6 cannot be mapped into memory
    damaged = (
        f"{path} cannot be read: it is truncated, damaged, or no checkpoint of torch ({path.stat().st_size} bytes)"
    )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the form of the pickle; an unreadable one fails below
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except pickle.UnpicklingError as problem:
        if (culprit := _foreign_code(str(problem), path)) is None:
            raise ValueError(damaged) from None
        raise ValueError(
            f"{path} was refused: reading it would run code ({culprit}). If you trust its author, re-save its weights"
            " alone where it was made: torch.save({'state_dict': model.state_dict()}, FILE)"
        ) from None
    except _DAMAGED:
        raise ValueError(damaged) from None


def _foreign_code(message: str, path: Path) -> str | None:
    """Return the function that torch refused to call, by its message or by the first name in a bare pickle.

    None where the file breaks off inside that name, which torch then takes for the whole of it, less a last byte.
    """
    if found := _CULPRIT.search(message):
        culprit = printable(found[1] or found[2])
        last = culprit.rpartition(".")[2].encode()
        with path.open("rb") as file:
            file.seek(-min(len(last) + 1, path.stat().st_size), os.SEEK_END)
            return None if not last or file.read()[:-1] == last else culprit
    strings: list[str] = []
    try:
        with path.open("rb") as file:
            for operation, value, _ in pickletools.genops(file):
                if operation.name == "GLOBAL":
                    return str(value).replace(" ", ".")
                if operation.name == "STACK_GLOBAL":
                    return ".".join(strings[-2:])
                if isinstance(value, str):
                    strings.append(value)
    except _DAMAGED:
        return None
    return None


def _unwrap(content: object, path: Path) -> tuple[dict[str, Tensor], Origin]:
    """Return the weights in the content of a file, and the names of all else."""
    beside: list[str] = []
    if isinstance(content, Mapping):
        for name in _WRAPPERS:
            if isinstance(inner := content.get(name), Mapping):
                beside = [str(key) for key in content if key != name]
                content = inner
                break
    if not isinstance(content, Mapping):
        raise ValueError(f"{path} holds a {type(content).__name__}; expected a dictionary of named tensors")
    weights = {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
    if not weights:
        raise ValueError(
            f"{path} holds no named tensors, neither at the top nor under {', '.join(_WRAPPERS)}; it is no checkpoint"
        )
    if foreign := [key for key, tensor in weights.items() if not _is_plain(tensor)]:
        raise ValueError(
            f"{path} holds tensors that are not stored as plain numbers (but sparse, nested, quantised or without"
            f" data): {listed(foreign)}. Save them dense"
        )
    beside += [str(key) for key, value in content.items() if not isinstance(value, Tensor)]
    if all(key.startswith(_PARALLEL_PREFIX) for key in weights):
        weights = {key.removeprefix(_PARALLEL_PREFIX): value for key, value in weights.items()}
    return weights, Origin(beside)


def _is_plain(tensor: Tensor) -> bool:
    stored = tensor.layout is torch.strided and tensor.device.type == "cpu"
    return stored and not tensor.is_nested and not tensor.is_quantized


class _Pairs(list[tuple[str, Any]]):
    """A JSON object with every key that was written, also one that was written twice."""


def _parse_labels(text: str) -> list[tuple[int, str]]:
    """Return numbers and names, in the order of the file."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    try:
        content = json.loads(text, object_pairs_hook=_Pairs)
    except ValueError:
        if not lines or not lines[0].startswith("{"):
            return list(enumerate(lines))
        content = None
    row = dict(content) if isinstance(content, _Pairs) else {}
    if content is None or {"answer", "label"} <= row.keys():  # JSON lines
        rows = [json.loads(line) for line in lines]
        return [(_number(row["label"]), _name(row["answer"])) for row in rows]
    if isinstance(content, _Pairs):
        if all(type(value) is int for value in row.values()):
            return [(number, answer) for answer, number in content]
        return [(_number(number), _name(answer)) for number, answer in content]
    if isinstance(content, list):
        return [(number, _name(answer)) for number, answer in enumerate(content)]
    return list(enumerate(lines))


def _number(value: Any) -> int:
    if type(value) not in {int, str}:
        raise TypeError("no whole number")
    return int(value)


def _name(value: Any) -> str:
    if type(value) not in {int, float, str}:
        raise TypeError("no name")
    return str(value)
