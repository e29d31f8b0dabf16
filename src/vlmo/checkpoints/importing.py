"""From a published checkpoint to a model folder."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors.torch import save_file
from torch import Tensor
from transformers import BeitImageProcessor

from vlmo.checkpoints import beit, beit3, official
from vlmo.checkpoints.conversion import Conversion
from vlmo.checkpoints.extras import fit_unused
from vlmo.checkpoints.reading import Origin, read_labels, read_state_dict
from vlmo.checkpoints.report import ImportReport, listed, one_line, printable
from vlmo.checkpoints.text import fit_text, make_processor
from vlmo.folder import ModelCard, write_card, write_folder
from vlmo.model import VLMoConfig, VLMoForImageClassification, VLMoForVisualQuestionAnswering, VLMoModel
from vlmo.model.backbone import VLMoPreTrainedModel
from vlmo.model.position import resize_absolute_positions, resize_bias_table
from vlmo.processing import VLMoProcessor

PUBLISHED_EXTRAS = "published_extras.safetensors"
"""Tensors of the published file that the model does not use, kept so that an export gives the whole file back."""
VLMO_LAYOUT = "vlmo"

_SEED = 0
# What tensors of shapes that nobody thought of can end in.
_UNFORESEEN = (LookupError, TypeError, RuntimeError, AssertionError, ArithmeticError, StrictDataclassError)
_PREFIX = "vlmo."
_TABLE, _IMAGE_POSITIONS = "vlmo.position_bias.table", "vlmo.image_embeddings.positions"


@dataclass(frozen=True)
class _Kind:
    recognises: Callable[[Mapping[str, Tensor]], bool]
    convert: Callable[[Mapping[str, Tensor], Origin, int | None], Conversion]


@dataclass(frozen=True)
class _Fitted:
    """A conversion at the sizes that were asked for."""

    config: VLMoConfig
    weights: dict[str, Tensor]
    dtype: torch.dtype
    processor: VLMoProcessor | BeitImageProcessor
    text_length: int | None
    resized: list[str]


def _is_hugging_face(state_dict: Mapping[str, Tensor]) -> bool:
    return any(key.endswith("embeddings.cls_token") for key in state_dict)


def _convert_beit(state_dict: Mapping[str, Tensor], origin: Origin, heads: int | None) -> Conversion:
    return beit.convert(state_dict, config=origin.config, num_attention_heads=heads)


KINDS: dict[str, _Kind] = {
    "vlmo": _Kind(official.recognises, lambda state, _, heads: official.convert(state, num_attention_heads=heads)),
    "beit": _Kind(lambda state: beit.recognises(state) and not _is_hugging_face(state), _convert_beit),
    "hf-beit": _Kind(lambda state: beit.recognises(state) and _is_hugging_face(state), _convert_beit),
    "beit3": _Kind(beit3.recognises, lambda state, _, heads: beit3.convert(state, num_attention_heads=heads)),
}


def import_checkpoint(
    path: str | Path,
    out: str | Path,
    *,
    kind: str = "auto",
    image_size: int | None = None,
    text_length: int | None = None,
    num_attention_heads: int | None = None,
    vocabulary: str | Path | None = None,
    labels: str | Path | None = None,
    allow_partial: bool = False,
) -> ImportReport:
    """Writes a published checkpoint as the model folder `out`, which is whole in the end or not there.

    Args:
        path: A torch or safetensors file, or a folder with `config.json` and weights.
        out: Must not exist, or be an empty folder.
        kind: One of `KINDS`, or `"auto"`.
        image_size: Pixels; position tables are resized to it.
        text_length: Longest text in tokens, a multiple of 8; by default that of the file.
        num_attention_heads: Where the tensors do not tell it.
        vocabulary: BERT's `vocab.txt` or a folder with it; for BEiT-3 its SentencePiece file. By default BERT's is
            fetched from the model hub.
        labels: File with the names of answers or classes; see `read_labels`.
        allow_partial: Whether unknown keys are left out, and missing ones started anew, instead of refused.

    Raises:
        ValueError: The file, or what was asked, cannot be used; nothing has been written.
    """
    path, out = Path(path), Path(out).absolute()
    _check_out(out)
    state_dict, origin = read_state_dict(path)
    try:
        conversion = _convert(state_dict, origin, kind=kind, num_attention_heads=num_attention_heads)
        conversion, left_out = _complete(conversion, state_dict, allow_partial=allow_partial)
        conversion.notes.extend(_notes_on(origin))
        fitted = _fit(conversion, image_size=image_size, text_length=text_length, vocabulary=vocabulary, labels=labels)
        model, created = _build(conversion, fitted)
    except ValueError as problem:
        raise ValueError(f"{path}: {problem}") from None
    except _UNFORESEEN as problem:
        raise ValueError(
            f"{path}: its tensors do not make a model ({type(problem).__name__}: {one_line(problem)}). Is the file"
            " whole?"
        ) from None
    report = ImportReport(
        folder=out,
        kind=conversion.kind,
        model_class=conversion.model_class.__name__,
        config=fitted.config,
        dtype=str(fitted.dtype).removeprefix("torch."),
        num_parameters=sum(parameter.numel() for parameter in model.parameters()),
        text_length=fitted.text_length,
        num_loaded=len(fitted.weights),
        unused=sorted(conversion.unused),
        left_out=left_out,
        created=created,
        resized=fitted.resized,
        file_image_size=conversion.config.image_size,
        notes=conversion.notes,
    )
    with write_folder(out) as aside:
        model.save_pretrained(aside)
        fitted.processor.save_pretrained(aside)
        if official.recognises(state_dict):
            extras = fit_unused(
                conversion.unused, config=fitted.config, resized=bool(fitted.resized), text_length=text_length
            )
            tensors = {key: tensor.clone(memory_format=torch.contiguous_format) for key, tensor in extras.items()}
            save_file(tensors, aside / PUBLISHED_EXTRAS, metadata={"layout": VLMO_LAYOUT})
        write_card(aside, _card(report, path))
        _let_others_read(aside)
    return report


def _let_others_read(folder: Path) -> None:
    """Gives files the rights that new ones get here: those of safetensors are for their owner alone."""
    usual = folder.stat().st_mode & 0o666
    for path in folder.iterdir():
        path.chmod(path.stat().st_mode | usual)


def _card(report: ImportReport, path: Path) -> ModelCard:
    limits = [f"{note[0].upper()}{note[1:].rstrip('.')}." for note in report.notes]
    if report.created:
        limits.insert(0, f"Not in the file, random until it is trained: {listed(report.created)}.")
    return ModelCard(
        title=report.kind,
        stage=report.kind,
        about=f"Imported from `{path.name}` by `vlmo import`.",
        start=f"`{path.name}`",
        licence_note="The terms of that file hold for this copy of it.",
        limits=tuple(limits),
    )


def _check_out(out: Path) -> None:
    if out.resolve() == Path.cwd().resolve():
        raise ValueError("OUT is the folder that you are in; give the name of a new folder")
    if out.is_dir() and any(out.iterdir()):
        raise ValueError(f"{out} exists and is not empty; give the name of a new folder")
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file; give the name of a new folder")


def _convert(
    state_dict: Mapping[str, Tensor], origin: Origin, *, kind: str, num_attention_heads: int | None
) -> Conversion:
    if kind != "auto" and kind not in KINDS:
        raise ValueError(f"kind is {kind!r}; expected auto, {', '.join(KINDS)}")
    if (origin.config or {}).get("model_type") == VLMoConfig.model_type:
        raise ValueError("this is a model folder of this project already; load it with from_pretrained")
    fitting = [name for name, candidate in KINDS.items() if candidate.recognises(state_dict)]
    if not fitting:
        first = ", ".join(map(printable, sorted(state_dict)[:3]))
        raise ValueError(
            f"{len(state_dict)} tensors ({first}, ...) in no layout that is known; expected one of {', '.join(KINDS)}"
        )
    if kind != "auto" and kind not in fitting:
        raise ValueError(f"this is not laid out as {kind}, but as {', '.join(fitting)}")
    chosen = fitting[0] if kind == "auto" else kind
    return KINDS[chosen].convert(state_dict, origin, num_attention_heads)


def _complete(
    conversion: Conversion, state_dict: Mapping[str, Tensor], *, allow_partial: bool
) -> tuple[Conversion, list[str]]:
    """The conversion without weights that its model has no place for, and all keys that are left out.

    Raises:
        ValueError: There are such keys, or others are missing, and that was not allowed.
    """
    needed = _shapes(conversion, conversion.config)
    homeless = conversion.weights.keys() - needed.keys()
    missing = [
        name
        for name in needed.keys() - conversion.weights.keys()
        if not any(re.match(pattern, name) for pattern in conversion.created)
    ]
    left_out = sorted([*conversion.unknown, *homeless])
    problems = []
    if left_out:
        problems.append(f"keys that this kind ({conversion.kind}) does not have: {listed(left_out)}")
    if missing:
        names = listed(_published(name, state_dict) for name in missing)
        problems.append(f"keys that are missing: {names}")
    if problems and not allow_partial:
        raise ValueError(
            f"{'; '.join(problems)}. Is the file whole, and of this kind? --allow-partial leaves out what is unknown"
            " and starts anew what is missing"
        )
    weights = {name: tensor for name, tensor in conversion.weights.items() if name not in homeless}
    return replace(conversion, weights=weights, notes=list(conversion.notes)), left_out


def _published(name: str, state_dict: Mapping[str, Tensor]) -> str:
    """The key that a person misses in the file, where its layout is VLMo's; else our name."""
    return (official.published_name(name) if official.recognises(state_dict) else None) or name


def _shapes(conversion: Conversion, config: VLMoConfig) -> dict[str, torch.Size]:
    """Every tensor of the model, under its name inside a model with heads."""
    with torch.device("meta"):
        model = conversion.model_class(copy.deepcopy(config))
    prefix = _PREFIX if conversion.model_class is VLMoModel else ""
    return {f"{prefix}{name}": tensor.shape for name, tensor in model.state_dict().items()}


def _notes_on(origin: Origin) -> list[str]:
    if not origin.beside:
        return []
    return [f"the file also holds what is no weight, which was not read: {listed(origin.beside)}"]


def _fit(
    conversion: Conversion,
    *,
    image_size: int | None,
    text_length: int | None,
    vocabulary: str | Path | None,
    labels: str | Path | None,
) -> _Fitted:
    """The configuration and weights at the sizes that were asked for, with a processor and names for classes."""
    config, weights, notes = copy.deepcopy(conversion.config), dict(conversion.weights), conversion.notes
    resized = _resize_pictures(config, weights, image_size)
    length = fit_text(conversion, config, weights, asked=text_length, vocabulary=vocabulary, notes=notes)
    processor = make_processor(conversion, config, vocabulary=vocabulary, length=length, notes=notes)
    _name_labels(conversion, config, labels=labels, notes=notes)
    return _Fitted(
        config=config,
        weights=weights,
        dtype=_common_dtype(weights, notes),
        processor=processor,
        text_length=length,
        resized=resized,
    )


def _resize_pictures(config: VLMoConfig, weights: dict[str, Tensor], image_size: int | None) -> list[str]:
    """Names of the tables that were resized."""
    if image_size is None or image_size == config.image_size:
        return []
    if image_size < config.patch_size or image_size % config.patch_size:
        raise ValueError(f"image size {image_size} is no multiple of the patch size {config.patch_size}")
    source = config.grid
    config.image_size = image_size
    resized = []
    for name, resize in ((_TABLE, resize_bias_table), (_IMAGE_POSITIONS, resize_absolute_positions)):
        if name in weights:
            weights[name] = resize(weights[name], source=source, target=config.grid)
            resized.append(name)
    return resized


def _name_labels(conversion: Conversion, config: VLMoConfig, *, labels: str | Path | None, notes: list[str]) -> None:
    """Writes the names of answers or classes into `config`."""
    if conversion.model_class not in {VLMoForVisualQuestionAnswering, VLMoForImageClassification}:
        if labels is not None:
            raise ValueError(f"labels were given ({labels}), but this is no classifier: {conversion.kind}")
        return
    numbered = cast("dict[int, str]", config.id2label)
    if labels is not None:
        names = read_labels(labels, count=len(numbered))
        config.id2label = dict(enumerate(names))
        config.label2id = {name: number for number, name in enumerate(names)}
    elif numbered.get(0) == "LABEL_0":
        notes.append(
            f"the file does not name its {len(numbered)} classes: they are called LABEL_0 and on; --labels FILE"
            " names them"
        )


def _common_dtype(weights: dict[str, Tensor], notes: list[str]) -> torch.dtype:
    """The type of all weights; where they differ, all are brought to float32."""
    dtypes = {tensor.dtype for tensor in weights.values()}
    if any(not dtype.is_floating_point for dtype in dtypes):
        wrong = sorted(name for name, tensor in weights.items() if not tensor.is_floating_point())
        raise ValueError(f"weights are no floating-point numbers: {listed(wrong)}")
    if len(dtypes) == 1:
        dtype = dtypes.pop()
        if dtype != torch.float32:
            notes.append(f"the weights are {str(dtype).removeprefix('torch.')}, and so is the model that loads them")
        return dtype
    names = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes))
    notes.append(f"the file mixes {names}: all is float32 now")
    for name, tensor in weights.items():
        weights[name] = tensor.float()
    return torch.float32


def _build(conversion: Conversion, fitted: _Fitted) -> tuple[VLMoPreTrainedModel, list[str]]:
    """The model with its weights as they are, without a copy, and the names of what had to start anew.

    Raises:
        ValueError: A tensor has another shape than the sizes in the configuration ask for.
    """
    shapes, weights = _shapes(conversion, fitted.config), fitted.weights
    wrong = [name for name, tensor in weights.items() if tensor.shape != shapes[name]]
    if wrong:
        name = wrong[0]
        raise ValueError(
            f"{len(wrong)} tensors do not fit the sizes that the others tell, the first is {name}: it has shape"
            f" {tuple(weights[name].shape)}, expected {tuple(shapes[name])}"
        )
    missing = sorted(shapes.keys() - weights.keys())
    prefix = _PREFIX if conversion.model_class is VLMoModel else ""
    state = {name.removeprefix(prefix): tensor for name, tensor in _apart(weights).items()}
    if missing:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(_SEED)
            fresh = conversion.model_class(copy.deepcopy(fitted.config)).state_dict()
        for name in (name.removeprefix(prefix) for name in missing):
            state[name] = fresh[name].to(fitted.dtype)
    with torch.device("meta"):
        model = conversion.model_class(fitted.config)
    model.load_state_dict(state, assign=True)
    return model, missing


def _apart(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors, contiguous; one that shares memory with another is copied, or only one would be saved."""
    seen: set[int] = set()
    apart = {}
    for name, tensor in weights.items():
        tensor = tensor.detach().contiguous()
        apart[name] = tensor.clone() if tensor.data_ptr() in seen else tensor
        seen.add(tensor.data_ptr())
    return apart
