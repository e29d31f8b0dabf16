"""Import of a published checkpoint as a model folder."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HTTPError, StrictDataclassError
from torch import Tensor, nn
from transformers import BeitImageProcessor

from vlmo import model as models
from vlmo.checkpoints import beit, beit3, official, vqkd
from vlmo.checkpoints.layout import (
    DEFAULT_TEXT_LENGTH,
    OUR_IMAGE_POSITIONS,
    OUR_TABLE,
    OUR_TEXT_POSITIONS,
    OUR_WORDS,
    Conversion,
    listed,
    one_line,
    printable,
)
from vlmo.checkpoints.loading import check_model_folder, read_labels, read_state_dict
from vlmo.checkpoints.options import ImportOptions
from vlmo.folder import read_config, read_json
from vlmo.folder.atomic import write_file, write_folder
from vlmo.folder.card import CardContent, Usage, write_card
from vlmo.model.embeddings import resize_absolute_positions, resize_bias_table
from vlmo.processing import VLMoProcessor, image_processor_for
from vlmo.processing.tokenizers import PAD_MULTIPLE

LAYOUTS = (official, beit, beit3, vqkd)
"""Modules that recognize the keys of a published layout, and convert its tensors."""

_SEED = 0
_CLASSIFIERS = {models.VLMoForVisualQuestionAnswering, models.VLMoForImageClassification}
# Errors of tensors whose shapes no check foresees.
_UNFORESEEN = (
    LookupError,
    TypeError,
    RuntimeError,
    AssertionError,
    ArithmeticError,
    StrictDataclassError,
)
# Mean and deviation of pixels from 0 to 1; docs/published.md lists which published file has which.
_OURS = [0.5, 0.5, 0.5], [0.5, 0.5, 0.5]
_IMAGENET = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
# BEiT and BEiT-2 took ImageNet's where they pre-trained on ImageNet-1K, which only names of their files tell.
_IMAGENET_NAMES = re.compile(r"beit(v2)?_\w+_pt1k")
_BERT = "google-bert/bert-base-uncased"
_BERT_SIZE = 30522
_HUB_TIMEOUT_S = 5.0


def import_checkpoint(
    path: str | Path,
    out: str | Path,
    *,
    address: str = "",
    licence: str | None = None,
    usage_of: Callable[[Path], Usage | None] = lambda _: None,
    **options: Any,
) -> Conversion:
    """Write a published checkpoint as the model folder `out`, in one atomic write; return what it became.

    Args:
        path: A torch or safetensors file, or a folder with `config.json` and weights.
        out: Must not exist, or be an empty folder.
        address: Origin of the file, for the model card, as is the `licence` of its weights.
        usage_of: Gives purpose and code of a folder's model for its card, such as `vlmo.tasks.usage_of`.
        options: Those of `ImportOptions`.

    Raises:
        ValueError: The file, or what was asked, cannot be used; nothing has been written.
    """
    path = Path(path)
    out = Path(out).absolute()
    asked = ImportOptions(**options)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} exists and is no empty folder; give the name of a new folder")
    state_dict = read_state_dict(path)
    config = read_config(path) if (path / "config.json").is_file() else {}
    try:
        # Settings first, then weights: all that can be refused is refused before memory is taken.
        conversion = _convert(state_dict, config, num_attention_heads=asked.num_attention_heads)
        _resize_images(conversion, asked.image_size)
        _fit_text(conversion, asked.text_length, has_vocabulary=asked.vocabulary is not None)
        processor = _make_processor(conversion, asked.vocabulary)
        class_names = conversion.config.id2label or {}
        is_unnamed = conversion.model_class in _CLASSIFIERS and "LABEL_0" in class_names.values()
        if is_unnamed and asked.labels is None:
            conversion.notes.append(
                f"its {len(class_names)} classes are called LABEL_0 and on; --labels names them"
            )
        model = _build(conversion)
        _fold_pixels(model, conversion, path, imagenet_pixels=asked.imagenet_pixels)
    except ValueError as problem:
        raise ValueError(f"{path}: {problem}") from None
    except _UNFORESEEN as problem:
        reason = f"{type(problem).__name__}: {one_line(problem)}"
        raise ValueError(
            f"{path}: its tensors do not make a model ({reason}). Is the file whole?"
        ) from None
    with write_folder(out) as partial:
        model.save_pretrained(partial)
        processor.save_pretrained(partial)
        if asked.labels is not None:
            name_labels(partial, asked.labels)
        card = _card(conversion, path.name, address=address, licence=licence)
        write_card(partial, card, usage_of(partial))
        readable = partial.stat().st_mode & 0o666
        # The library safetensors gives its files to their owner alone.
        for file in partial.iterdir():
            file.chmod(file.stat().st_mode | readable)
    return conversion


def _card(
    conversion: Conversion, file_name: str, *, address: str, licence: str | None
) -> CardContent:
    limits = [f"{note[0].upper()}{note[1:].rstrip('.')}." for note in conversion.notes]
    if conversion.missing:
        limits.insert(
            0, f"Not in the file, random until it is trained: {listed(conversion.missing)}."
        )
    return CardContent(
        title=conversion.kind,
        stage=conversion.kind,
        about=f"Imported from `{file_name}` by `vlmo import`.",
        start=f"`{file_name}` of <{address}>" if address else f"`{file_name}`",
        licence=licence,
        limits=tuple(limits),
    )


def _convert(
    state_dict: dict[str, Tensor], config: dict[str, Any], *, num_attention_heads: int | None
) -> Conversion:
    if config.get("model_type") == models.VLMoConfig.model_type:
        raise ValueError(
            "this is a model folder of this project already; load it with from_pretrained"
        )
    for layout in LAYOUTS:
        if layout.recognizes(state_dict):
            return layout.convert(
                state_dict, config=config, num_attention_heads=num_attention_heads
            )
    first = ", ".join(map(printable, sorted(state_dict)[:3]))
    raise ValueError(
        f"{len(state_dict)} tensors ({first}, ...) in no layout of VLMo, BEiT, BEiT-3 or VQ-KD"
    )


def _pixel_norm(file: Path) -> tuple[list[float], list[float]] | None:
    """Return mean and deviation of pixels in a `preprocessor_config.json`, None if it does not tell them."""
    settings = read_json(file)
    if settings.get("do_rescale") is False or not math.isclose(
        settings.get("rescale_factor") or 1 / 255, 1 / 255
    ):
        raise ValueError(
            f"{file.name} does not rescale pixels by 1/255, which cannot be taken over; correct it"
        )
    if settings.get("do_normalize") is False:
        return [0.0] * 3, [1.0] * 3
    mean = settings.get("image_mean")
    deviation = settings.get("image_std")
    if mean is None or deviation is None:
        return None
    means = mean if isinstance(mean, list) else [mean] * 3
    deviations = deviation if isinstance(deviation, list) else [deviation] * 3
    are_numbers = all(isinstance(number, int | float) for number in means + deviations)
    if not are_numbers or len(means) != 3 or len(deviations) != 3 or min(deviations) <= 0:
        raise ValueError(
            f"{file.name} has image_mean {mean}, image_std {deviation}; expected 3 numbers, 3 above 0"
        )
    return means, deviations


@torch.no_grad()
def _fold_pixels(
    model: models.VLMoPreTrainedModel, conversion: Conversion, path: Path, *, imagenet_pixels: bool
) -> None:
    """Make the patch projection take pixels in [-1, 1], as every model of ours, instead of the file's."""
    file = path / "preprocessor_config.json"
    norm = _pixel_norm(file) if file.is_file() and not imagenet_pixels else None
    if norm is None and (
        imagenet_pixels or conversion.imagenet_pixels or _IMAGENET_NAMES.match(path.name)
    ):
        norm = _IMAGENET
    if norm is None or norm == _OURS:
        return
    conversion.notes.append(
        f"the file's normalization of pixels (mean {norm[0]}) is now in its patch projection"
    )
    mean, deviation = torch.tensor(norm)[..., None, None]
    projection = model.backbone.image_embeddings.projection
    weight = projection.weight.float()
    bias = cast("Tensor", projection.bias)
    # weight * (pixel - mean) / deviation, with pixel = 0.5 x + 0.5 for x in [-1, 1].
    shift = (weight * (0.5 - mean) / deviation).sum(dim=(1, 2, 3))
    projection.weight = nn.Parameter((weight * 0.5 / deviation).to(projection.weight.dtype))
    projection.bias = nn.Parameter((bias.float() + shift).to(bias.dtype))


def _resize_images(conversion: Conversion, image_size: int | None) -> None:
    config = conversion.config
    if image_size is None or image_size == config.image_size:
        return
    if image_size < config.patch_size or image_size % config.patch_size:
        raise ValueError(
            f"image size {image_size} is no multiple of the patch size {config.patch_size}"
        )
    conversion.notes.append(f"positions are resized from the {config.image_size} px of the file")
    # Of the old image size, before it is set.
    source = config.grid
    config.image_size = image_size
    for name, resize in (
        (OUR_TABLE, resize_bias_table),
        (OUR_IMAGE_POSITIONS, resize_absolute_positions),
    ):
        if name in conversion.weights:
            conversion.weights[name] = resize(
                conversion.weights[name], source=source, target=config.grid
            )


def _fit_text(conversion: Conversion, text_length: int | None, *, has_vocabulary: bool) -> None:
    """Set the longest text of the processor, None without a text side; cut absolute positions to what is asked for."""
    config = conversion.config
    positions = config.max_text_positions
    if conversion.text is None and not has_vocabulary:
        if text_length is not None:
            raise ValueError(
                "a text length was given, but this model has no text side; give --vocabulary too"
            )
        return
    # Padding to a multiple of 8 must not go beyond the positions.
    if text_length is None:
        text_length = min(conversion.max_text_length or DEFAULT_TEXT_LENGTH, positions)
        text_length -= text_length % PAD_MULTIPLE
    elif text_length > positions:
        raise ValueError(
            f"text length {text_length} is longer than the {positions} positions of the model"
        )
    elif config.position_embedding == "absolute":
        # A table of offsets serves every length; rows of words that never come are cut off.
        config.max_text_positions = text_length
        if OUR_TEXT_POSITIONS in conversion.weights:
            conversion.weights[OUR_TEXT_POSITIONS] = conversion.weights[OUR_TEXT_POSITIONS][
                :text_length
            ]
    conversion.max_text_length = text_length


def _make_processor(
    conversion: Conversion, vocabulary: str | Path | None
) -> VLMoProcessor | BeitImageProcessor:
    config = conversion.config
    text_length = conversion.max_text_length
    if text_length is None:
        conversion.notes.append(
            "no text side in the file and no --vocabulary: the processor takes images only"
        )
        return image_processor_for(config.image_size)
    if conversion.text == "sentencepiece":
        if vocabulary is None:
            raise ValueError(
                "this model reads SentencePiece; give the file that came with it: --vocabulary beit3.spm"
            )
        build_processor = VLMoProcessor.from_sentencepiece
        # BEiT-3's table has 64,010 rows for the 64,002 tokens of its file.
        spare_rows = 8
    else:
        vocabulary = vocabulary or _hub_vocabulary(config.vocab_size)
        build_processor = VLMoProcessor.from_vocabulary
        spare_rows = 0
    processor = build_processor(
        vocabulary, image_size=config.image_size, max_text_length=text_length
    )
    words = processor.vocab_size
    padding = processor.tokenizer.pad_token_id
    if OUR_WORDS not in conversion.weights:
        config.vocab_size = words
        config.pad_token_id = padding
    # Ids of another vocabulary would pick wrong rows, without an error.
    if not 0 <= config.vocab_size - words <= spare_rows or padding != config.pad_token_id:
        raise ValueError(
            f"the vocabulary has {words} tokens, padding is number {padding}; the checkpoint's word table has"
            f" {config.vocab_size} rows, padding is number {config.pad_token_id}. Give the vocabulary of its"
            " training (--vocabulary)"
        )
    return processor


def _hub_vocabulary(num_words: int) -> str:
    if num_words != _BERT_SIZE:
        raise ValueError(
            f"its word table has {num_words} rows, not BERT's {_BERT_SIZE}: give --vocabulary vocab.txt"
        )
    try:
        return hf_hub_download(_BERT, "vocab.txt", etag_timeout=_HUB_TIMEOUT_S)
    # Without a network the file can still be given.
    except (OSError, HTTPError) as problem:
        raise ValueError(
            f"vocab.txt of {_BERT} could not be fetched ({type(problem).__name__}): give BERT's vocab.txt, or a folder"
            " that holds it (--vocabulary)"
        ) from None


def name_labels(folder: str | Path, labels: str | Path) -> None:
    """Write names of answers or classes into a model folder (see `read_labels`); ValueError for no classifier."""
    folder, model_class = check_model_folder(folder)
    if model_class not in _CLASSIFIERS:
        raise ValueError(
            f"labels were given ({labels}), but {model_class.__name__} is no classifier"
        )
    config = models.VLMoConfig.from_pretrained(folder)
    names = read_labels(labels, count=len(config.id2label or {}))
    config.id2label = dict(enumerate(names))
    config.label2id = {name: number for number, name in enumerate(names)}
    write_file(folder / "config.json", config.to_json_string())


def _unify_dtype(conversion: Conversion) -> torch.dtype:
    """Make the weights float32 if the file mixes dtypes; return the dtype that all have then."""
    weights = conversion.weights
    dtypes = {tensor.dtype for tensor in weights.values()}
    names = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes))
    if len(dtypes) > 1:
        conversion.notes.append(f"the file mixes {names}: all is float32 now")
        # float16 and bfloat16 fit float32 exactly, not each other.
        for name, tensor in weights.items():
            weights[name] = tensor.float()
        return torch.float32
    if dtypes != {torch.float32}:
        conversion.notes.append(f"the weights are {names}, and so is the model that loads them")
    return dtypes.pop()


def _build(conversion: Conversion) -> models.VLMoPreTrainedModel:
    """Return the model with its weights, without a copy; parameters that the file does not hold are new."""
    # Without memory: the weights of the file are put in by `assign`.
    with torch.device("meta"):
        model = conversion.model_class(conversion.config)
    prefix = "vlmo." if conversion.model_class is models.VLMoModel else ""
    shapes = {f"{prefix}{name}": tensor.shape for name, tensor in model.state_dict().items()}
    _check_tensors(conversion, shapes)
    dtype = _unify_dtype(conversion)
    state: dict[str, Tensor] = {}
    addresses: set[int] = set()
    for name, tensor in conversion.weights.items():
        tensor = tensor.detach().contiguous()
        # Of two tensors that share memory, only one would be saved.
        state[name.removeprefix(prefix)] = (
            tensor.clone() if tensor.data_ptr() in addresses else tensor
        )
        addresses.add(tensor.data_ptr())
    if conversion.missing:
        # The same file gives the same folder, and the caller's random numbers stay as they are.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(_SEED)
            initialized = conversion.model_class(conversion.config).state_dict()
        for name in conversion.missing:
            name = name.removeprefix(prefix)
            state[name] = initialized[name].to(dtype)
    model.load_state_dict(state, assign=True)
    return model


def _check_tensors(conversion: Conversion, shapes: dict[str, torch.Size]) -> None:
    """Validate names and shapes of the weights by those of the model, and drop what it has no place for."""
    weights = conversion.weights

    def key_of(name: str) -> str:
        return conversion.tensors.names.published(name) or name

    conversion.missing = sorted(shapes.keys() - weights.keys())
    unknown = conversion.tensors.unknown
    # Named in the message, not skipped: a file of another kind would load in part.
    for name in sorted(weights.keys() - shapes.keys()):
        del weights[name]
        unknown.append(key_of(name))
    created = re.compile(conversion.created or "$")
    lost = [key_of(name) for name in conversion.missing if not created.match(name)]
    problems = []
    if unknown:
        problems.append(f"keys that this kind ({conversion.kind}) does not have: {listed(unknown)}")
    if lost:
        problems.append(f"keys that are missing: {listed(lost)}")
    if problems:
        raise ValueError(f"{'; '.join(problems)}. Is the file whole?")
    for name, tensor in weights.items():
        if tensor.shape != shapes[name]:
            shape = tuple(tensor.shape)
            raise ValueError(
                f"{key_of(name)} has shape {shape}, expected {tuple(shapes[name])}. Is the file whole?"
            )
