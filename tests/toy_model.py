"""Models small enough for tests, and inputs for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from vlmo.model import VLMoConfig

# What sets BEiT-3 apart, with a pooler and a matching head so that every objective applies.
BEIT3: dict[str, Any] = {
    "position_embedding": "absolute",
    "token_order": "image_first",
    "attention": "separate",
    "final_norm": "separate",
    "text_embedding": "plain",
    "num_modality_types": 0,
    "key_bias": True,
    "inner_norm": True,
    "layer_scale_init": None,
    "num_fusion_layers": 0,
}

Model = TypeVar("Model", bound=nn.Module)


def shaken(model: Model, *, seed: int = 0, size: float = 0.2) -> Model:
    """Moves every parameter, so that none is still zero or equal to another; in evaluation mode."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(size * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def toy(model_class: type[Model], *, size: float = 0.2, **changes: Any) -> Model:
    """A shaken model of the tiny preset."""
    torch.manual_seed(0)
    return shaken(model_class(VLMoConfig.tiny(**changes)), size=size)


def pictures(count: int = 2, *, size: tuple[int, int] = (64, 64), seed: int = 0) -> Tensor:
    """Noise in the shape of `pixel_values`."""
    return torch.randn(count, 3, *size, generator=torch.Generator().manual_seed(seed))


def texts(
    lengths: Sequence[int], *, padded_to: int | None = None, seed: int = 0
) -> dict[str, Tensor]:
    """Texts of these lengths as `input_ids` and `attention_mask`; the words do not depend on the padding."""
    width = padded_to or max(lengths)
    ids = torch.zeros(len(lengths), width, dtype=torch.long)
    for row, length in enumerate(lengths):
        generator = torch.Generator().manual_seed(1000 * seed + row)
        ids[row, :length] = torch.randint(5, 96, (length,), generator=generator)
    return {
        "input_ids": ids,
        "attention_mask": (torch.arange(width) < torch.tensor(lengths)[:, None]).long(),
    }
