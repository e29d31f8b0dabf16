"""Types of the batch that data, objectives and training share."""

from __future__ import annotations

from typing import TypedDict

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

IGNORED_CLASS = 255
"""Class of pixels that do not count."""


class Batch(TypedDict, total=False):
    """One micro-batch; every objective reads the keys it needs. Names are those of Hugging Face.

    Attributes:
        pixel_values: Images: levels 0 to 255 (uint8) as loaders give them, which models and objectives normalise on
            the device, or floats in [-1, 1].
        input_ids: WordPiece ids, padded to the longest text of the batch, rounded up to 8.
        attention_mask: 1 keeps a token, 0 hides padding.
        false_input_ids: A false version of each text, padded on its own.
        false_attention_mask: As `attention_mask`, of `false_input_ids`.
        mlm_input_ids: `input_ids` after BERT's corruption.
        mlm_labels: The true id where a prediction is asked for, -100 elsewhere.
        bool_masked_pos: True where masked image modeling hides the patch.
        labels: Targets of a downstream task: a class for each row, a score for each answer, or a class for each
            pixel.
        image_ids: Equal for rows that show the same image.
        sample_ids: Row numbers in the data set; of streams, hashes of shard and position.
        step_seed: A function of (run seed, step, micro-step), the same on every process; seeds the sampling of hard
            negatives.
        step: Number of the step in the run, from 0.
    """

    pixel_values: UInt8[Tensor, "batch 3 height width"] | Float[Tensor, "batch 3 height width"]
    input_ids: Int[Tensor, "batch text"]
    attention_mask: Int[Tensor, "batch text"]
    false_input_ids: Int[Tensor, "batch false"]
    false_attention_mask: Int[Tensor, "batch false"]
    mlm_input_ids: Int[Tensor, "batch text"]
    mlm_labels: Int[Tensor, "batch text"]
    bool_masked_pos: Bool[Tensor, "batch patch"]
    labels: Tensor
    image_ids: Int[Tensor, "batch"]
    sample_ids: Int[Tensor, "batch"]
    step_seed: Int[Tensor, ""]
    step: Int[Tensor, ""]


def normalize_pixels(
    pixels: UInt8[Tensor, "*images 3 height width"] | Float[Tensor, "*images 3 height width"],
) -> Float[Tensor, "*images 3 height width"]:
    """Map levels 0 to 255 (uint8) to float32 in [-1, 1] (mean = std = 0.5), contiguous; return floats as they are."""
    if pixels.dtype != torch.uint8:
        return pixels
    # In place on the copy: one pass less over the largest tensor of a batch.
    floats = pixels.to(torch.float32, memory_format=torch.contiguous_format)
    return floats.sub_(127.5).div_(127.5)
