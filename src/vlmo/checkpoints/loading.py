"""Load model folders, and read checkpoint files of others without running code inside them; errors are one line."""

from __future__ import annotations

import json
import warnings
from collections import Counter
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
# Times that a byte of a checkpoint may stand in tensors, as tied weights do.
_MOST_SHARED = 4
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
    folder, folder_class = check_model_folder(folder, model_class, hint=hint)
    with one_line_errors(folder):
        _check_weights(folder, folder_class)
        model = cast("Model", folder_class.from_pretrained(folder, **options)).eval()
    # The library annotates its own `to` in a way that checkers do not read.
    module: nn.Module = model
    module.to(choose_device(None if device is None else str(device)))
    return model


def load_processor(folder: str | Path) -> VLMoProcessor:
    """Load the processor of a model folder or a released model; ValueError if files are missing or damaged."""
    folder = find_model(folder)
    with one_line_errors(folder):
        processor = vlmo.processing.VLMoProcessor.from_pretrained(folder)
        num_tokens = len(processor.tokenizer)
        num_words = read_config(folder).get("vocab_size", num_tokens)
        if num_tokens > num_words:
            raise ValueError(f"its tokenizer has {num_tokens} tokens, its word table {num_words}")
        return processor


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
    names = architectures(folder)
    check_processor(folder)
    if model_class is None:
        return folder, named_class(folder, names, hint=hint)
    expected = [model_class.__name__]
    if model_class is vlmo.model.VLMoForImageTextRetrieval:
        # A pre-trained model holds all of its weights.
        expected.append("VLMoForPreTraining")
        hint = hint or "Retrieval needs one; stage 3 and fine-tuning for retrieval leave it."
    if not set(expected) & set(names):
        raise _wrong_class(folder, names, expected=" or ".join(expected), hint=hint)
    return folder, model_class


def named_class(folder: Path, names: Sequence[str], *, hint: str = "") -> type[VLMoPreTrainedModel]:
    """Return the model class that a folder names first; ValueError if it is none of ours."""
    model_class = getattr(vlmo.model, str(names[0]), None) if names else None
    if isinstance(model_class, type) and issubclass(model_class, vlmo.model.VLMoPreTrainedModel):
        return model_class
    raise _wrong_class(
        folder, names, expected="a model folder of VLMoModel or VLMoFor...", hint=hint
    )


def _wrong_class(folder: Path, names: Sequence[str], *, expected: str, hint: str) -> ValueError:
    content = ", ".join(map(str, names)) or "no named class"
    return ValueError(f"{folder} holds {content}; expected {expected}. {hint}".rstrip())


def _check_weights(folder: Path, model_class: type[VLMoPreTrainedModel]) -> None:
    """Validate names and shapes of tensors before memory is taken for sizes that only the configuration claims."""
    with torch.device("meta"):
        state = model_class(vlmo.model.VLMoConfig.from_pretrained(folder)).state_dict()
    shapes: dict[str, list[int]] = {}
    for path in weight_files(folder):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118
                # A backbone alone does without "vlmo."
                shapes[name.removeprefix("vlmo.")] = file.get_slice(name).get_shape()
    # What a file has beyond the model is left, such as heads of another stage.
    missing = []
    for name, tensor in state.items():
        shape = shapes.get(name.removeprefix("vlmo."))
        if shape is None:
            missing.append(name)
        elif shape != list(tensor.shape):
            raise ValueError("its tensors have other shapes than its config.json says")
    if shapes and missing:
        examples = ", ".join(sorted(missing)[:3])
        raise ValueError(
            f"it lacks {len(missing)} tensors of {model_class.__name__} ({examples}, ...); is it whole?"
        )


@contextmanager
def one_line_errors(folder: str | Path) -> Iterator[None]:
    """Turn errors of transformers, tokenizers and safetensors into a ValueError of one line; hide their reports."""
    # transformers also reports missing keys, over many lines.
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    # The library tokenizers raises this very class, torch AssertionError for a configuration.
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{folder} cannot be loaded: {reason}") from error
    finally:
        logging.set_verbosity(before)


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Return the named tensors of a torch file, a safetensors file, or a folder with one of these, maybe in shards.

    Tensors of large files stay on the disk until they are used; entries that are no tensors, such
    as "epoch", are left.

    Raises:
        ValueError: There is no such file, no weights in it, it is damaged, or reading it would run
            code.
    """
    path = Path(path)
    files = weight_files(path, *_FOLDER_FILES) if path.is_dir() else [path]
    if not files or not files[0].is_file():
        raise ValueError(
            f"no weights in {path}: expected a file, or a folder with {' or '.join(_FOLDER_FILES)}"
        )
    weights: dict[str, Tensor] = {}
    for file in files:
        weights |= _named_tensors(_read_file(file), file)
    return weights


def read_labels(path: str | Path, *, count: int) -> list[str]:
    """Return the names of `count` answers or classes, in the order of their numbers.

    The file is a JSON list, JSON lines with `answer` and `label` as BEiT-3 writes them, or text
    with one name a line; or the folder of a prepared set, whose `prepared.json` lists them.

    Raises:
        ValueError: None of these forms, or not `count` different names.
    """
    path = Path(path)
    if path.is_dir():
        path /= "prepared.json"
    if not path.is_file():
        raise ValueError(f"no file {path}: expected a list of answers")
    try:
        text = path.read_text(encoding="utf-8")
        names = [line.strip() for line in text.splitlines() if line.strip()]
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
    repeated = [name for name, times in Counter(names).items() if times > 1]
    if repeated:
        raise ValueError(
            f"{path} names {listed(repeated)} more than once; give each answer a name of its own"
        )
    return names


def _read_file(path: Path) -> object:
    is_pickle = path.suffix != ".safetensors"
    is_zip = False
    if is_pickle:
        with path.open("rb") as file:
            check_pickles(file, path)
            is_zip = file.read(4) == b"PK\x03\x04"
    try:
        if not is_pickle:
            return load_file(path)
        with warnings.catch_warnings():
            # Warnings are about the form of the pickle; an unreadable one fails below.
            warnings.simplefilter("ignore")
            # The form before torch 1.6, no zip, cannot be mapped into memory.
            return torch.load(
                path, map_location="cpu" if is_zip else _zeros, weights_only=True, mmap=is_zip
            )
    # The class depends on the byte where a damaged pickle breaks.
    except Exception as problem:
        raise ValueError(
            f"{path} was refused: it is truncated, damaged, no checkpoint of torch, or reading it would run code."
            " If you trust its author, re-save its weights alone: torch.save(model.state_dict(), FILE)"
        ) from problem


def _zeros(storage: Any, _location: str) -> Any:
    """Return zeros, of fixed size, in place of memory as it was: a file need not hold all numbers that it names."""
    return torch.from_numpy(np.zeros(storage.nbytes(), np.uint8)).untyped_storage()


def _named_tensors(content: object, path: Path) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint's dictionary by name; ValueError for those that cannot be used."""
    if not isinstance(content, dict):
        raise ValueError(
            f"{path} holds a {type(content).__name__}; expected a dictionary of named tensors"
        )
    # By the methods of the class: a pickle can put others into an OrderedDict.
    for wrapper in _WRAPPERS:
        inner = dict.get(content, wrapper)
        if isinstance(inner, dict):
            content = inner
            break
    weights = {str(key): value for key, value in dict.items(content) if isinstance(value, Tensor)}
    if not weights:
        raise ValueError(
            f"{path} holds no named tensors, neither at the top nor under {', '.join(_WRAPPERS)}"
        )
    expanded = [
        key for key, tensor in weights.items() if tensor.nbytes > tensor.untyped_storage().nbytes()
    ]
    # Stride 0: a file of a kilobyte could claim any memory.
    if expanded:
        raise ValueError(
            f"{path} holds expanded tensors, in which a number stands for many: {listed(expanded)}"
        )
    size = path.stat().st_size
    claimed = sum(tensor.nbytes for tensor in weights.values())
    # Tensors that share a storage: each would take memory of its own.
    if claimed > _MOST_SHARED * size:
        raise ValueError(f"{path} holds tensors of {claimed:,} bytes in {size:,}. Save them apart")
    # DistributedDataParallel puts its prefix in front of every key.
    if all(key.startswith(_PARALLEL_PREFIX) for key in weights):
        return {key.removeprefix(_PARALLEL_PREFIX): value for key, value in weights.items()}
    return weights
