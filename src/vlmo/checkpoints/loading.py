"""Load the model and the processor of a model folder, with one-line errors for folders that cannot be used."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import nn
from transformers import logging

import vlmo.model
from vlmo.distributed import choose_device
from vlmo.folder import architectures
from vlmo.model import VLMoForImageTextRetrieval, VLMoForPreTraining, VLMoPreTrainedModel
from vlmo.processing import VLMoProcessor
from vlmo.released import find_model

Model = TypeVar("Model", bound=VLMoPreTrainedModel)

# Classes whose weights hold all that another class needs.
_SUPERSETS: dict[type[VLMoPreTrainedModel], tuple[type[VLMoPreTrainedModel], ...]] = {
    VLMoForImageTextRetrieval: (VLMoForPreTraining,)
}
# Raised by transformers and safetensors for damaged files and for settings that no model has.
_DAMAGED = (OSError, SafetensorError, ValueError, TypeError, LookupError, AttributeError, ImportError)


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
        folder: Model folder, or the name of a released model such as "vlmo-small".
        model_class: Class to load; by default the one that `config.json` names.
        device: "cpu", "cuda" or "cuda:1"; None takes a GPU if there is one.
        hint: Sentence that the error adds where the folder holds another class.
        options: Arguments of `from_pretrained`, such as `dtype`.

    Raises:
        ValueError: The folder is no model folder, is damaged, or holds a model of another class.
    """
    folder, found = check_model_folder(folder, model_class, hint=hint)
    model = _load_complete(folder, cast("type[Model]", found), **options).eval()
    module: nn.Module = model  # transformers annotates its own `to` in a way that checkers do not read
    module.to(choose_device(None if device is None else str(device)))
    return model


def load_processor(folder: str | Path) -> VLMoProcessor:
    """Load the processor of a model folder, or of a released model.

    Raises:
        ValueError: Its files are missing or damaged.
    """
    folder = find_model(folder)
    with one_line_errors(folder):
        return VLMoProcessor.from_pretrained(folder)


def load_retrieval_model(
    folder: str | Path, *, device: str | torch.device | None = "cpu"
) -> tuple[VLMoForImageTextRetrieval, VLMoProcessor]:
    """Load dual encoder (with the matching head, where the folder has one) and processor.

    Raises:
        ValueError: As `load_model`.
    """
    return load_model(folder, VLMoForImageTextRetrieval, device=device, hint=RETRIEVAL_HINT), load_processor(folder)


RETRIEVAL_HINT = "Retrieval needs one; stage 3 and fine-tuning for retrieval leave it."


def check_model_folder(
    folder: str | Path, model_class: type[VLMoPreTrainedModel] | None = None, *, hint: str = ""
) -> tuple[Path, type[VLMoPreTrainedModel]]:
    """Return the path and the model class of a folder without loading its weights.

    Raises:
        ValueError: As `load_model`.
    """
    folder = Path(find_model(folder))
    kinds = architectures(folder)
    held = f"{folder} holds {', '.join(map(str, kinds)) or 'no named class'}"
    if model_class is None:
        found = vars(vlmo.model).get(str(kinds[0])) if kinds else None
        if not isinstance(found, type) or not issubclass(found, VLMoPreTrainedModel):
            raise ValueError(f"{held}; expected a model folder of VLMoModel or VLMoFor... {hint}".rstrip())
        return folder, found
    able = [each.__name__ for each in (model_class, *_SUPERSETS.get(model_class, ()))]
    if not set(able) & set(map(str, kinds)):
        raise ValueError(f"{held}; expected {' or '.join(able)}. {hint}".rstrip())
    return folder, model_class


def load_from_hub(
    name: str, model_class: type[Model], *, hub: dict[str, Any], **options: Any
) -> tuple[Model, VLMoProcessor]:
    """Load model and processor of a folder or of a repository of the hub.

    Args:
        hub: Place of the files: `revision`, `subfolder` and the like, as in transformers.
        options: Further arguments of the model's `from_pretrained`.

    Raises:
        ValueError: There is no such model, it is damaged, or it lacks weights of `model_class`.
    """
    model = _load_complete(name, model_class, **hub, **options).eval()
    with one_line_errors(name):
        return model, VLMoProcessor.from_pretrained(name, **hub)


def _load_complete(name: str | Path, model_class: type[Model], **options: Any) -> Model:
    with one_line_errors(name):
        loaded: Any = model_class.from_pretrained(name, output_loading_info=True, **options)
    model, report = loaded
    if missing := sorted(report["missing_keys"]):
        raise ValueError(
            f"{name} lacks {len(missing)} tensors of {model_class.__name__} ({', '.join(missing[:3])}, ...); it holds "
            "a model for another purpose, or was not written whole"
        )
    return cast("Model", model)


@contextmanager
def one_line_errors(folder: str | Path) -> Iterator[None]:
    """Turn errors of transformers and safetensors into one line with the folder; hide their report of tensors.

    Raises:
        ValueError: The folder is damaged or incomplete.
    """
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    except RuntimeError as error:
        if "mismatched" not in str(error):
            raise
        raise ValueError(f"{folder}: its tensors have other shapes than its config.json says") from error
    except (*_DAMAGED, StrictDataclassError) as error:
        raise ValueError(f"{folder} cannot be loaded: {' '.join(str(error).split())}") from error
    finally:
        logging.set_verbosity(before)
