"""CLIP, SigLIP and SigLIP 2 of transformers, with their own processors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, cast

import numpy as np
import torch
from jaxtyping import Float32
from PIL import Image
from torch import Tensor, nn
from transformers import AutoModel, AutoProcessor
from transformers.utils import ModelOutput

from vlmo.checkpoints.loading import one_line_errors
from vlmo.distributed import choose_device
from vlmo.export.sessions import Pixels
from vlmo.folder import check_folder, weight_files
from vlmo.processing.transforms import by_shape
from vlmo.retrieval.engine import NO_FUSION_ENCODER, TEXT_PADDING

if TYPE_CHECKING:
    from transformers import (
        CLIPModel,
        PreTrainedConfig,
        ProcessorMixin,
        Siglip2Model,
        SiglipModel,
    )


class TransformersEngine:
    """A dual encoder of transformers from a local folder, on a device; None takes a GPU if there is one.

    Raises:
        ValueError: The folder is damaged or incomplete, or its weights are no safetensors.
    """

    can_match = False
    no_match = NO_FUSION_ENCODER

    def __init__(self, folder: Path, *, device: str | None = None) -> None:
        self._folder = folder
        chosen = choose_device(device)
        self._model, self._processor = _load(folder)
        # The library annotates its own `to` in a way that checkers do not read.
        module: nn.Module = self._model
        module.to(chosen)
        self.device = str(self._model.device)
        config = self._model.config
        # The library allows dictionaries here until it has made objects of them.
        vision = cast("PreTrainedConfig", config.vision_config).to_dict()
        text = cast("PreTrainedConfig", config.text_config).to_dict()
        # SigLIP 2 has a number of patches instead, in any shape of the image's proportions.
        side = vision["patch_size"] * math.isqrt(vision.get("num_patches", 0))
        self.image_size: int = vision.get("image_size", side)
        # Tokenizers without a length have a huge one.
        self._max_length: int = min(
            self._processor.tokenizer.model_max_length, text["max_position_embeddings"]
        )
        self._padding = TEXT_PADDING[config.model_type]
        # `logit_scale` is the logarithm of 1 / temperature, as the model learns it.
        self.inverse_temperature = float(self._model.logit_scale.exp())
        with one_line_errors(folder):
            self.dim: int = self.embed_texts(["a photo"]).shape[1]
            self.embed_images([self.pixels(Image.new("RGB", (32, 32)))])

    def pixels(self, image: Image.Image) -> Pixels:
        """All that the processor makes of an RGB image, as the fields of a structured array without axes."""
        prepared = self._processor.image_processor(images=[image], return_tensors="np")
        values = {name: value[0] for name, value in prepared.items()}
        fields = [(name, value.dtype, value.shape) for name, value in values.items()]
        record = np.zeros((), dtype=fields)
        for name, value in values.items():
            record[name] = value
        return record

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Numbers of tokens, special ones among them."""
        tokens = self._processor.tokenizer(
            list(texts), truncation=True, max_length=self._max_length
        )
        return [len(ids) for ids in tokens["input_ids"]]

    @torch.inference_mode()
    def embed_images(self, pixels: Sequence[Pixels]) -> Float32[np.ndarray, "image dim"]:
        """L2-normalised vectors."""
        vectors = by_shape(pixels, self._embed_shape, shape=lambda row: row["pixel_values"].shape)
        return np.stack(vectors)

    @torch.inference_mode()
    def embed_texts(self, texts: Sequence[str]) -> Float32[np.ndarray, "text dim"]:
        """L2-normalised vectors."""
        tokens = self._processor.tokenizer(
            list(texts),
            padding=self._padding,
            truncation=True,
            max_length=self._max_length,
            return_tensors="pt",
        )
        return _normalized(self._model.get_text_features(**tokens.to(self.device)))

    def match(self, *_: object) -> NoReturn:
        """Raise ValueError: pairs are scored by a fusion encoder."""
        raise ValueError(f"{self._folder}: {NO_FUSION_ENCODER}; score pairs with a VLMo")

    def attention(self, *_: object) -> NoReturn:
        """Raise ValueError: words attend to patches in a fusion encoder."""
        raise ValueError(f"{self._folder}: {NO_FUSION_ENCODER}; ask a VLMo for attention")

    def _embed_shape(self, pixels: list[Pixels]) -> np.ndarray:
        rows = np.stack(pixels)
        inputs: dict[str, Tensor] = {}
        for name in rows.dtype.names or ():
            inputs[name] = torch.from_numpy(np.ascontiguousarray(rows[name])).to(self.device)
        inputs["pixel_values"] = inputs["pixel_values"].to(self._model.dtype)
        return _normalized(self._model.get_image_features(**inputs))


def _load(
    folder: Path,
) -> tuple[CLIPModel | SiglipModel | Siglip2Model, ProcessorMixin]:
    check_folder(folder)
    if not weight_files(folder):
        raise ValueError(f"{folder} has no model.safetensors; save the model with safetensors")
    with one_line_errors(folder):
        # Nothing is downloaded, and no code of the folder is run, nor its owner asked about it.
        model, report = AutoModel.from_pretrained(
            folder,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
        )
        processor = AutoProcessor.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    # transformers would go on with random weights.
    if missing := sorted(report["missing_keys"]):
        raise ValueError(f"{folder} lacks {len(missing)} tensors, such as {missing[0]}")
    return model.eval().requires_grad_(False), processor


def _normalized(features: Tensor | ModelOutput) -> np.ndarray:
    # Since version 5 the library gives an object, with the projected vectors in this field.
    vectors = features if isinstance(features, Tensor) else features["pooler_output"]
    return nn.functional.normalize(vectors.float(), dim=-1).cpu().numpy()
