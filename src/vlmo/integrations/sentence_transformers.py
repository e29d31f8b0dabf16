"""Adapter of a model folder for sentence-transformers: dual encoder, and both encoders as a cross-encoder.

`modules.json` of a folder names `VLMoEmbedder`, so `SentenceTransformer(FOLDER, trust_remote_code=True)` finds it; the
library asks for this of each class that is not its own. The functions below do without it, and run no code of a folder.
"""

from __future__ import annotations

from abc import ABC
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self, cast

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from vlmo.checkpoints.loading import check_model_folder, load_model, load_processor
from vlmo.folder import read_json
from vlmo.integrations.pipelines import open_image
from vlmo.lazy import install_command
from vlmo.model import VLMoForImageTextRetrieval
from vlmo.model.reranking import rerank_score
from vlmo.processing import VLMoProcessor

try:
    from sentence_transformers import CrossEncoder, SentenceTransformer
    from sentence_transformers.base.modality import infer_modality
    from sentence_transformers.base.modules import InputModule
except ImportError as error:
    raise ImportError(
        f"sentence-transformers 6 is needed here: {install_command('sentence-transformers')}"
    ) from error

Features = dict[str, Any]
"""Tensors by name, handed from module to module."""


class _FolderModule(InputModule, ABC):
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

    def save(self, output_path: str, **_: Any) -> None:
        """Write a model folder, always as safetensors."""
        self.model.save_pretrained(output_path)
        self.processor.save_pretrained(output_path)

    @classmethod
    def load(
        cls,
        model_name_or_path: str,
        *,
        model_kwargs: Mapping[str, Any] | None = None,
        backend: str = "torch",
        revision: str | None = None,
        **_: Any,
    ) -> Self:
        """Load a folder, or one of the hub, as sentence-transformers asks, without running code of it.

        ValueError for other models, backends and revisions.
        """
        if backend != "torch" or revision is not None:
            raise ValueError(
                f"VLMo loads with backend 'torch' and without a revision; got {backend!r}, {revision!r}"
            )
        folder = (
            model_name_or_path
            if Path(model_name_or_path).is_dir()
            else f"hf://{model_name_or_path}"
        )
        return cls(
            load_model(folder, VLMoForImageTextRetrieval, **dict(model_kwargs or {})),
            load_processor(folder),
        )

    def _features(self, images: Sequence[Any], texts: Sequence[str]) -> Features:
        features: Features = {}
        if images:
            opened = [
                open_image(image) if isinstance(image, str | Path) else image for image in images
            ]
            features |= self.processor(images=opened, return_tensors="pt")
        if texts:
            # A saved tokenizer remembers the length that it was last used with, and transformers prefers that.
            features |= self.processor(
                text=list(texts), max_length=self.max_seq_length, return_tensors="pt"
            )
        return features


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
        self, inputs: Sequence[Any], prompt: str | None = None, **kwargs: Any
    ) -> Features:
        """Return tokens of the strings, with the prompt in front, and pixel values of the images.

        Inputs are strings, images (PIL, arrays, tensors, paths, addresses), or `{"text": ...}` and `{"image": ...}`.
        `task` has no meaning: queries and documents are embedded alike. ValueError for other inputs and arguments.
        """
        _refuse(kwargs)
        kinds, values = zip(*(_classify(entry, prompt=prompt) for entry in inputs), strict=True)
        rows = {
            kind: [row for row, given in enumerate(kinds) if given == kind]
            for kind in ("image", "text")
        }
        images, texts = ([values[row] for row in rows[kind]] for kind in ("image", "text"))
        features = self._features(images, texts)
        if images and texts:
            # Number of each input when all images come before all texts.
            features["order"] = torch.tensor(rows["image"] + rows["text"]).argsort()
        return features

    def forward(self, features: Features) -> Features:
        """Add `sentence_embedding`, (batch, dim)."""
        model = self.model
        parts = []
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
        self, inputs: Sequence[Any], prompt: str | None = None, **kwargs: Any
    ) -> Features:
        """Return pixel values and tokens of pairs; `image_rows` holds the number of each pair's image.

        Inputs are (string, image) or (image, string), or `{"text": ..., "image": ...}`; the first is the query.
        ValueError for other inputs and arguments.
        """
        _refuse(kwargs)
        images: dict[
            int, Any
        ] = {}  # rerankers score one image against many texts: it is resized once
        keys = []
        texts = []
        is_text_query = []
        for pair in inputs:
            parts = (
                [{kind: value} for kind, value in pair.items()] if isinstance(pair, dict) else pair
            )
            found = dict(_classify(part, prompt=prompt) for part in parts)
            if len(parts) != 2 or len(found) != 2:
                raise ValueError(f"Got {pair!r:.80}: expected one string and one image.")
            keys.append(id(found["image"]))
            images[keys[-1]] = found["image"]
            texts.append(found["text"])
            is_text_query.append(next(iter(found)) == "text")
        numbers = {key: number for number, key in enumerate(images)}
        features = self._features(list(images.values()), texts)
        features["image_rows"] = torch.tensor([numbers[key] for key in keys])
        return features | {"is_text_query": torch.tensor(is_text_query)}

    def forward(self, features: Features) -> Features:
        """Add `scores`, (batch, 1), in nats."""
        model = self.model
        rows = features["image_rows"]
        pixel_values = features["pixel_values"].to(model.dtype)
        tokens = features["input_ids"], features["attention_mask"]
        images = model.get_image_features(pixel_values)[rows]
        texts = model.get_text_features(*tokens)
        logits = model.match(pixel_values[rows], *tokens).float()
        of_texts, of_images = model.config.rerank_weights
        scores = rerank_score(
            (images * texts).float().sum(dim=1),
            logits[:, 1] - logits[:, 0],
            weight=torch.where(features["is_text_query"], of_images, of_texts),
            scale=model.contrast_head.logit_scale.float().exp(),
        )
        return features | {"scores": scores[:, None]}


def load_sentence_transformer(
    folder: str | Path, *, device: str | torch.device | None = None
) -> SentenceTransformer:
    """Load the dual encoder of a model folder, or of one of `SentenceTransformer.save`; ValueError for other models."""
    return cast(
        "SentenceTransformer", _load(SentenceTransformer, VLMoEmbedder, folder, device=device)
    )


def load_cross_encoder(
    folder: str | Path,
    *,
    rerank_weight: float | None = None,
    device: str | torch.device | None = None,
) -> CrossEncoder:
    """Load a model folder, or one of `CrossEncoder.save`, to score pairs as a search with reranking does.

    `rerank_weight` is the share of the match in a score, 0 to 1, by default the model's; with 1 scores are log-odds of
    a match. ValueError if the folder holds no model that scores pairs, or for another weight.
    """
    if rerank_weight is not None and not 0 <= rerank_weight <= 1:
        raise ValueError(f"rerank_weight is {rerank_weight}; give a number from 0 to 1")
    scorer = cast("CrossEncoder", _load(CrossEncoder, VLMoPairScorer, folder, device=device))
    if rerank_weight is not None:
        config = cast("VLMoPairScorer", scorer[0]).model.config
        config.rerank_weight = config.rerank_weight_image_to_text = float(rerank_weight)
    return scorer


def _load(
    library_class: Any,
    module: type[_FolderModule],
    folder: str | Path,
    *,
    device: str | torch.device | None,
) -> SentenceTransformer | CrossEncoder:
    folder, _ = check_model_folder(folder, VLMoForImageTextRetrieval)
    settings = folder / "config_sentence_transformers.json"
    options: dict[str, Any] = {"device": None if device is None else str(device)}
    if (
        settings.is_file()
        and read_json(settings).get("model_type", "SentenceTransformer") == library_class.__name__
    ):
        ours = {
            f"{each.__module__}.{each.__name__}": each for each in (VLMoEmbedder, VLMoPairScorer)
        }
        return library_class._load_with_module_classes(
            str(folder), ours, local_files_only=True, **options
        )
    options |= {"activation_fn": nn.Identity()} if library_class is CrossEncoder else {}
    return library_class(modules=[module.load(str(folder))], **options)


def _classify(entry: Any, *, prompt: str | None) -> tuple[str, Any]:
    kind = (
        "image"
        if isinstance(entry, Path)
        else infer_modality(entry, supported_modalities=["text", "image"])
    )
    value = entry[kind] if isinstance(entry, dict) and kind in {"image", "text"} else entry
    if kind == "text" and isinstance(value, str):
        return "text", (prompt or "") + value
    if kind == "image":
        return "image", value
    raise ValueError(f"Got {entry!r:.80}: expected a string or an image.")


def _refuse(arguments: Mapping[str, Any]) -> None:
    if given := sorted(
        name for name, value in arguments.items() if value is not None and name != "task"
    ):
        raise ValueError(
            f"Got {', '.join(given)}, which VLMo does not support: its processor decides."
        )
