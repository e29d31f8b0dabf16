"""Adapter of a model folder for sentence-transformers: dual encoder, or both as a cross-encoder.

`modules.json` of a folder names `VLMoEmbedder`, so `SentenceTransformer(FOLDER,
trust_remote_code=True)` loads it; the library asks for this of all classes but its own. The
functions below do without it, and run no code of a folder.
"""

from __future__ import annotations

from abc import ABC
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self, cast

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase
from transformers.image_utils import load_image

from vlmo.checkpoints.loading import check_model_folder, load_model, load_processor
from vlmo.folder import read_json
from vlmo.lazy import install_command
from vlmo.model import VLMoForImageTextRetrieval
from vlmo.model.reranking import rerank_score
from vlmo.processing import VLMoProcessor
from vlmo.processing.images import open_upright

try:
    from sentence_transformers import CrossEncoder, SentenceTransformer
    from sentence_transformers.base.modality import infer_modality
    from sentence_transformers.base.modules import InputModule
except ImportError as error:
    command = install_command("sentence-transformers")
    raise ImportError(f"sentence-transformers 6 is needed here: {command}") from error

Features = dict[str, Tensor]
"""Tensors by name, handed from module to module."""


def open_image(image: str | Path) -> Image.Image:
    """Open the image of a path, an address or a data URI, and turn it upright.

    Raises:
        ValueError: It is a file of more than 64 million pixels.
        OSError: The file cannot be read, or holds no image.
    """
    if str(image).startswith(("http://", "https://", "data:image/")):
        return load_image(str(image))
    return open_upright(image)


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

    def save(self, output_path: str, **_: object) -> None:
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
        **_: object,
    ) -> Self:
        """Load a folder, or one of the hub, for sentence-transformers, without running its code.

        ValueError for other models, backends and revisions.
        """
        if backend != "torch" or revision is not None:
            raise ValueError(
                f"VLMo loads with backend 'torch' and without a revision; got {backend!r}, "
                f"{revision!r}"
            )
        folder = model_name_or_path
        if not Path(folder).is_dir():
            # A name alone would be read as a folder that is missing.
            folder = f"hf://{folder}"
        model = load_model(folder, VLMoForImageTextRetrieval, **(model_kwargs or {}))
        return cls(model, load_processor(folder))

    def _features(self, images: Sequence[object], texts: Sequence[str]) -> Features:
        features: Features = {}
        if images:
            opened = [
                open_image(image) if isinstance(image, str | Path) else image for image in images
            ]
            features |= self.processor(images=opened, return_tensors="pt")
        if texts:
            # A saved tokenizer remembers the length of its last use, and transformers prefers that.
            features |= self.processor(
                text=list(texts), max_length=self.max_seq_length, return_tensors="pt"
            )
        return features


class VLMoEmbedder(_FolderModule):
    """Dual encoder: strings and images, also mixed, to L2-normalized vectors of one space."""

    @property
    def modalities(self) -> list[str]:
        """Strings and images.

        `message` lets lists of both pass; chat messages themselves are refused.
        """
        return ["text", "image", "message"]

    def get_embedding_dimension(self) -> int | None:
        """Return the length of a vector."""
        return self.model.config.projection_size

    def preprocess(
        self, inputs: Sequence[object], prompt: str | None = None, **kwargs: object
    ) -> Features:
        """Return tokens of the strings, with the prompt in front, and pixel values of the images.

        Inputs are strings, images (PIL, arrays, tensors, paths, addresses), or `{"text": ...}` and
        `{"image": ...}`. `task` has no meaning: queries and documents are embedded alike.
        ValueError for other inputs and arguments.
        """
        _refuse(kwargs)
        # Images and texts go through the model apart.
        rows: dict[str, list[int]] = {"image": [], "text": []}
        values: dict[str, list[Any]] = {"image": [], "text": []}
        for row, entry in enumerate(inputs):
            kind, value = _classify(entry, prompt=prompt)
            rows[kind].append(row)
            values[kind].append(value)
        features = self._features(values["image"], values["text"])
        if values["image"] and values["text"]:
            # Row of an input's vector when those of all images come before those of all texts. Not
            # in other batches, whose tensors the library's cached losses cut into pieces.
            features["order"] = torch.tensor(rows["image"] + rows["text"]).argsort()
        return features

    def forward(self, features: Features) -> Features:
        """Add `sentence_embedding`, (batch, dim)."""
        model = self.model
        vectors = []
        if "pixel_values" in features:
            vectors.append(model.get_image_features(features["pixel_values"].to(model.dtype)))
        if "input_ids" in features:
            texts = features["input_ids"], features["attention_mask"]
            vectors.append(model.get_text_features(*texts))
        embeddings = torch.cat(vectors)
        if "order" in features:
            embeddings = embeddings[features["order"]]
        return features | {"sentence_embedding": embeddings}


class VLMoPairScorer(_FolderModule):
    """Score that a search orders a string and an image by; ValueError without a matching head.

    It mixes similarity and log-odds of a match by the weights in the model's configuration.
    """

    def __init__(self, model: VLMoForImageTextRetrieval, processor: VLMoProcessor) -> None:
        super().__init__(model, processor)
        if model.match_head is None:
            raise ValueError("This model has no matching head: it embeds, but scores no pairs.")

    @property
    def modalities(self) -> list[str | tuple[str, str]]:
        """An image with a string; neither alone.

        `text` lets two strings pass, of which one is the path of an image.
        """
        return ["text", ("image", "text")]

    def preprocess(
        self, inputs: Sequence[Any], prompt: str | None = None, **kwargs: object
    ) -> Features:
        """Return pixel values and tokens of pairs; `image_rows` holds the row of a pair's image.

        Inputs are (string, image) or (image, string), or `{"text": ..., "image": ...}`; the first
        is the query. ValueError for other inputs and arguments.
        """
        _refuse(kwargs)
        # Rerankers score one image against many texts: it is resized once.
        row_by_id: dict[int, int] = {}
        images: dict[int, object] = {}
        image_rows = []
        texts = []
        is_text_query = []
        for pair in inputs:
            parts = pair
            if isinstance(pair, dict):
                # A string may be the path of an image: its key says so.
                parts = [{kind: value} for kind, value in pair.items()]
            values = dict(_classify(part, prompt=prompt) for part in parts)
            if len(parts) != 2 or len(values) != 2:
                raise ValueError(f"Got {pair!r:.80}: expected one string and one image.")
            row = row_by_id.setdefault(id(values["image"]), len(row_by_id))
            images[row] = values["image"]
            image_rows.append(row)
            texts.append(values["text"])
            is_text_query.append(next(iter(values)) == "text")
        features = self._features(list(images.values()), texts)
        features["image_rows"] = torch.tensor(image_rows)
        features["is_text_query"] = torch.tensor(is_text_query)
        return features

    def forward(self, features: Features) -> Features:
        """Add `scores`, (batch, 1), in nats."""
        model = self.model
        rows = features["image_rows"]
        pixel_values = features["pixel_values"].to(model.dtype)
        tokens = features["input_ids"], features["attention_mask"]
        # Images that pairs share are embedded once: (images, dim) -> (batch, dim).
        image_vectors = model.get_image_features(pixel_values)[rows]
        text_vectors = model.get_text_features(*tokens)
        logits = model.match(pixel_values[rows], *tokens).float()
        image_to_text, text_to_image = model.config.rerank_weights
        scores = rerank_score(
            (image_vectors * text_vectors).float().sum(dim=1),
            # Log-odds: the softmax over two classes is a sigmoid of the difference.
            logits[:, 1] - logits[:, 0],
            weight=torch.where(features["is_text_query"], text_to_image, image_to_text),
            scale=model.contrast_head.logit_scale.float().exp(),
        )
        return features | {"scores": scores[:, None]}


def load_sentence_transformer(
    folder: str | Path, *, device: str | torch.device | None = None
) -> SentenceTransformer:
    """Load the dual encoder of a model folder, or of one of `SentenceTransformer.save`.

    ValueError for other models.
    """
    return cast(
        "SentenceTransformer", _load(SentenceTransformer, VLMoEmbedder, folder, device=device)
    )


def load_cross_encoder(
    folder: str | Path,
    *,
    rerank_weight: float | None = None,
    device: str | torch.device | None = None,
) -> CrossEncoder:
    """Load a model folder, or one of `CrossEncoder.save`, to score pairs as reranking does.

    `rerank_weight` is the share of the match in a score, 0 to 1, by default the model's; with 1
    scores are log-odds of a match. ValueError if the folder holds no model that scores pairs, or
    for another weight.
    """
    if rerank_weight is not None and not 0 <= rerank_weight <= 1:
        raise ValueError(f"rerank_weight is {rerank_weight}; give a number from 0 to 1")
    scorer = cast("CrossEncoder", _load(CrossEncoder, VLMoPairScorer, folder, device=device))
    if rerank_weight is not None:
        config = cast("VLMoPairScorer", scorer[0]).model.config
        # The first is for texts as queries, the second for images.
        config.rerank_weight = config.rerank_weight_image_to_text = float(rerank_weight)
    return scorer


def _load(
    library_class: type[SentenceTransformer | CrossEncoder],
    module: type[_FolderModule],
    folder: str | Path,
    *,
    device: str | torch.device | None,
) -> SentenceTransformer | CrossEncoder:
    path = str(check_model_folder(folder, VLMoForImageTextRetrieval)[0])
    settings = Path(path, "config_sentence_transformers.json")
    device = None if device is None else str(device)
    role = "SentenceTransformer"
    if settings.is_file() and read_json(settings).get("model_type", role) == library_class.__name__:
        # A folder of the library keeps its own prompts, similarity and activation.
        ours = {f"{__name__}.{ours.__name__}": ours for ours in (VLMoEmbedder, VLMoPairScorer)}
        return library_class._load_with_module_classes(
            path, ours, local_files_only=True, device=device
        )
    modules: list[nn.Module] = [module.load(path)]
    if library_class is CrossEncoder:
        # Without an activation, scores are in nats.
        return CrossEncoder(modules=modules, device=device, activation_fn=nn.Identity())
    return SentenceTransformer(modules=modules, device=device)


def _classify(entry: object, *, prompt: str | None) -> tuple[str, Any]:
    """Return "text" or "image", and the string or image."""
    kind = "image"
    if not isinstance(entry, Path):
        kind = infer_modality(entry, supported_modalities=["text", "image"])
    value = entry[kind] if isinstance(entry, dict) and kind in {"image", "text"} else entry
    if kind == "text" and isinstance(value, str):
        return "text", (prompt or "") + value
    if kind == "image":
        return "image", value
    raise ValueError(f"Got {entry!r:.80}: expected a string or an image.")


def _refuse(arguments: Mapping[str, object]) -> None:
    names = [name for name, value in arguments.items() if value is not None and name != "task"]
    if names:
        raise ValueError(
            f"Got {', '.join(names)}, which VLMo does not support: its processor decides."
        )
