"""Adapter of a model folder for sentence-transformers: dual encoder, and both encoders as a cross-encoder.

`modules.json` of a folder names `VLMoEmbedder`, so `SentenceTransformer(FOLDER, trust_remote_code=True)` finds it; the
library asks for this of each class that is not its own. The functions below do without it, and run no code of a folder.
"""

from __future__ import annotations

from abc import ABC
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from vlmo.checkpoints.loading import check_model_folder, load_complete, one_line_errors
from vlmo.folder import read_json
from vlmo.lazy import install_command
from vlmo.model import VLMoForImageTextRetrieval
from vlmo.model.reranking import rerank_score
from vlmo.processing import VLMoProcessor

try:
    from sentence_transformers import CrossEncoder, SentenceTransformer
    from sentence_transformers.base.modality import is_image_url_or_path
    from sentence_transformers.base.modules import InputModule
except ImportError as error:
    raise ImportError(f"sentence-transformers 6 is needed here: {install_command('sentence-transformers')}") from error

Features = dict[str, Any]
"""Tensors by name, handed from module to module."""
Device = str | torch.device | None
"""None: the first accelerator that sentence-transformers finds, or the CPU."""

# Arguments that say where the hub's files are, here and in transformers.
_HUB = {
    "cache_folder": "cache_dir",
    **{name: name for name in ("subfolder", "token", "revision", "local_files_only")},
}


class _FolderModule(InputModule, ABC):
    """A model and its processor, kept in the root of the folder."""

    def __init__(self, model: VLMoForImageTextRetrieval, processor: VLMoProcessor) -> None:
        super().__init__()
        self.model = model
        self.processor = processor

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Tokenizer of the processor."""
        return self.processor.tokenizer

    @property
    def max_seq_length(self) -> int:
        """Longest text in tokens."""
        return self.processor.max_text_length

    def save(self, output_path: str, *, safe_serialization: bool = True) -> None:
        """Write a model folder, always as safetensors."""
        del safe_serialization
        self.model.save_pretrained(output_path)
        self.processor.save_pretrained(output_path)

    @classmethod
    def load(
        cls,
        model_name_or_path: str,
        *,
        model_kwargs: Mapping[str, Any] | None = None,
        processor_kwargs: Mapping[str, Any] | None = None,
        config_kwargs: Mapping[str, Any] | None = None,
        backend: str = "torch",
        **kwargs: Any,
    ) -> Self:
        """Load a folder as sentence-transformers asks; ValueError for other models and unsupported arguments."""
        if backend != "torch" or processor_kwargs or config_kwargs:
            raise ValueError(
                f"VLMo loads with backend 'torch' and without processor_kwargs and config_kwargs; got {backend!r}, "
                f"{processor_kwargs} and {config_kwargs}. Change the folder's files instead."
            )
        # Other arguments, such as `trust_remote_code`, have no effect: no code is loaded here.
        hub = {ours: kwargs[theirs] for theirs, ours in _HUB.items() if kwargs.get(theirs) is not None}
        if Path(model_name_or_path).is_dir():
            check_model_folder(model_name_or_path, VLMoForImageTextRetrieval)
        model = load_complete(model_name_or_path, VLMoForImageTextRetrieval, **hub, **dict(model_kwargs or {})).eval()
        with one_line_errors(model_name_or_path):
            return cls(model, VLMoProcessor.from_pretrained(model_name_or_path, **hub))

    def _pixel_values(self, images: Sequence[Any]) -> Features:
        return dict(self.processor(images=list(images), return_tensors="pt"))

    def _tokens(self, texts: Sequence[str], *, prompt: str | None) -> Features:
        prompted = [(prompt or "") + text for text in texts]
        # A saved tokenizer remembers the length that it was last used with, and transformers prefers that.
        return dict(self.processor(text=prompted, max_length=self.max_seq_length, return_tensors="pt"))


class VLMoEmbedder(_FolderModule):
    """Dual encoder: strings and images, also mixed in one list, to L2-normalised vectors of one space."""

    @property
    def modalities(self) -> list[Any]:
        """Strings and images. `message` lets lists of both pass; chat messages themselves are refused."""
        return ["text", "image", "message"]

    def get_embedding_dimension(self) -> int | None:
        """Return the length of a vector."""
        return self.model.config.projection_size

    def preprocess(
        self, inputs: Sequence[Any], prompt: str | None = None, *, task: str | None = None, **kwargs: Any
    ) -> Features:
        """Return tokens of the strings and pixel values of the images; `order` where there are both.

        Args:
            inputs: Strings, images (PIL, arrays, tensors or paths of files), or `{"text": ...}` and `{"image": ...}`.
            prompt: Put in front of each string.
            task: `query` or `document`; both are embedded alike.
        """
        del task
        _refuse(kwargs)
        kinds, values = zip(*map(_classify, inputs), strict=True)
        rows = {kind: [row for row, given in enumerate(kinds) if given == kind] for kind in ("image", "text")}
        features: Features = {}
        if rows["image"]:
            features |= self._pixel_values([values[row] for row in rows["image"]])
        if rows["text"]:
            features |= self._tokens([values[row] for row in rows["text"]], prompt=prompt)
        if rows["image"] and rows["text"]:
            # Place of each input when all images come before all texts.
            features["order"] = torch.tensor(rows["image"] + rows["text"]).argsort()
        return features

    def forward(self, features: Features) -> Features:
        """Add `sentence_embedding`, (batch, dim)."""
        model, parts = self.model, []
        if "pixel_values" in features:
            parts.append(model.get_image_features(features["pixel_values"].to(model.dtype)))
        if "input_ids" in features:
            parts.append(model.get_text_features(features["input_ids"], features["attention_mask"]))
        embeddings = parts[0] if len(parts) == 1 else torch.cat(parts)[features["order"]]
        return features | {"sentence_embedding": embeddings}


class VLMoPairScorer(_FolderModule):
    """Score that a search orders a string and an image by; ValueError for a model without a matching head.

    It mixes similarity and log-odds of a match by the weights in the model's configuration.
    """

    def __init__(self, model: VLMoForImageTextRetrieval, processor: VLMoProcessor) -> None:
        super().__init__(model, processor)
        if model.match_head is None:
            raise ValueError("This model has no matching head: it embeds, but scores no pairs.")

    @property
    def modalities(self) -> list[Any]:
        """An image with a string; neither alone. `text` lets two strings pass, of which one is the path of an image."""
        return ["text", ("image", "text")]

    def preprocess(
        self, inputs: Sequence[Any], prompt: str | None = None, *, task: str | None = None, **kwargs: Any
    ) -> Features:
        """Return pixel values and tokens of pairs; `image_rows` holds the number of each pair's image.

        Args:
            inputs: (string, image) or (image, string), or `{"text": ..., "image": ...}`; the first is the query.
            prompt: Put in front of each string.
            task: Without meaning here.
        """
        del task
        _refuse(kwargs)
        pairs = [_as_pair(pair) for pair in inputs]
        # Rerankers score one image against many texts: it is resized once.
        images = {id(pair["image"]): pair["image"] for pair in pairs}
        numbers = {key: number for number, key in enumerate(images)}
        features = self._pixel_values(list(images.values()))
        features |= self._tokens([pair["text"] for pair in pairs], prompt=prompt)
        features["image_rows"] = torch.tensor([numbers[id(pair["image"])] for pair in pairs])
        return features | {"is_text_query": torch.tensor([next(iter(pair)) == "text" for pair in pairs])}

    def forward(self, features: Features) -> Features:
        """Add `scores`, (batch, 1), in nats."""
        model, rows = self.model, features["image_rows"]
        pixel_values, tokens = (
            features["pixel_values"].to(model.dtype),
            (features["input_ids"], features["attention_mask"]),
        )
        similarity = (
            (model.get_image_features(pixel_values)[rows] * model.get_text_features(*tokens)).float().sum(dim=1)
        )
        logits = model.match(pixel_values[rows], *tokens).float()
        of_texts, of_images = model.config.rerank_weights
        weight = torch.where(features["is_text_query"], of_images, of_texts)
        scale = model.contrast_head.logit_scale.float().exp()
        scores = rerank_score(similarity, logits[:, 1] - logits[:, 0], weight=weight, scale=scale)
        return features | {"scores": scores[:, None]}


def load_sentence_transformer(folder: str | Path, *, device: Device = None) -> SentenceTransformer:
    """Load the dual encoder of a model folder, or of one of `SentenceTransformer.save`; ValueError for other models."""
    return cast("SentenceTransformer", _load(SentenceTransformer, VLMoEmbedder, folder, device=device))


def load_cross_encoder(
    folder: str | Path, *, rerank_weight: float | None = None, device: Device = None
) -> CrossEncoder:
    """Load a model folder, or one that `CrossEncoder.save` wrote, to score pairs as a search with reranking does.

    Args:
        folder: Model folder.
        rerank_weight: Share of the fusion encoder in a score, 0 to 1; None: the model's for each direction. With 1 the
            scores are log-odds of a match, and `predict(..., activation_fn=torch.nn.Sigmoid())` gives probabilities.
        device: Of the model.

    Raises:
        ValueError: The folder holds no model that scores pairs, or the weight is out of range.
    """
    weights: dict[str, Any] | None = None
    if rerank_weight is not None:
        weights = dict.fromkeys(("rerank_weight", "rerank_weight_image_to_text"), float(rerank_weight))
    return cast("CrossEncoder", _load(CrossEncoder, VLMoPairScorer, folder, device=device, model_kwargs=weights))


def _load(
    library_class: Any, module: type[_FolderModule], folder: str | Path, *, device: Device, **options: Any
) -> SentenceTransformer | CrossEncoder:
    folder, _ = check_model_folder(folder, VLMoForImageTextRetrieval)
    device = None if device is None else str(device)
    settings = folder / "config_sentence_transformers.json"
    if settings.is_file() and read_json(settings).get("model_type", "SentenceTransformer") == library_class.__name__:
        ours = {f"{each.__module__}.{each.__name__}": each for each in (VLMoEmbedder, VLMoPairScorer)}
        options |= {"device": device, "local_files_only": True}
        return library_class._load_with_module_classes(str(folder), ours, **options)
    given = {"activation_fn": nn.Identity()} if library_class is CrossEncoder else {}
    return library_class(modules=[module.load(str(folder), **options)], device=device, **given)


def _classify(entry: Any) -> tuple[Literal["image", "text"], Any]:
    named = isinstance(entry, dict) and len(entry) == 1
    kind, value = next(iter(entry.items())) if named else (None, entry)
    if isinstance(value, str) and kind in {None, "text"}:
        if kind is None and is_image_url_or_path(value):  # elsewhere in sentence-transformers the image itself
            if not _is_file(value):
                raise ValueError(f"{value!r:.80} names no image file here; open it, or give {{'text': ...}} if not.")
            return "image", value
        return "text", value
    is_path = isinstance(value, (str, Path)) and _is_file(value)
    if (is_path or isinstance(value, (Image.Image, np.ndarray, Tensor))) and kind in {None, "image"}:
        return "image", value
    raise ValueError(f"Got {entry!r:.80}: expected a string, a PIL image, an array, a tensor or the path of an image.")


def _is_file(path: str | Path) -> bool:
    try:
        return Path(path).is_file()
    except (OSError, ValueError):  # base64 is too long for a name
        return False


def _as_pair(pair: Any) -> Mapping[Literal["image", "text"], Any]:
    parts = [{kind: value} for kind, value in pair.items()] if isinstance(pair, dict) else pair
    if isinstance(parts, (list, tuple)) and len(parts) == 2:
        found = dict(map(_classify, parts))
        if len(found) == 2:
            return found
    raise ValueError(f"Got {pair!r:.80}: expected one string and one image.")


def _refuse(arguments: Mapping[str, Any]) -> None:
    if given := sorted(name for name, value in arguments.items() if value is not None):
        raise ValueError(f"Got {', '.join(given)}, which VLMo does not support: its processor decides.")
