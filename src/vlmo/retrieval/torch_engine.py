"""The retrieval model of a folder in PyTorch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Float32
from PIL import Image
from torch import Tensor, nn

from vlmo.checkpoints.loading import load_retrieval_model
from vlmo.distributed import choose_device
from vlmo.export.sessions import Pixels
from vlmo.model.attention_maps import attention_maps, maps_by_word
from vlmo.processing import EvalTransform
from vlmo.processing.transforms import by_shape
from vlmo.retrieval.engine import NO_MATCHING_HEAD
from vlmo.types import normalize_pixels


class TorchEngine:
    """The model of a folder on a device; None takes a GPU if there is one."""

    no_match = NO_MATCHING_HEAD

    def __init__(self, folder: Path, *, device: str | None = None) -> None:
        chosen = choose_device(device)
        model, self._processor = load_retrieval_model(folder)
        module: nn.Module = model
        # No gradients: the weights are never changed here.
        module.to(chosen).requires_grad_(requires_grad=False)
        self._model = model
        self._transform = EvalTransform.of(self._processor)
        self.device = str(model.device)
        # Width of the ITC projection, not that of the backbone.
        self.dim: int = model.contrast_head.image_projection.out_features
        self.image_size: int = model.config.image_size
        self.can_match = model.match_head is not None
        # `logit_scale` is the logarithm of 1 / temperature, as the model learns it.
        self.inverse_temperature = float(model.contrast_head.logit_scale.exp())

    def pixels(self, image: Image.Image) -> Pixels:
        """An RGB image at the model's size."""
        return self._transform.pixels(image).numpy()

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Numbers of tokens, special ones among them."""
        return self._tokens(texts)["attention_mask"].sum(dim=1).tolist()

    @torch.inference_mode()
    def embed_images(self, pixels: Sequence[Pixels]) -> Float32[np.ndarray, "image dim"]:
        """L2-normalised vectors."""
        return np.stack(
            by_shape(
                pixels,
                lambda part: _array(self._model.get_image_features(self._pixel_values(part))),
            )
        )

    @torch.inference_mode()
    def embed_texts(self, texts: Sequence[str]) -> Float32[np.ndarray, "text dim"]:
        """L2-normalised vectors."""
        return _array(self._model.get_text_features(**self._tokens(texts)))

    @torch.inference_mode()
    def match(self, pixels: Sequence[Pixels], texts: Sequence[str]) -> Float32[np.ndarray, " pair"]:
        """Log-odds that each text belongs to its image."""

        def of_one_shape(pairs: list[tuple[Pixels, str]]) -> np.ndarray:
            images, words = zip(*pairs, strict=True)
            # (pair, 2): no match, match.
            logits = self._model.match(self._pixel_values(images), **self._tokens(words)).float()
            return _array(logits[:, 1] - logits[:, 0])

        pairs = list(zip(pixels, texts, strict=True))
        return np.stack(by_shape(pairs, of_one_shape, shape=lambda pair: pair[0].shape))

    @torch.inference_mode()
    def attention(
        self, pixels: Pixels, text: str
    ) -> tuple[list[str], Float32[np.ndarray, "word grid_h grid_w"]]:
        """Return the words of a text, and the attention of each to each patch; ValueError if no word is left."""
        tokens = self._tokens([text])
        values = self._pixel_values([pixels])
        ids = tokens["input_ids"]
        mask = tokens["attention_mask"]
        maps = attention_maps(self._model, pixel_values=values, input_ids=ids, attention_mask=mask)[
            0
        ].cpu()
        words, weights = maps_by_word(
            maps, tokens=self._processor.tokenizer.convert_ids_to_tokens(ids[0].tolist())
        )
        return words, weights.numpy()

    def _pixel_values(self, pixels: Sequence[Pixels]) -> Float[Tensor, "batch 3 height width"]:
        return normalize_pixels(torch.from_numpy(np.stack(pixels)).to(self.device)).to(
            self._model.dtype
        )

    def _tokens(self, texts: Sequence[str]) -> dict[str, Tensor]:
        encoded = self._processor(text=list(texts), return_tensors="pt")
        return {name: encoded[name].to(self.device) for name in ("input_ids", "attention_mask")}


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.float().cpu().numpy()
