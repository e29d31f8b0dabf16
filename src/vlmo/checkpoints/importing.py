"""Import of a published checkpoint as a model folder."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import cast

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
from vlmo.folder import read_config, read_json
from vlmo.folder.atomic import write_file, write_folder
from vlmo.folder.card import CardContent, Usage, write_card
from vlmo.model.embeddings import resize_absolute_positions, resize_bias_table
from vlmo.processing import VLMoProcessor, image_processor_for
from vlmo.processing.tokenizers import PAD_MULTIPLE

LAYOUTS = (official, beit, beit3, vqkd)
"""Modules that recognise the keys of a published layout, and convert its tensors."""

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
    image_size: int | None = None,
    text_length: int | None = None,
    num_attention_heads: int | None = None,
    vocabulary: str | Path | None = None,
    labels: str | Path | None = None,
    imagenet_pixels: bool = False,
    address: str = "",
    licence: str | None = None,
    usage_of: Callable[[Path], Usage | None] = lambda _: None,
) -> Conversion:
    """Write a published checkpoint as the model folder `out`, in one atomic write; return what it became.

    Args:
        path: A torch or safetensors file, or a folder with `config.json` and weights.
        out: Must not exist, or be an empty folder.
        image_size: Pixels; position tables are resized to it.
        text_length: Longest text in tokens, a multiple of 8; by default that of the file.
        num_attention_heads: Where the tensors do not tell it.
        vocabulary: BERT's `vocab.txt` or a folder with it; for BEiT-3 its SentencePiece file. By default BERT's is
            fetched from the model hub.
        labels: File with the names of answers or classes; see `read_labels`.
        imagenet_pixels: The file takes pixels normalised by ImageNet's mean and deviation, whatever its
            `preprocessor_config.json` says; known of BEiT and BEiT-2 by the file's name (`..._pt1k...`) and of BEiT-3's
            classifiers of images.
        address: Origin of the file, for the model card.
        licence: Of the weights, for the model card.
        usage_of: Gives purpose and code of a folder's model for its card, such as `vlmo.tasks.usage_of`.

    Raises:
        ValueError: The file, or what was asked, cannot be used; nothing has been written.
    """
    path = Path(path)
    out = Path(out).absolute()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} exists and is no empty folder; give the name of a new folder")
    state_dict = read_state_dict(path)
    config = read_config(path) if (path / "config.json").is_file() else {}
    try:
        if config.get("model_type") == models.VLMoConfig.model_type:
            raise ValueError(
                "this is a model folder of this project already; load it with from_pretrained"
            )
        layout = next((layout for layout in LAYOUTS if layout.recognises(state_dict)), None)
        if layout is None:
            first = ", ".join(map(printable, sorted(state_dict)[:3]))
            raise ValueError(
                f"{len(state_dict)} tensors ({first}, ...) in no layout of VLMo, BEiT, BEiT-3 or VQ-KD"
            )
        conversion = layout.convert(
            state_dict, config=config, num_attention_heads=num_attention_heads
        )
        notes = conversion.notes
        _resize_images(conversion, image_size)
        _fit_text(conversion, asked=text_length, vocabulary=vocabulary)
        processor = _make_processor(conversion, vocabulary=vocabulary)
        known = cast("dict[str, int]", conversion.config.label2id)
        if labels is None and conversion.model_class in _CLASSIFIERS and "LABEL_0" in known:
            notes.append(f"its {len(known)} classes are called LABEL_0 and on; --labels names them")
        model = _build(conversion)
        norm = _pixel_norm(path, asked=imagenet_pixels, known=conversion.imagenet_pixels)
        if norm != _OURS:
            _fold_pixels(model, *norm)
            notes.append(
                f"the file's normalisation of pixels (mean {norm[0]}) is now in its patch projection"
            )
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
        if labels is not None:
            name_labels(partial, labels)
        limits = [f"{note[0].upper()}{note[1:].rstrip('.')}." for note in notes]
        if conversion.missing:
            limits.insert(
                0, f"Not in the file, random until it is trained: {listed(conversion.missing)}."
            )
        card = CardContent(
            title=conversion.kind,
            stage=conversion.kind,
            about=f"Imported from `{path.name}` by `vlmo import`.",
            start=f"`{path.name}`" + (f" of <{address}>" if address else ""),
            licence=licence,
            limits=tuple(limits),
        )
        write_card(partial, card, usage_of(partial))
        usual = partial.stat().st_mode & 0o666
        for file in partial.iterdir():  # safetensors gives its files to their owner alone
            file.chmod(file.stat().st_mode | usual)
    return conversion


def _pixel_norm(path: Path, *, asked: bool, known: bool) -> tuple[list[float], list[float]]:
    file = path / "preprocessor_config.json"
    given = read_json(file) if file.is_file() and not asked else {}
    if given.get("do_rescale") is False or not math.isclose(
        given.get("rescale_factor") or 1 / 255, 1 / 255
    ):
        raise ValueError(
            f"{file.name} does not rescale pixels by 1/255, which cannot be taken over; correct it"
        )
    if given.get("do_normalize") is False:
        return [0.0] * 3, [1.0] * 3
    if None not in (mean := given.get("image_mean"), deviation := given.get("image_std")):
        means, deviations = (
            each if isinstance(each, list) else [each] * 3 for each in (mean, deviation)
        )
        is_number = all(isinstance(each, int | float) for each in means + deviations)
        if not is_number or len(means) != 3 or len(deviations) != 3 or min(deviations) <= 0:
            raise ValueError(
                f"{file.name} has image_mean {mean}, image_std {deviation}; expected 3 numbers, 3 above 0"
            )
        return means, deviations
    return _IMAGENET if asked or known or _IMAGENET_NAMES.match(path.name) else _OURS


@torch.no_grad()
def _fold_pixels(
    model: models.VLMoPreTrainedModel, mean: list[float], deviation: list[float]
) -> None:
    """Make the patch projection take pixels in [-1, 1], as every model of ours, instead of the file's."""
    projection = model.backbone.image_embeddings.projection
    weight = projection.weight
    bias = cast("Tensor", projection.bias)
    means, deviations = (torch.tensor(numbers)[:, None, None] for numbers in (mean, deviation))
    shift = (weight.float() * (0.5 - means) / deviations).sum(dim=(1, 2, 3))
    projection.weight = nn.Parameter((weight.float() * 0.5 / deviations).to(weight.dtype))
    projection.bias = nn.Parameter((bias.float() + shift).to(bias.dtype))


def _resize_images(conversion: Conversion, image_size: int | None) -> None:
    config = conversion.config
    weights = conversion.weights
    if image_size is None or image_size == config.image_size:
        return
    if image_size < config.patch_size or image_size % config.patch_size:
        raise ValueError(
            f"image size {image_size} is no multiple of the patch size {config.patch_size}"
        )
    conversion.notes.append(f"positions are resized from the {config.image_size} px of the file")
    source = config.grid
    config.image_size = image_size
    for name, resize in (
        (OUR_TABLE, resize_bias_table),
        (OUR_IMAGE_POSITIONS, resize_absolute_positions),
    ):
        if name in weights:
            weights[name] = resize(weights[name], source=source, target=config.grid)


def _fit_text(conversion: Conversion, *, asked: int | None, vocabulary: str | Path | None) -> None:
    """Set the longest text of the processor, None without a text side; cut absolute positions to what is asked for."""
    config = conversion.config
    weights = conversion.weights
    if conversion.text is None and vocabulary is None:
        if asked is not None:
            raise ValueError(
                "a text length was given, but this model has no text side; give --vocabulary too"
            )
        return
    if asked is None:
        length = min(conversion.max_text_length or DEFAULT_TEXT_LENGTH, config.max_text_positions)
        asked = length - length % PAD_MULTIPLE
    elif asked > config.max_text_positions:
        raise ValueError(
            f"text length {asked} is longer than the {config.max_text_positions} positions of the model"
        )
    elif config.position_embedding == "absolute":
        config.max_text_positions = asked
        if OUR_TEXT_POSITIONS in weights:
            weights[OUR_TEXT_POSITIONS] = weights[OUR_TEXT_POSITIONS][:asked]
    conversion.max_text_length = asked


def _make_processor(
    conversion: Conversion, *, vocabulary: str | Path | None
) -> VLMoProcessor | BeitImageProcessor:
    config = conversion.config
    if conversion.max_text_length is None:
        conversion.notes.append(
            "no text side in the file and no --vocabulary: the processor takes images only"
        )
        return image_processor_for(config.image_size)
    sizes = {"image_size": config.image_size, "max_text_length": conversion.max_text_length}
    allowed = 0
    if conversion.text == "sentencepiece":
        if vocabulary is None:
            raise ValueError(
                "this model reads SentencePiece; give the file that came with it: --vocabulary beit3.spm"
            )
        allowed = 8  # BEiT-3's table has 64,010 rows for the 64,002 tokens of its file
        processor = VLMoProcessor.from_sentencepiece(vocabulary, **sizes)
    else:
        processor = VLMoProcessor.from_vocabulary(
            vocabulary or _hub_vocabulary(config.vocab_size), **sizes
        )
    padding = processor.tokenizer.pad_token_id
    if OUR_WORDS not in conversion.weights:
        config.vocab_size = processor.vocab_size
        config.pad_token_id = padding
    elif (
        not 0 <= config.vocab_size - processor.vocab_size <= allowed
        or padding != config.pad_token_id
    ):
        raise ValueError(
            f"the vocabulary has {processor.vocab_size} tokens, padding is number {padding}; the checkpoint's word"
            f" table has {config.vocab_size} rows, padding is number {config.pad_token_id}. Give the vocabulary of its"
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
    names = read_labels(labels, count=len(cast("dict[int, str]", config.id2label)))
    config.id2label = dict(enumerate(names))
    config.label2id = {name: number for number, name in enumerate(names)}
    write_file(folder / "config.json", config.to_json_string())


def _common_dtype(weights: dict[str, Tensor], notes: list[str]) -> torch.dtype:
    dtypes = {tensor.dtype for tensor in weights.values()}
    names = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes))
    if len(dtypes) > 1:
        notes.append(f"the file mixes {names}: all is float32 now")
        weights.update({name: tensor.float() for name, tensor in weights.items()})
        return torch.float32
    if dtypes != {torch.float32}:
        notes.append(f"the weights are {names}, and so is the model that loads them")
    return dtypes.pop()


def _build(conversion: Conversion) -> models.VLMoPreTrainedModel:
    """Return the model with its weights, without a copy; parameters that the file does not hold are new."""
    with torch.device("meta"):
        model = conversion.model_class(conversion.config)
    prefix = "vlmo." if conversion.model_class is models.VLMoModel else ""
    shapes = {f"{prefix}{name}": tensor.shape for name, tensor in model.state_dict().items()}
    weights = conversion.weights
    published = conversion.tensors.names.published
    left_out = conversion.tensors.unknown
    conversion.missing = sorted(shapes.keys() - weights.keys())
    for name in sorted(weights.keys() - shapes.keys()):
        del weights[name]
        left_out.append(published(name) or name)
    lost = [
        name
        for name in conversion.missing
        if not (conversion.created and re.match(conversion.created, name))
    ]
    problems = (
        [f"keys that this kind ({conversion.kind}) does not have: {listed(left_out)}"]
        if left_out
        else []
    )
    problems += (
        [f"keys that are missing: {listed(published(name) or name for name in lost)}"]
        if lost
        else []
    )
    if problems:
        raise ValueError(f"{'; '.join(problems)}. Is the file whole?")
    if wrong := next((name for name in weights if weights[name].shape != shapes[name]), None):
        given = tuple(weights[wrong].shape)
        expected = tuple(shapes[wrong])
        raise ValueError(
            f"{published(wrong) or wrong} has shape {given}, expected {expected}. Is the file whole?"
        )
    dtype = _common_dtype(weights, conversion.notes)
    state: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in weights.items():
        tensor = tensor.detach().contiguous()
        # Of two tensors that share memory, only one would be saved.
        state[name.removeprefix(prefix)] = tensor.clone() if tensor.data_ptr() in seen else tensor
        seen.add(tensor.data_ptr())
    if conversion.missing:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(_SEED)
            fresh = conversion.model_class(conversion.config).state_dict()
        state |= {name: fresh[name].to(dtype) for name in fresh.keys() - state.keys()}
    model.load_state_dict(state, assign=True)
    return model
