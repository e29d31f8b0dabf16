"""Import of a published checkpoint as a model folder."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HTTPError, StrictDataclassError
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import BeitImageProcessor

from vlmo import model as models
from vlmo.checkpoints import beit, beit3, official
from vlmo.checkpoints.layout import (
    DEFAULT_TEXT_LENGTH,
    OUR_IMAGE_POSITIONS,
    OUR_TABLE,
    OUR_TEXT_POSITIONS,
    OUR_WORDS,
    Conversion,
    NameTable,
    grouped,
    listed,
    one_line,
    printable,
)
from vlmo.checkpoints.loading import check_model_folder, read_labels, read_state_dict
from vlmo.checkpoints.official import PUBLISHED_EXTRAS, VLMO_LAYOUT
from vlmo.folder import read_config, read_json
from vlmo.folder.atomic import write_file, write_folder
from vlmo.folder.card import ModelCard, Usage, write_card
from vlmo.model.embeddings import resize_absolute_positions, resize_bias_table
from vlmo.processing import VLMoProcessor, image_processor_for
from vlmo.processing.tokenizers import PAD_MULTIPLE


@dataclass(frozen=True)
class Layout:
    """A published layout: names, whether keys are of it, and the conversion of tensors (see `beit.convert`)."""

    names: NameTable
    recognises: Callable[[Mapping[str, Tensor]], bool]
    convert: Callable[..., Conversion]


LAYOUTS = {
    "vlmo": Layout(official.NAMES, official.recognises, official.convert),
    "beit": Layout(beit.PUBLISHED, beit.is_published, beit.convert),
    "hf-beit": Layout(beit.HUGGING_FACE, beit.is_hugging_face, beit.convert),
    "beit3": Layout(beit3.NAMES, beit3.recognises, beit3.convert),
    "timm-beit3": Layout(beit3.TIMM, beit3.is_timm, beit3.convert_timm),
}
"""All that can be imported, by the names of `vlmo import --kind`."""

_SEED = 0
_CLASSIFIERS = {models.VLMoForVisualQuestionAnswering, models.VLMoForImageClassification}
# Errors of tensors whose shapes no check foresees.
_UNFORESEEN = (LookupError, TypeError, RuntimeError, AssertionError, ArithmeticError, StrictDataclassError)
# Mean and deviation of pixels from 0 to 1; docs/checkpoints.md lists which published file has which.
_OURS = [0.5, 0.5, 0.5], [0.5, 0.5, 0.5]
_IMAGENET = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
# BEiT and BEiT-2 took ImageNet's where they pre-trained on ImageNet-1K, which only names of their files tell.
_IMAGENET_NAMES = re.compile(r"beit(v2)?_\w+_pt1k")


@dataclass(frozen=True)
class ImportReport:
    """Result of an import.

    Attributes:
        conversion: Weights and configuration as they were saved; unused keys and notes.
        dtype: Of the weights, as in the file.
        text_length: Longest text of the processor; None without a text side.
        left_out: Published keys that no layout knows (only with `allow_partial`).
        created: Our names of parameters that the file does not hold; initialised from a fixed seed.
        resized: Our names of position tables that were resized.
        file_image_size: Image size of the file, in pixels.
    """

    conversion: Conversion
    dtype: torch.dtype
    num_parameters: int
    text_length: int | None
    left_out: list[str]
    created: list[str]
    resized: list[str]
    file_image_size: int

    def rows(self) -> list[tuple[str, str]]:
        """Return class, sizes and task as pairs of a word and a value."""
        conversion, config = self.conversion, self.conversion.config
        dtype, millions = str(self.dtype).removeprefix("torch."), self.num_parameters / 1e6
        top, resized = config.num_fusion_layers, f" ({self.file_image_size} in the file)" if self.resized else ""
        fused = f"vision_language in the top {top}" if top else "no vision_language"
        rows = [
            ("found", conversion.kind),
            ("model", f"{conversion.model_class.__name__}, {millions:.1f} M parameters, {dtype}"),
            ("width, layers, heads", f"{config.hidden_size}, {config.num_hidden_layers}, {config.num_attention_heads}"),
            ("experts", f"{config.intermediate_size} wide; {fused}"),
            ("image", f"{config.image_size} px{resized}, patches of {config.patch_size} px"),
            ("positions", config.position_embedding),
        ]
        if self.text_length is not None:
            rows.append(("text", f"{self.text_length} tokens, vocabulary of {config.vocab_size}"))
        if conversion.model_class is models.VLMoForVisualQuestionAnswering:
            rows.append(("answers", f"{config.num_labels}"))
        return [*rows, ("tensors used", f"{len(conversion.weights)}")]

    def lines(self) -> list[str]:
        """Return every key that was not simply loaded, and the notes."""
        groups = {
            "resized": self.resized,
            "in the file, without a use": self.conversion.unused,
            "in the file, not known, left out": self.left_out,
            "not in the file, started anew": self.created,
        }
        lines = [f"{words}: {name}" for words, names in groups.items() for name in grouped(names)]
        return lines + [f"note: {note}" for note in self.conversion.notes]


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
    imagenet_pixels: bool = False,
    allow_partial: bool = False,
    address: str = "",
    licence: str | None = None,
    usage_of: Callable[[Path], Usage | None] = lambda _: None,
) -> ImportReport:
    """Write a published checkpoint as the model folder `out`, in one atomic write.

    Args:
        path: A torch or safetensors file, or a folder with `config.json` and weights.
        out: Must not exist, or be an empty folder.
        kind: One of `LAYOUTS`, or `"auto"`.
        image_size: Pixels; position tables are resized to it.
        text_length: Longest text in tokens, a multiple of 8; by default that of the file.
        num_attention_heads: Where the tensors do not tell it.
        vocabulary: BERT's `vocab.txt` or a folder with it; for BEiT-3 its SentencePiece file. By default BERT's is
            fetched from the model hub.
        labels: File with the names of answers or classes; see `read_labels`.
        imagenet_pixels: The file takes pixels normalised by ImageNet's mean and deviation, whatever its
            `preprocessor_config.json` says; known of BEiT and BEiT-2 by the file's name (`..._pt1k...`) and of BEiT-3's
            classifiers of images.
        allow_partial: Leave out unknown keys and initialise missing ones, instead of refusing the file.
        address: Origin of the file, for the model card.
        licence: Of the weights, for the model card.
        usage_of: Gives purpose and code of a folder's model for its card, such as `vlmo.tasks.usage_of`.

    Raises:
        ValueError: The file, or what was asked, cannot be used; nothing has been written.
    """
    path, out = Path(path), Path(out).absolute()
    if out.resolve() == Path.cwd().resolve():
        raise ValueError("OUT is the folder that you are in; give the name of a new folder")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        what = "exists and is not empty" if out.is_dir() else "is a file"
        raise ValueError(f"{out} {what}; give the name of a new folder")
    state_dict, beside = read_state_dict(path)
    config = read_config(path) if (path / "config.json").is_file() else None
    try:
        layout = LAYOUTS[_kind_of(state_dict, config, asked=kind)]
        conversion = layout.convert(state_dict, config=config, num_attention_heads=num_attention_heads)
        file_image_size, notes = conversion.config.image_size, conversion.notes
        left_out = _complete(conversion, layout.names, allow_partial=allow_partial)
        if beside:
            notes.append(f"the file also holds entries that are no weights, and were not read: {listed(beside)}")
        resized = _resize_images(conversion, image_size)
        length = _fit_text(conversion, asked=text_length, vocabulary=vocabulary)
        processor = _make_processor(conversion, vocabulary=vocabulary, length=length)
        if labels is not None:
            _name_labels(conversion.config, labels, model_class=conversion.model_class)
        elif (
            conversion.model_class in _CLASSIFIERS
            and cast("dict[int, str]", conversion.config.id2label).get(0) == "LABEL_0"
        ):
            notes.append(f"its {conversion.config.num_labels} classes are called LABEL_0 and on; --labels names them")
        dtype = _common_dtype(conversion.weights, notes)
        model, created = _build(conversion, dtype)
        norm = _pixel_norm(path, asked=imagenet_pixels, known=conversion.imagenet_pixels)
        if norm != _OURS:
            _fold_pixels(model, *norm)
            notes.append(f"the file's normalisation of pixels (mean {norm[0]}) is now in its patch projection")
    except ValueError as problem:
        raise ValueError(f"{path}: {problem}") from None
    except _UNFORESEEN as problem:
        reason = f"{type(problem).__name__}: {one_line(problem)}"
        raise ValueError(f"{path}: its tensors do not make a model ({reason}). Is the file whole?") from None
    with write_folder(out) as partial:
        model.save_pretrained(partial)
        processor.save_pretrained(partial)
        # At other sizes an export makes these anew.
        if layout.names is official.NAMES and not resized and text_length in {None, conversion.max_text_length}:
            extras = {name: tensor.contiguous().clone() for name, tensor in conversion.unused.items()}
            save_file(extras, partial / PUBLISHED_EXTRAS, metadata={"layout": VLMO_LAYOUT})
        limits = [f"{note[0].upper()}{note[1:].rstrip('.')}." for note in notes]
        if created:
            limits.insert(0, f"Not in the file, random until it is trained: {listed(created)}.")
        card = ModelCard(
            title=conversion.kind,
            stage=conversion.kind,
            about=f"Imported from `{path.name}` by `vlmo import`.",
            start=f"`{path.name}`" + (f" of <{address}>" if address else ""),
            language=None if length is None else "en",
            licence=licence,
            licence_note="The terms of that file hold for this copy of it.",
            limits=tuple(limits),
        )
        write_card(partial, card, usage_of(partial))
        usual = partial.stat().st_mode & 0o666
        for file in partial.iterdir():  # safetensors gives its files to their owner alone
            file.chmod(file.stat().st_mode | usual)
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    return ImportReport(conversion, dtype, num_parameters, length, left_out, created, resized, file_image_size)


def _kind_of(state_dict: Mapping[str, Tensor], config: Mapping[str, Any] | None, *, asked: str) -> str:
    """Return the name of the layout that the keys are of."""
    if (config or {}).get("model_type") == models.VLMoConfig.model_type:
        raise ValueError("this is a model folder of this project already; load it with from_pretrained")
    if asked not in {"auto", *LAYOUTS}:
        raise ValueError(f"kind is {asked!r}; expected auto, {', '.join(LAYOUTS)}")
    fitting = [name for name, layout in LAYOUTS.items() if layout.recognises(state_dict)]
    if not fitting:
        first = ", ".join(map(printable, sorted(state_dict)[:3]))
        raise ValueError(f"{len(state_dict)} tensors ({first}, ...) in no layout that is known: {', '.join(LAYOUTS)}")
    if asked not in {"auto", *fitting}:
        raise ValueError(f"this is not laid out as {asked}, but as {', '.join(fitting)}")
    return fitting[0] if asked == "auto" else asked


def _complete(conversion: Conversion, names: NameTable, *, allow_partial: bool) -> list[str]:
    """Drop weights that the model does not have; return the keys of all that is left out."""
    needed, weights = _shapes(conversion).keys(), conversion.weights
    missing = [name for name in needed - weights if not any(re.match(each, name) for each in conversion.created)]
    foreign = [(name, names.published(name) or name) for name in weights.keys() - needed]
    left_out = sorted([*conversion.unknown, *(key for _, key in foreign)])
    problems = []
    if left_out:
        problems.append(f"keys that this kind ({conversion.kind}) does not have: {listed(left_out)}")
    if missing:
        problems.append(f"keys that are missing: {listed(names.published(name) or name for name in missing)}")
    if problems and not allow_partial:
        raise ValueError(f"{'; '.join(problems)}. Is the file whole? Else give --allow-partial")
    for name, _ in foreign:
        del weights[name]
    return left_out


def _pixel_norm(path: Path, *, asked: bool, known: bool) -> tuple[list[float], list[float]]:
    """Return mean and deviation by which the file's pixels, 0 to 1, are normalised."""
    file = path / "preprocessor_config.json"
    if not asked and file.is_file():
        given = read_json(file)
        given = given if isinstance(given, dict) else {}
        if given.get("do_normalize") is False:
            return [0.0] * 3, [1.0] * 3
        if given.get("image_mean") and given.get("image_std"):
            return given["image_mean"], given["image_std"]
    return _IMAGENET if asked or known or _IMAGENET_NAMES.match(path.name) else _OURS


@torch.no_grad()
def _fold_pixels(model: models.VLMoPreTrainedModel, mean: list[float], deviation: list[float]) -> None:
    """Make the patch projection take pixels in [-1, 1], as every model of ours, instead of the file's."""
    projection = model.backbone.image_embeddings.projection
    weight, bias = projection.weight, cast("Tensor", projection.bias)
    means, deviations = (torch.tensor(numbers)[:, None, None] for numbers in (mean, deviation))
    shift = (weight.float() * (0.5 - means) / deviations).sum(dim=(1, 2, 3))
    projection.weight = nn.Parameter((weight.float() * 0.5 / deviations).to(weight.dtype))
    projection.bias = nn.Parameter((bias.float() + shift).to(bias.dtype))


def _shapes(conversion: Conversion) -> dict[str, torch.Size]:
    """Return the shape of every tensor of the model, under its name inside a model with heads."""
    with torch.device("meta"):
        model = conversion.model_class(copy.deepcopy(conversion.config))
    return {f"{_prefix(conversion)}{name}": tensor.shape for name, tensor in model.state_dict().items()}


def _prefix(conversion: Conversion) -> str:
    return "vlmo." if conversion.model_class is models.VLMoModel else ""


def _resize_images(conversion: Conversion, image_size: int | None) -> list[str]:
    """Set the image size; return the names of the tables that were resized."""
    config, weights = conversion.config, conversion.weights
    if image_size is None or image_size == config.image_size:
        return []
    if image_size < config.patch_size or image_size % config.patch_size:
        raise ValueError(f"image size {image_size} is no multiple of the patch size {config.patch_size}")
    source = config.grid
    config.image_size = image_size
    resized = []
    for name, resize in ((OUR_TABLE, resize_bias_table), (OUR_IMAGE_POSITIONS, resize_absolute_positions)):
        if name in weights:
            weights[name] = resize(weights[name], source=source, target=config.grid)
            resized.append(name)
    return resized


def _fit_text(conversion: Conversion, *, asked: int | None, vocabulary: str | Path | None) -> int | None:
    """Return the longest text of the processor, None without a text side; cut absolute positions to `asked`."""
    config, weights = conversion.config, conversion.weights
    if conversion.text is None and vocabulary is None:
        if asked is not None:
            raise ValueError("a text length was given, but this model has no text side; give --vocabulary too")
        return None
    limit = config.max_text_positions
    if asked is None:
        wanted = min(conversion.max_text_length or DEFAULT_TEXT_LENGTH, limit)
        length = wanted - wanted % PAD_MULTIPLE
        if length != wanted:
            conversion.notes.append(f"texts of up to {length} tokens, of {wanted} in the file (multiples of 8)")
        return length
    if asked > limit:
        raise ValueError(f"text length {asked} is longer than the {limit} positions of the model")
    if asked < PAD_MULTIPLE or asked % PAD_MULTIPLE:
        raise ValueError(f"text length {asked} is no multiple of {PAD_MULTIPLE}")
    if config.position_embedding == "absolute":
        config.max_text_positions = asked
        if OUR_TEXT_POSITIONS in weights:
            weights[OUR_TEXT_POSITIONS] = weights[OUR_TEXT_POSITIONS][:asked]
    return asked


def _make_processor(
    conversion: Conversion, *, vocabulary: str | Path | None, length: int | None
) -> VLMoProcessor | BeitImageProcessor:
    """Return the processor of the new folder, of images alone where `length` is None."""
    config = conversion.config
    if length is None:
        conversion.notes.append("no text side in the file and no --vocabulary: the processor takes images only")
        return image_processor_for(config.image_size)
    sizes = {"image_size": config.image_size, "max_text_length": length}
    allowed = 0
    if conversion.text == "sentencepiece":
        if vocabulary is None:
            raise ValueError("this model reads SentencePiece; give the file that came with it: --vocabulary beit3.spm")
        allowed = 8  # BEiT-3's table has 64,010 rows for the 64,002 tokens of its file
        processor = VLMoProcessor.from_sentencepiece(vocabulary, **sizes)
    else:
        processor = VLMoProcessor.from_vocabulary(vocabulary or _hub_vocabulary(config.vocab_size), **sizes)
    padding = processor.tokenizer.pad_token_id
    if OUR_WORDS not in conversion.weights:
        config.vocab_size, config.pad_token_id = processor.vocab_size, padding
    elif not 0 <= config.vocab_size - processor.vocab_size <= allowed or padding != config.pad_token_id:
        raise ValueError(
            f"the vocabulary has {processor.vocab_size} tokens, padding is number {padding}; the checkpoint's word"
            f" table has {config.vocab_size} rows, padding is number {config.pad_token_id}. Give the vocabulary of its"
            " training (--vocabulary)"
        )
    return processor


def _hub_vocabulary(num_words: int) -> str:
    """Return BERT's vocabulary from the cache, or else from the hub."""
    repository, file, size, timeout = "google-bert/bert-base-uncased", "vocab.txt", 30522, 5.0  # seconds
    if num_words != size:
        raise ValueError(f"the word table has {num_words} rows, not BERT's {size}: give its vocab.txt (--vocabulary)")
    try:
        return hf_hub_download(repository, file, etag_timeout=timeout)
    except (OSError, HTTPError) as problem:
        raise ValueError(
            f"{file} of {repository} could not be fetched ({type(problem).__name__}): give BERT's vocab.txt, or a"
            " folder that holds it (--vocabulary)"
        ) from None


def name_labels(folder: str | Path, labels: str | Path) -> None:
    """Write names of answers or classes into a model folder (see `read_labels`); ValueError for no classifier."""
    folder, model_class = check_model_folder(folder)
    config = models.VLMoConfig.from_pretrained(folder)
    _name_labels(config, labels, model_class=model_class)
    write_file(folder / "config.json", config.to_json_string())


def _name_labels(
    config: models.VLMoConfig, labels: str | Path, *, model_class: type[models.VLMoPreTrainedModel]
) -> None:
    if model_class not in _CLASSIFIERS:
        raise ValueError(f"labels were given ({labels}), but {model_class.__name__} is no classifier")
    names = read_labels(labels, count=len(cast("dict[int, str]", config.id2label)))
    config.id2label = dict(enumerate(names))
    config.label2id = {name: number for number, name in enumerate(names)}


def _common_dtype(weights: dict[str, Tensor], notes: list[str]) -> torch.dtype:
    """Return the type of all weights; where they differ, convert all to float32."""
    if wrong := sorted(name for name, tensor in weights.items() if not tensor.is_floating_point()):
        raise ValueError(f"weights are no floating-point numbers: {listed(wrong)}")
    dtypes = {tensor.dtype for tensor in weights.values()}
    names = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes))
    if len(dtypes) > 1:
        notes.append(f"the file mixes {names}: all is float32 now")
        weights.update({name: tensor.float() for name, tensor in weights.items()})
        return torch.float32
    if dtypes != {torch.float32}:
        notes.append(f"the weights are {names}, and so is the model that loads them")
    return dtypes.pop()


def _build(conversion: Conversion, dtype: torch.dtype) -> tuple[models.VLMoPreTrainedModel, list[str]]:
    """Return the model with its weights, without a copy, and the names of newly initialised parameters."""
    shapes, weights, prefix = _shapes(conversion), conversion.weights, _prefix(conversion)
    wrong = [name for name, tensor in weights.items() if tensor.shape != shapes[name]]
    if wrong:
        given, expected = tuple(weights[wrong[0]].shape), tuple(shapes[wrong[0]])
        raise ValueError(f"{len(wrong)} tensors do not fit, as {wrong[0]}: it has shape {given}, expected {expected}")
    state: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in weights.items():
        tensor = tensor.detach().contiguous()
        # Of two tensors that share memory, only one would be saved.
        state[name.removeprefix(prefix)] = tensor.clone() if tensor.data_ptr() in seen else tensor
        seen.add(tensor.data_ptr())
    missing = sorted(shapes.keys() - weights.keys())
    if missing:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(_SEED)
            fresh = conversion.model_class(copy.deepcopy(conversion.config)).state_dict()
        for name in (name.removeprefix(prefix) for name in missing):
            state[name] = fresh[name].to(dtype)
    with torch.device("meta"):
        model = conversion.model_class(conversion.config)
    model.load_state_dict(state, assign=True)
    return model, missing
