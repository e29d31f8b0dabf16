"""The model of a folder that compares pictures with texts, as evaluation and other people's programs need it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlmo.folder import architectures
from vlmo.model import VLMoForImageTextRetrieval
from vlmo.model.loading import loading
from vlmo.processing import VLMoProcessor
from vlmo.released import find_model

_ABLE = {"VLMoForPreTraining", "VLMoForImageTextRetrieval"}


def load_retrieval_model(folder: str | Path) -> tuple[VLMoForImageTextRetrieval, VLMoProcessor]:
    """Dual encoder (with matching head, where the folder has one) in evaluation mode, and processor.

    Raises:
        ValueError: It is no model folder, or its model does not retrieve.
    """
    return load_by_name(check_model_folder(folder))


def load_by_name(
    name: str | Path, *, hub: Mapping[str, Any] | None = None, settings: Mapping[str, Any] | None = None
) -> tuple[VLMoForImageTextRetrieval, VLMoProcessor]:
    """`load_retrieval_model`, from the hub too.

    Args:
        name: A model folder, or the name of one on the hub.
        hub: Where to look, for model and processor: `revision`, `subfolder` and the like, as in transformers.
        settings: More arguments of the model's `from_pretrained`, such as `dtype`.

    Raises:
        ValueError: The folder holds no model that retrieves.
    """
    where = dict(hub or {})
    with loading(name):
        loaded: Any = VLMoForImageTextRetrieval.from_pretrained(
            name, output_loading_info=True, **where, **dict(settings or {})
        )
        processor = VLMoProcessor.from_pretrained(name, **where)
    model, report = loaded
    if missing := sorted(report["missing_keys"]):
        raise ValueError(
            f"{name} lacks {len(missing)} tensors ({', '.join(missing[:3])}, ...): expected a model that retrieves, "
            "which stage 3 or fine-tuning for retrieval leaves."
        )
    return model.eval(), processor


def check_model_folder(folder: str | Path) -> Path:
    """The folder as a path, also of a model that comes with the package.

    Raises:
        ValueError: It has no `config.json` (transformers would go on to look for the name on the hub), or one of
            another kind of model.
    """
    folder = Path(find_model(folder))
    kinds = architectures(folder)
    if not _ABLE & set(kinds):
        raise ValueError(
            f"{folder} holds {', '.join(kinds) or 'no named class'}; retrieval needs one of "
            f"{', '.join(sorted(_ABLE))} (what stage 3 and fine-tuning for retrieval leave)."
        )
    return folder
