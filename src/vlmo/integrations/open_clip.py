"""Adapter of a model folder for programs that expect a CLIP of open_clip, such as clip_benchmark.

Neither package is needed here; only `register` imports clip_benchmark.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor, nn

from vlmo.checkpoints.loading import load_retrieval_model
from vlmo.lazy import install_command
from vlmo.model import VLMoForImageTextRetrieval
from vlmo.processing import VLMoProcessor
from vlmo.processing.wordpiece import PAD_MULTIPLE

MODEL_TYPE = "vlmo"
"""The name of our models in clip_benchmark, after `register`."""


class ClipModel(nn.Module):
    """Dual encoder with open_clip's methods; short texts are filled up with `pad_token_id`.

    Both encoders return vectors of length one whatever `normalize` says: VLMo compares no others.
    """

    def __init__(self, model: VLMoForImageTextRetrieval, *, pad_token_id: int) -> None:
        super().__init__()
        self.model = model
        self.pad_token_id = pad_token_id

    @property
    def logit_scale(self) -> Float[Tensor, ""]:
        """Natural logarithm of the inverse temperature, a scalar as in open_clip."""
        return self.model.contrast_head.logit_scale[0]

    def encode_image(
        self, image: Float[Tensor, "batch 3 height width"], *, normalize: bool = False
    ) -> Float[Tensor, "batch dim"]:
        """Return L2-normalised embeddings of preprocessed images."""
        del normalize
        return self.model.get_image_features(image.to(self.model.dtype))

    def encode_text(self, text: Int[Tensor, "batch text"], *, normalize: bool = False) -> Float[Tensor, "batch dim"]:
        """Return L2-normalised embeddings of tokenized texts."""
        del normalize
        # Up to the last token that is no padding: a text may itself spell "[PAD]".
        places = torch.arange(text.shape[1], device=text.device)
        lengths = ((places + 1) * (text != self.pad_token_id)).amax(dim=1)
        attention_mask = places < lengths[:, None]
        longest = int(lengths.max())  # columns that are padding in every row change nothing and cost time
        width = min(text.shape[1], -(-longest // PAD_MULTIPLE) * PAD_MULTIPLE)
        return self.model.get_text_features(text[:, :width], attention_mask[:, :width])

    def forward(
        self, image: Float[Tensor, "images 3 height width"] | None = None, text: Int[Tensor, "texts text"] | None = None
    ) -> tuple[Float[Tensor, "images dim"] | None, Float[Tensor, "texts dim"] | None, Float[Tensor, ""]]:
        """Return the embeddings of the given inputs, and the inverse temperature."""
        images = None if image is None else self.encode_image(image)
        texts = None if text is None else self.encode_text(text)
        return images, texts, self.logit_scale.exp()


class ClipPreprocess:
    """Transform from an image to `pixel_values`, the same as the folder's processor."""

    def __init__(self, processor: VLMoProcessor) -> None:
        self.processor = processor

    def __call__(self, image: Image.Image) -> Float[Tensor, "3 height width"]:
        """Resize to a square and normalise; transparency becomes white."""
        return self.processor(images=image, return_tensors="pt")["pixel_values"][0]


class ClipTokenizer:
    """Tokenizer whose rows all have `context_length` tokens, `[CLS]`, `[SEP]` and padding included."""

    def __init__(self, processor: VLMoProcessor) -> None:
        self.processor = processor
        self.context_length = processor.max_text_length

    def __call__(self, texts: str | Sequence[str], context_length: int | None = None) -> Int[Tensor, "batch text"]:
        """Return token ids, cut or padded to `context_length` (by default that of the folder)."""
        texts = [texts] if isinstance(texts, str) else list(texts)
        encoded = self.processor(
            text=texts,
            padding="max_length",
            truncation=True,
            max_length=context_length or self.context_length,
            pad_to_multiple_of=None,
            return_tensors="pt",
        )
        return encoded["input_ids"]


def load_open_clip(
    folder: str | Path, *, device: str | torch.device = "cpu"
) -> tuple[ClipModel, ClipPreprocess, ClipTokenizer]:
    """Load model, preprocess and tokenizer, in the order of clip_benchmark; ValueError if the model cannot embed."""
    model, processor = load_retrieval_model(folder, device=device)
    adapted = ClipModel(model, pad_token_id=processor.tokenizer.pad_token_id).eval()
    return adapted, ClipPreprocess(processor), ClipTokenizer(processor)


def register() -> None:
    """Register the model type `vlmo` with clip_benchmark, which must be installed; its `pretrained` is a model folder.

    Its command line then takes `--model_type vlmo --pretrained FOLDER`, in the same process.
    """
    try:
        from clip_benchmark import models
    except ImportError as error:
        raise ImportError(f"register needs clip_benchmark: {install_command('clip-benchmark')}") from error

    def load(
        *, pretrained: str, device: str | torch.device, **_: Any
    ) -> tuple[ClipModel, ClipPreprocess, ClipTokenizer]:
        return load_open_clip(pretrained, device=device)

    loaders: dict[str, Any] = models.TYPE2FUNC
    loaders[MODEL_TYPE] = load
    # The command line holds this very list.
    if MODEL_TYPE not in models.MODEL_TYPES:
        models.MODEL_TYPES.append(MODEL_TYPE)
