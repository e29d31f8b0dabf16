"""A model folder made ready: vectors of pictures and texts, judgement on pairs, attention of words."""

from __future__ import annotations

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
from vlmo.drawing.pictures import on_white
from vlmo.model.attention_maps import attention_maps, maps_by_word
from vlmo.processing import TransformConfig, eval_transform
from vlmo.released import find_model
from vlmo.retrieval.fingerprint import model_fingerprint
from vlmo.types import normalize_pixels

BATCH = 64
"""Pictures or texts that go through the model at a time."""


class Encoder:
    """The model of a folder that retrieves. Threads may share one: they take turns in the model.

    Args:
        folder: Model folder, of stage 3 or fine-tuned for retrieval, or the name of a model that comes along.
        device: "cpu", "cuda" or "cuda:1"; None takes a GPU if there is one.
        dtype: Of weights and activations; None: that of the folder.

    Raises:
        ValueError: It is no model folder, or its model does not retrieve; or there is no such device.
    """

    def __init__(self, folder: str | Path, *, device: str | None = None, dtype: torch.dtype | None = None) -> None:
        self.folder = Path(find_model(Path(folder).expanduser()))
        place = choose_device(device)
        model, self._processor = load_retrieval_model(self.folder)
        self.fingerprint = model_fingerprint(self.folder)
        self._dual = model.for_inference(dtype=dtype).to(place)
        module: nn.Module = model
        module.to(device=place, dtype=dtype).requires_grad_(requires_grad=False)
        self._model = model
        self._transform = eval_transform(TransformConfig(image_size=self._processor.image_size))
        self._turn = threading.RLock()
        self._workers = ThreadPoolExecutor(os.cpu_count())

    folder: Path
    """Where the model lies."""
    fingerprint: str
    """The same for every copy of the folder; see `model_fingerprint`."""

    @property
    def dim(self) -> int:
        """Numbers in a vector."""
        return self._model.contrast_head.image_projection.out_features

    @property
    def device(self) -> torch.device:
        """Where the model runs."""
        return self._dual.device

    @property
    def can_match(self) -> bool:
        """Whether there is a matching head, so that `match` works."""
        return self._model.match_head is not None

    @property
    def rerank_weight(self) -> float:
        """The share of the matching score that the folder's config.json names."""
        return self._model.config.rerank_weight

    @property
    def inverse_temperature(self) -> float:
        """What similarities are multiplied with to be log-odds, as in training."""
        return float(self._model.contrast_head.logit_scale.exp())

    def embed_texts(self, texts: Sequence[str]) -> Float32[np.ndarray, "text dim"]:
        """L2-normalised vectors of texts; a text that is too long is cut."""

        def embed(part: Sequence[str]) -> Tensor:
            return self._dual.get_text_features(**self._tokens(part))

        return self._embed(texts, embed)

    def embed_images(self, pictures: Sequence[Image.Image]) -> Float32[np.ndarray, "picture dim"]:
        """L2-normalised vectors of pictures, which may have any size and mode."""
        return self.embed_pixels(list(self._workers.map(self.pixels, pictures)))

    def pixels(self, picture: Image.Image) -> UInt8[Tensor, "3 size size"]:
        """A picture as `embed_pixels` takes it. Needs no turn in the model."""
        return self._transform.pixels(picture if picture.mode == "RGB" else on_white(picture))

    def embed_pixels(self, pixels: Sequence[UInt8[Tensor, "3 size size"]]) -> Float32[np.ndarray, "picture dim"]:
        """L2-normalised vectors of what `pixels` gave."""

        def embed(part: Sequence[Tensor]) -> Tensor:
            return self._dual.get_image_features(self._pixel_values(part, dtype=self._dual.dtype))

        return self._embed(pixels, embed)

    def match(self, pictures: Sequence[Image.Image], texts: Sequence[str]) -> Float32[np.ndarray, " pair"]:
        """Log-odds that each text belongs to the picture in the same place.

        Raises:
            ValueError: The model has no matching head, or there are not as many texts as pictures.
        """
        if len(pictures) != len(texts):
            raise ValueError(f"given are {len(pictures)} pictures and {len(texts)} texts; expected pairs")
        pixels = list(self._workers.map(self.pixels, pictures))

        def match(part: range) -> Tensor:
            values = self._pixel_values([pixels[row] for row in part], dtype=self._model.dtype)
            logits = self._model.match(values, **self._tokens([texts[row] for row in part])).float()
            return logits[:, 1] - logits[:, 0]

        if not pixels:
            return np.zeros(0, dtype=np.float32)
        return self._in_batches(range(len(pixels)), match)

    def attention(self, picture: Image.Image, text: str) -> tuple[list[str], Float32[np.ndarray, "word grid_h grid_w"]]:
        """The words of a text, and how much each looks at each patch of the picture in the fusion encoder's layers.

        Raises:
            ValueError: No word is left of the text.
        """
        with self._turn, torch.inference_mode():
            tokens = self._tokens([text])
            values = self._pixel_values([self.pixels(picture)], dtype=self._model.dtype)
            ids, mask = tokens["input_ids"], tokens["attention_mask"]
            maps = attention_maps(self._model, pixel_values=values, input_ids=ids, attention_mask=mask)[0].cpu()
            pieces = self._processor.tokenizer.convert_ids_to_tokens(ids[0].tolist())
        words, weights = maps_by_word(maps, tokens=pieces)
        return words, weights.numpy()

    def _embed(self, rows: Sequence[Any], embed: Callable[[Any], Tensor]) -> Float32[np.ndarray, "row dim"]:
        if not len(rows):
            return np.zeros((0, self.dim), dtype=np.float32)
        return self._in_batches(rows, embed)

    def _in_batches(self, rows: Any, run: Callable[[Any], Tensor]) -> Float32[np.ndarray, "row *dim"]:
        results = []
        for start in range(0, len(rows), BATCH):
            with self._turn, torch.inference_mode():
                results.append(run(rows[start : start + BATCH]).float().cpu())
        found = torch.cat(results)
        if found.isnan().any():
            raise ValueError(f"{self.folder}: the model gives NaN; check its weights")
        return found.numpy()

    def _pixel_values(self, pixels: Sequence[Tensor], *, dtype: torch.dtype) -> Float[Tensor, "batch 3 height width"]:
        return normalize_pixels(torch.stack(list(pixels)).to(self.device)).to(dtype)

    def _tokens(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """In turn: the tokenizer changes while it is used."""
        encoded = self._processor(text=list(texts), return_tensors="pt")
        return {name: encoded[name].to(self.device) for name in ("input_ids", "attention_mask")}
