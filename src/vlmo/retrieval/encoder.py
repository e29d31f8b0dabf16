"""A model folder ready for retrieval: vectors of images and texts, match scores, attention of words."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32, UInt8
from PIL import Image
from torch import Tensor, nn

from vlmo.checkpoints.loading import load_retrieval_model
from vlmo.distributed import choose_device
from vlmo.model.attention_maps import attention_maps, maps_by_word
from vlmo.processing import TransformConfig, eval_transform
from vlmo.released import find_model
from vlmo.types import normalize_pixels
from vlmo.visualization import on_white

BATCH = 64
"""Images or texts that go through the model at a time."""

# Settings that do not change a vector: they may change while an index stays valid.
_IRRELEVANT = (
    "rerank_weight",
    "rerank_weight_image_to_text",
    "match_cutoff",
    "transformers_version",
    "_name_or_path",
    "architectures",
    "dtype",
    "torch_dtype",
)
_FILES = ("*.safetensors", "tokenizer.json", "vocab.txt", "*.spm", "*.model")


class Encoder:
    """The retrieval model of a folder. Threads may share one: they take turns in the model.

    Args:
        folder: Model folder, of stage 3 or fine-tuned for retrieval, or the name of a model such as "vlmo-base-coco".
        device: "cpu", "cuda" or "cuda:1"; None takes a GPU if there is one.
        dtype: Type of weights and activations; None: that of the folder.

    Raises:
        ValueError: It is no model folder, its model does not retrieve, or its cut-off is no probability; or there is no
            such device.
    """

    def __init__(self, folder: str | Path, *, device: str | None = None, dtype: torch.dtype | None = None) -> None:
        self.folder = Path(find_model(Path(folder).expanduser()))
        chosen = choose_device(device)
        model, self._processor = load_retrieval_model(self.folder)
        self.fingerprint = model_fingerprint(self.folder)
        self.match_cutoff = cutoff = getattr(model.config, "match_cutoff", None)
        if cutoff is not None and not (isinstance(cutoff, (int, float)) and 0 <= cutoff <= 1):
            raise ValueError(f"{self.folder}: match_cutoff in config.json is {cutoff!r}; give a number from 0 to 1")
        self._dual = model.for_inference(dtype=dtype).to(chosen)
        module: nn.Module = model
        module.to(device=chosen, dtype=dtype).requires_grad_(requires_grad=False)
        self._model = model
        self._transform = eval_transform(TransformConfig(image_size=self._processor.image_size))
        self._lock = threading.RLock()
        self.pool = ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="vlmo-decode")

    folder: Path
    fingerprint: str
    """The same for every copy of the folder; see `model_fingerprint`."""
    match_cutoff: float | None
    """Probability that the best candidate of a text must reach to be a match, from config.json; None: not chosen."""
    pool: ThreadPoolExecutor
    """Threads that decode and resize images."""

    @property
    def dim(self) -> int:
        """Size of a vector."""
        return self._model.contrast_head.image_projection.out_features

    @property
    def device(self) -> torch.device:
        """Device of the model."""
        return self._dual.device

    @property
    def can_match(self) -> bool:
        """True if the model has a matching head, so that `match` works."""
        return self._model.match_head is not None

    @property
    def rerank_weight(self) -> float:
        """Share of the match score in the order of images for a text, from the folder's config.json."""
        return self._model.config.rerank_weight

    @property
    def rerank_weight_image_to_text(self) -> float:
        """Share of the match score in the order of texts for an image, from the folder's config.json."""
        return self._model.config.rerank_weights[0]

    @property
    def inverse_temperature(self) -> float:
        """Factor that turns similarities into logits, as in training."""
        return float(self._model.contrast_head.logit_scale.exp())

    def embed_texts(self, texts: Sequence[str]) -> Float32[np.ndarray, "text dim"]:
        """L2-normalised vectors of texts; a text that is too long is cut."""
        return self._in_batches(texts, lambda part: self._dual.get_text_features(**self._tokens(part)), like=[self.dim])

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Numbers of tokens that the model reads of texts, special ones among them."""
        with self._lock:
            return self._tokens(texts)["attention_mask"].sum(dim=1).tolist()

    def embed_images(self, images: Sequence[Image.Image]) -> Float32[np.ndarray, "image dim"]:
        """L2-normalised vectors of images, which may have any size and mode."""
        return self.embed_pixels(list(self.pool.map(self.pixels, images)))

    def pixels(self, image: Image.Image) -> UInt8[Tensor, "3 size size"]:
        """An image as `embed_pixels` and `match_pixels` take it. Does not wait for the model."""
        return self._transform.pixels(image if image.mode == "RGB" else on_white(image))

    def embed_pixels(self, pixels: Sequence[UInt8[Tensor, "3 size size"]]) -> Float32[np.ndarray, "image dim"]:
        """L2-normalised vectors of images from `pixels`."""

        def embed(part: Sequence[Tensor]) -> Tensor:
            return self._dual.get_image_features(self._pixel_values(part, dtype=self._dual.dtype))

        return self._in_batches(pixels, embed, like=[self.dim])

    def match(self, images: Sequence[Image.Image], texts: Sequence[str]) -> Float32[np.ndarray, " pair"]:
        """Log-odds that each text belongs to the image at the same position.

        Raises:
            ValueError: The model has no matching head, or there are not as many texts as images.
        """
        return self.match_pixels(list(self.pool.map(self.pixels, images)), texts)

    def match_pixels(
        self, pixels: Sequence[UInt8[Tensor, "3 size size"]], texts: Sequence[str]
    ) -> Float32[np.ndarray, " pair"]:
        """`match` of images from `pixels`; ValueError unless there are as many texts."""
        if len(pixels) != len(texts):
            raise ValueError(f"given are {len(pixels)} images and {len(texts)} texts; expected pairs")

        def match(part: Sequence[tuple[Tensor, str]]) -> Tensor:
            values = self._pixel_values([image for image, _ in part], dtype=self._model.dtype)
            logits = self._model.match(values, **self._tokens([text for _, text in part])).float()
            return logits[:, 1] - logits[:, 0]

        return self._in_batches(list(zip(pixels, texts, strict=True)), match, like=[])

    def attention(self, image: Image.Image, text: str) -> tuple[list[str], Float32[np.ndarray, "word grid_h grid_w"]]:
        """The words of a text, and the attention of each to each patch of the image in the fusion encoder's layers.

        Raises:
            ValueError: No word is left of the text.
        """
        with self._lock, torch.inference_mode():
            tokens = self._tokens([text])
            values = self._pixel_values([self.pixels(image)], dtype=self._model.dtype)
            ids, mask = tokens["input_ids"], tokens["attention_mask"]
            maps = attention_maps(self._model, pixel_values=values, input_ids=ids, attention_mask=mask)[0].cpu()
            pieces = self._processor.tokenizer.convert_ids_to_tokens(ids[0].tolist())
        words, weights = maps_by_word(maps, tokens=pieces)
        return words, weights.numpy()

    def _in_batches(
        self, rows: Sequence[Any], run: Callable[[Any], Tensor], *, like: list[int]
    ) -> Float32[np.ndarray, "row *dim"]:
        results = [torch.zeros(0, *like)]
        for start in range(0, len(rows), BATCH):
            with self._lock, torch.inference_mode():
                results.append(run(rows[start : start + BATCH]).float().cpu())
        found = torch.cat(results)
        if found.isnan().any():
            raise ValueError(f"{self.folder}: the model gives NaN; check its weights")
        return found.numpy()

    def _pixel_values(self, pixels: Sequence[Tensor], *, dtype: torch.dtype) -> Float[Tensor, "batch 3 height width"]:
        return normalize_pixels(torch.stack(list(pixels)).to(self.device)).to(dtype)

    def _tokens(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """Tokenize; called with the lock held, as the tokenizer changes while it is used."""
        encoded = self._processor(text=list(texts), return_tensors="pt")
        return {name: encoded[name].to(self.device) for name in ("input_ids", "attention_mask")}


def model_fingerprint(folder: Path) -> str:
    """Return 32 hexadecimal digits that change with weights, sizes, vocabulary or image size, and with nothing else.

    Copies of a folder have the same fingerprint, wherever they lie.
    """
    digest = hashlib.sha256()
    for name in ("config.json", "processor_config.json", "preprocessor_config.json"):
        if name == "config.json" or (folder / name).is_file():
            settings = json.loads((folder / name).read_text(encoding="utf-8"))
            if name == "config.json":
                settings = {key: value for key, value in settings.items() if key not in _IRRELEVANT}
            digest.update(f"{name} {json.dumps(settings, sort_keys=True)}\n".encode())
    for path in sorted({path for pattern in _FILES for path in folder.glob(pattern)}):
        with path.open("rb") as file:
            digest.update(f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()[:32]
