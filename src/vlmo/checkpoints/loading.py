"""Load model folders, and read checkpoint files of others without running code inside them; errors are one line."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import logging

import vlmo.model
import vlmo.processing
from vlmo.checkpoints.layout import listed
from vlmo.distributed import choose_device
from vlmo.folder import WEIGHTS, architectures, check_processor, read_config, weight_files
from vlmo.folder.pickles import check_pickles
from vlmo.released import find_model

if TYPE_CHECKING:
    from transformers import BeitImageProcessor

    from vlmo.model import VLMoForImageTextRetrieval, VLMoPreTrainedModel
    from vlmo.processing import VLMoProcessor

Model = TypeVar("Model", bound="VLMoPreTrainedModel")

_WRAPPERS = ("state_dict", "module", "model")
_PARALLEL_PREFIX = "module."
_MOST_SHARED = 4  # times that a byte of a checkpoint may stand in tensors, as tied weights do
_FOLDER_FILES = (WEIGHTS, "pytorch_model.bin")


def load_model(
    folder: str | Path,
    model_class: type[Model] | None = None,
    *,
    device: str | torch.device | None = "cpu",
    hint: str = "",
    **options: Any,
) -> Model:
    """Load the model of a folder in evaluation mode. No code of the folder is run.

    Args:
        folder: Model folder, or the name of a model such as "vlmo-base-coco".
        model_class: Class to load; by default the one that `config.json` names.
        device: "cpu", "cuda" or "cuda:1"; None takes a GPU if there is one.
        hint: Sentence that the error adds where the folder holds another class.
        options: Arguments of `from_pretrained`, such as `dtype`.

    Raises:
        ValueError: The folder is no model folder, is damaged, or holds a model of another class.
    """
    folder, found = check_model_folder(folder, model_class, hint=hint)
    with one_line_errors(folder):
        _check_weights(folder, found)
        model = cast("Model", found.from_pretrained(folder, **options)).eval()
    module: nn.Module = (
        model  # transformers annotates its own `to` in a way that checkers do not read
    )
    module.to(choose_device(None if device is None else str(device)))
    return model


def load_processor(folder: str | Path) -> VLMoProcessor:
    """Load the processor of a model folder or a released model; ValueError if files are missing or damaged."""
    folder = find_model(folder)
    with one_line_errors(folder):
        return vlmo.processing.VLMoProcessor.from_pretrained(folder)


def load_image_processor(folder: str | Path) -> BeitImageProcessor:
    """Load the image half of a folder's processor, or make that of its model's size if it has none; ValueError."""
    from transformers import BeitImageProcessor

    folder = Path(find_model(folder))
    with one_line_errors(folder):
        if any(folder.glob("*processor_config.json")):
            return BeitImageProcessor.from_pretrained(folder)
    return vlmo.processing.image_processor_for(read_config(folder)["image_size"])


def load_retrieval_model(
    folder: str | Path, *, device: str | torch.device | None = "cpu"
) -> tuple[VLMoForImageTextRetrieval, VLMoProcessor]:
    """Load dual encoder (with the matching head, where the folder has one) and processor, as `load_model`."""
    return load_model(folder, vlmo.model.VLMoForImageTextRetrieval, device=device), load_processor(
        folder
    )


def check_model_folder(
    folder: str | Path, model_class: type[VLMoPreTrainedModel] | None = None, *, hint: str = ""
) -> tuple[Path, type[VLMoPreTrainedModel]]:
    """Return path and model class of a folder, without loading its weights; ValueError as `load_model`."""
    folder = Path(find_model(folder))
    kinds = architectures(folder)
    check_processor(folder)
    if model_class is None:
        return folder, named_class(folder, kinds, hint=hint)
    able = [model_class.__name__]
    if model_class is vlmo.model.VLMoForImageTextRetrieval:
        able.append("VLMoForPreTraining")  # which holds all of its weights
        hint = hint or "Retrieval needs one; stage 3 and fine-tuning for retrieval leave it."
    if not set(able) & set(map(str, kinds)):
        raise ValueError(f"{_held(folder, kinds)}; expected {' or '.join(able)}. {hint}".rstrip())
    return folder, model_class


def named_class(folder: Path, kinds: Sequence[Any], *, hint: str = "") -> type[VLMoPreTrainedModel]:
    """Return the model class that a folder names first; ValueError if it is none of ours."""
    found = getattr(vlmo.model, str(kinds[0]), None) if kinds else None
    if not isinstance(found, type) or not issubclass(found, vlmo.model.VLMoPreTrainedModel):
        raise ValueError(
            f"{_held(folder, kinds)}; expected a model folder of VLMoModel or VLMoFor... {hint}".rstrip()
        )
    return found


def _held(folder: Path, kinds: Sequence[Any]) -> str:
    return f"{folder} holds {', '.join(map(str, kinds)) or 'no named class'}"


def _check_weights(folder: Path, model_class: type[VLMoPreTrainedModel]) -> None:
    """Validate names and shapes of tensors before memory is taken for sizes that only the configuration claims."""
    with torch.device("meta"):
        wanted = model_class(vlmo.model.VLMoConfig.from_pretrained(folder)).state_dict()
    plain = {name.removeprefix("vlmo."): (name, [*tensor.shape]) for name, tensor in wanted.items()}
    found: dict[str, list[int]] = {}
    for path in weight_files(folder):
        with safe_open(path, framework="pt") as file:
            # A backbone alone does without "vlmo."
            for name in list(file.keys()):
                found[name.removeprefix("vlmo.")] = file.get_slice(name).get_shape()
    if any(found.get(key, shape) != shape for key, (_, shape) in plain.items()):
        raise ValueError("its tensors have other shapes than its config.json says")
    missing = [name for key, (name, _) in plain.items() if found and key not in found]
    if missing:
        shown = ", ".join(sorted(missing)[:3])
        raise ValueError(
            f"it lacks {len(missing)} tensors of {model_class.__name__} ({shown}, ...); is it whole?"
        )


@contextmanager
def one_line_errors(folder: str | Path) -> Iterator[None]:
    """Turn errors of transformers, tokenizers and safetensors into a ValueError of one line; hide their reports."""
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (
        Exception
    ) as error:  # tokenizers raises this very class, torch AssertionError for a configuration
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{folder} cannot be loaded: {reason}") from error
    finally:
        logging.set_verbosity(before)


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Return the named tensors of a torch file, a safetensors file, or a folder with one of these, maybe in shards.

    Tensors of large files stay on the disk until they are used; entries that are no tensors, such as "epoch", are left.

    Raises:
        ValueError: There is no such file, no weights in it, it is damaged, or reading it would run code.
    """
    path = Path(path)
    files = (
        weight_files(path, *_FOLDER_FILES) if path.is_dir() else [path] if path.is_file() else []
    )
    if not files:
        raise ValueError(
            f"no weights in {path}: expected a file, or a folder with {' or '.join(_FOLDER_FILES)}"
        )
    weights: dict[str, Tensor] = {}
    for file in files:
        weights |= _unwrap(_read_file(file), file)
    return weights


def read_labels(path: str | Path, *, count: int) -> list[str]:
    """Return the names of `count` answers or classes, in the order of their numbers.

    The file is a JSON list, JSON lines with `answer` and `label` as BEiT-3 writes them, or text with one name a line;
    or the folder of a prepared set, whose `prepared.json` lists them.

    Raises:
        ValueError: None of these forms, or not `count` different names.
    """
    path = Path(path) / "prepared.json" if Path(path).is_dir() else Path(path)
    if not path.is_file():
        raise ValueError(f"no file {path}: expected a list of answers")
    try:
        text = path.read_text(encoding="utf-8")
        names: Any = [line.strip() for line in text.splitlines() if line.strip()]
        if path.name == "prepared.json":
            names = list(json.loads(text)["labels"])
        elif text.startswith("["):
            names = json.loads(text)
        elif text.startswith("{"):
            numbered = {row["label"]: row["answer"] for row in map(json.loads, names)}
            names = [numbered[number] for number in range(len(names))]
    except (ValueError, LookupError, TypeError, RecursionError):
        raise ValueError(
            f"{path} is no list of answers; expected JSON, JSON lines, or one answer a line"
        ) from None
    if len(names) != count or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{path} names {len(names)} answers; the checkpoint has {count}")
    if len(set(names)) < count:
        twice = listed(name for name in set(names) if names.count(name) > 1)
        raise ValueError(f"{path} names {twice} more than once; give each answer a name of its own")
    return names


def _read_file(path: Path) -> object:
    is_pickle = path.suffix != ".safetensors"
    zipped = False
    if is_pickle:
        with path.open("rb") as file:
            check_pickles(file, path)
            zipped = (
                file.read(4) == b"PK\x03\x04"
            )  # the form before torch 1.6 cannot be mapped into memory
    try:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore"
            )  # about the form of the pickle; an unreadable one fails below
            if is_pickle:
                place: Any = (
                    "cpu" if zipped else _zeros
                )  # which torch calls, and annotates otherwise
                return torch.load(path, map_location=place, weights_only=True, mmap=zipped)
            return load_file(path)
    except (
        Exception
    ) as problem:  # of nearly every class: it depends on the byte where a damaged pickle breaks
        raise ValueError(
            f"{path} was refused: it is truncated, damaged, no checkpoint of torch, or reading it would"
            " run code. If you trust its author, re-save its weights alone: torch.save(model.state_dict(), FILE)"
        ) from problem


def _zeros(storage: torch.UntypedStorage, _location: str) -> torch.UntypedStorage:
    """Return zeros, of fixed size, for memory as it was: a file may lack numbers that it names."""
    return torch.from_numpy(np.zeros(storage.nbytes(), np.uint8)).untyped_storage()


def _unwrap(content: object, path: Path) -> dict[str, Tensor]:
    if not isinstance(content, dict):
        raise ValueError(
            f"{path} holds a {type(content).__name__}; expected a dictionary of named tensors"
        )
    # By the methods of the class: a pickle can put others into an OrderedDict.
    wrapped = [dict.get(content, name) for name in _WRAPPERS]
    inner = next((value for value in wrapped if isinstance(value, dict)), content)
    weights = {str(key): value for key, value in dict.items(inner) if isinstance(value, Tensor)}
    if not weights:
        raise ValueError(
            f"{path} holds no named tensors, neither at the top nor under {', '.join(_WRAPPERS)}"
        )
    expanded = [
        key for key, tensor in weights.items() if tensor.nbytes > tensor.untyped_storage().nbytes()
    ]
    if expanded:
        raise ValueError(f"{path}: tensors in which a number stands for many: {listed(expanded)}")
    size = path.stat().st_size
    if (claimed := sum(tensor.nbytes for tensor in weights.values())) > _MOST_SHARED * size:
        raise ValueError(f"{path} holds tensors of {claimed:,} bytes in {size:,}. Save them apart")
    if all(key.startswith(_PARALLEL_PREFIX) for key in weights):
        weights = {key.removeprefix(_PARALLEL_PREFIX): value for key, value in weights.items()}
    return weights
