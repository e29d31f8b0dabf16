"""Heads on the backbone."""

from __future__ import annotations

from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from vlmo.losses.itc import contrast_logits
from vlmo.model.config import VLMoConfig

# ln 100, the bound of CLIP ("Training", arXiv 2103.00020).
MAX_LOGIT_SCALE = 4.6052


class Pooler(nn.Module):
    """Dense layer and tanh on the first token."""

    def __init__(self, config: VLMoConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden: Float[Tensor, "batch seq dim"]) -> Float[Tensor, "batch dim"]:
        """Return one vector for each sequence, from states after the final norm."""
        return torch.tanh(self.dense(hidden[:, 0]))


class ContrastHead(nn.Module):
    """Projections of one ITC branch, and its temperature (VLMo, "Image-Text Contrast")."""

    def __init__(self, config: VLMoConfig) -> None:
        super().__init__()
        projection_size = cast("int", config.projection_size)
        self.image_projection = nn.Linear(config.hidden_size, projection_size, bias=False)
        self.text_projection = nn.Linear(config.hidden_size, projection_size, bias=False)
        # One-dimensional, since sharded data parallelism cannot split a scalar.
        self.logit_scale = nn.Parameter(torch.full((1,), config.logit_scale_init))

    def embed_image(self, state: Float[Tensor, "batch dim"]) -> Float[Tensor, "batch projection"]:
        """Return L2-normalised image vectors."""
        return F.normalize(self.image_projection(state).float(), dim=-1)

    def embed_text(self, state: Float[Tensor, "batch dim"]) -> Float[Tensor, "batch projection"]:
        """Return L2-normalised text vectors."""
        return F.normalize(self.text_projection(state).float(), dim=-1)

    def forward(
        self, images: Float[Tensor, "images projection"], texts: Float[Tensor, "texts projection"]
    ) -> Float[Tensor, "images texts"]:
        """Return similarities over temperature of L2-normalised vectors, in float32."""
        return contrast_logits(images, texts, logit_scale=self.logit_scale)


class MatchHead(nn.Module):
    """Classifier of pairs, class 1 = match (VLMo, "Image-Text Matching")."""

    def __init__(self, config: VLMoConfig) -> None:
        super().__init__()
        self.classifier = nn.Linear(config.hidden_size, 2)

    def forward(self, pooled: Float[Tensor, "batch dim"]) -> Float[Tensor, "batch 2"]:
        """Return logits from the pooled first token of a fused pair."""
        return self.classifier(pooled)


class MaskedLanguageHead(nn.Module):
    """BERT's head: dense, GELU, LayerNorm, and a decoder not tied to the word table; BEiT-3's has that alone."""

    def __init__(self, config: VLMoConfig) -> None:
        super().__init__()
        plain = config.text_embedding == "plain"
        self.dense = None if plain else nn.Linear(config.hidden_size, config.hidden_size)
        self.norm = (
            None if plain else nn.LayerNorm(config.hidden_size, eps=config.text_layer_norm_eps)
        )
        self.decoder = nn.Linear(config.hidden_size, config.vocab_size)

    def forward(self, hidden: Float[Tensor, "*tokens dim"]) -> Float[Tensor, "*tokens vocab"]:
        """Return logits over word pieces, from states after the final norm."""
        if self.dense is not None and self.norm is not None:
            hidden = self.norm(F.gelu(self.dense(hidden)))
        return self.decoder(hidden)


class MaskedImageHead(nn.Module):
    """Classifier over visual tokens, with the token that replaces masked patches (BEiT)."""

    def __init__(self, config: VLMoConfig) -> None:
        super().__init__()
        self.mask_token = nn.Parameter(torch.zeros(config.hidden_size))
        self.decoder = nn.Linear(config.hidden_size, config.num_visual_tokens)

    def forward(
        self, hidden: Float[Tensor, "*tokens dim"]
    ) -> Float[Tensor, "*tokens visual_vocab"]:
        """Return logits over visual tokens, from states after the final norm."""
        return self.decoder(hidden)


class TaskHead(nn.Module):
    """Linear layer, LayerNorm, GELU, linear layer to the answers (VLMo, "Vision-Language Classification").

    Args:
        norm_inputs: Start with a LayerNorm (BEiT-3's head for two images).
    """

    def __init__(
        self, num_inputs: int, *, width: int, num_labels: int, norm_inputs: bool = False
    ) -> None:
        super().__init__()
        self.input_norm = nn.LayerNorm(num_inputs) if norm_inputs else None
        self.dense = nn.Linear(num_inputs, width)
        self.norm = nn.LayerNorm(width)
        self.classifier = nn.Linear(width, num_labels)

    def forward(self, pooled: Float[Tensor, "batch inputs"]) -> Float[Tensor, "batch labels"]:
        """Return logits from the vector of a pair, or of two pairs joined."""
        if self.input_norm is not None:
            pooled = self.input_norm(pooled)
        return self.classifier(F.gelu(self.norm(self.dense(pooled))))


class FeaturePyramid(nn.Module):
    """Four levels out of states on one grid: four and two times finer, as it is, two times coarser (as BEiT does)."""

    def __init__(self, config: VLMoConfig) -> None:
        super().__init__()
        dim = config.hidden_size
        # As BEiT's `fpn1` and `fpn2`.
        self.finest = nn.Sequential(
            nn.ConvTranspose2d(dim, dim, kernel_size=2, stride=2),
            nn.BatchNorm2d(dim),
            nn.GELU(),
            nn.ConvTranspose2d(dim, dim, kernel_size=2, stride=2),
        )
        self.finer = nn.ConvTranspose2d(dim, dim, kernel_size=2, stride=2)

    def forward(
        self, levels: list[Float[Tensor, "batch dim height width"]]
    ) -> list[Float[Tensor, "batch dim level_height level_width"]]:
        """Return the levels from fine to coarse."""
        # Of 14 x 14 patches: 56 x 56, 28 x 28, 14 x 14 and 7 x 7, strides 4 to 32 of the image.
        first, second, third, fourth = levels
        return [
            self.finest(first),
            self.finer(second),
            third,
            F.max_pool2d(fourth, kernel_size=2, stride=2),
        ]
