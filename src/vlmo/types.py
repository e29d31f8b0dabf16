"""Words that every room shares."""

from __future__ import annotations

from typing import TypedDict

from jaxtyping import Bool, Float, Int
from torch import Tensor


class Batch(TypedDict, total=False):
    """One micro-batch; every objective reads the keys it needs. Names are those of Hugging Face."""

    pixel_values: Float[Tensor, "batch 3 height width"]
    """Pictures, normalised with mean = std = 0.5; on the way to the device still 8-bit levels (uint8, 0 to 255)."""
    input_ids: Int[Tensor, "batch text"]
    """WordPiece ids, padded to the longest text of the batch, rounded up to 8."""
    attention_mask: Int[Tensor, "batch text"]
    """1 keeps a token, 0 hides padding."""
    mlm_input_ids: Int[Tensor, "batch text"]
    """`input_ids` after BERT's corruption."""
    mlm_labels: Int[Tensor, "batch text"]
    """The true id where a prediction is asked for, -100 elsewhere."""
    bool_masked_pos: Bool[Tensor, "batch patch"]
    """True where masked image modelling hides the patch."""
    labels: Tensor
    """What is to be predicted in a downstream task: a class for each row, a score for each answer, or a class for each
    pixel."""
    image_ids: Int[Tensor, "batch"]
    """Equal for rows that show the same picture."""
    sample_ids: Int[Tensor, "batch"]
    """Row numbers in the data set; of streams, hashes of shard and place."""
    step_seed: Int[Tensor, ""]
    """A pure function of (run seed, step, micro-step), the same on every process; seeds the draw of hard negatives."""
