"""The Multiway block: shared self-attention, then the expert of the modality (VLMo, "Multiway Transformer")."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from jaxtyping import Float
from timm.layers import DropPath
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.modeling_layers import GradientCheckpointingLayer

from vlmo.model.config import VLMoConfig

SHARED, VISION, LANGUAGE, VISION_LANGUAGE = "shared", "vision", "language", "vision_language"


@dataclass(frozen=True)
class Route:
    """Which tokens belong to which modality, and whether top blocks use their `vision_language` expert."""

    num_text: int
    num_image: int
    fusion: bool

    def __call__(
        self, modules: nn.ModuleDict, hidden: Float[Tensor, "batch seq dim"]
    ) -> Float[Tensor, "batch seq new_dim"]:
        """Sends each token through the module of its modality; text comes first in the sequence."""
        if SHARED in modules:
            return modules[SHARED](hidden)
        if self.fusion and VISION_LANGUAGE in modules:
            return modules[VISION_LANGUAGE](hidden)
        if self.num_image == 0:
            return modules[LANGUAGE](hidden)
        if self.num_text == 0:
            return modules[VISION](hidden)
        text, image = hidden.split([self.num_text, self.num_image], dim=1)
        return torch.cat([modules[LANGUAGE](text), modules[VISION](image)], dim=1)


class Expert(nn.Module):
    """Feed-forward network with its own norm in front."""

    def __init__(self, config: VLMoConfig) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        intermediate_size = cast("int", config.intermediate_size)
        self.fc1 = nn.Linear(config.hidden_size, intermediate_size)
        self.fc2 = nn.Linear(intermediate_size, config.hidden_size)

    def forward(self, hidden: Float[Tensor, "batch seq dim"]) -> Float[Tensor, "batch seq dim"]:
        """What the block adds to `hidden`."""
        return self.fc2(F.gelu(self.fc1(self.norm(hidden))))


class QueryKeyValue(nn.Module):
    """Joint projection to queries, keys and values; keys carry no bias (it would cancel in the softmax)."""

    def __init__(self, config: VLMoConfig) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(3 * config.hidden_size, config.hidden_size))
        self.query_bias = nn.Parameter(torch.zeros(config.hidden_size))
        self.value_bias = nn.Parameter(torch.zeros(config.hidden_size))

    def forward(self, hidden: Float[Tensor, "batch seq dim"]) -> Float[Tensor, "batch seq 3*dim"]:
        """Queries, keys and values, in this order."""
        bias = torch.cat([self.query_bias, torch.zeros_like(self.query_bias), self.value_bias])
        return F.linear(hidden, self.weight, bias)


class MultiwayAttention(nn.Module):
    """Self-attention over all tokens of a sequence, whatever their modality."""

    def __init__(self, config: VLMoConfig) -> None:
        super().__init__()
        self.config = config
        names = (SHARED,) if config.attention == "shared" else (VISION, LANGUAGE)
        self.qkv = nn.ModuleDict({name: QueryKeyValue(config) for name in names})
        self.projection = nn.ModuleDict({name: nn.Linear(config.hidden_size, config.hidden_size) for name in names})

    def forward(
        self,
        hidden: Float[Tensor, "batch seq dim"],
        *,
        route: Route,
        bias: Float[Tensor, "#batch #heads seq seq"] | None,
    ) -> tuple[Float[Tensor, "batch seq dim"], Float[Tensor, "batch heads seq seq"] | None]:
        """Attends. `bias` is added to the scaled logits; the weights come back with the eager implementation only."""
        heads = self.config.num_attention_heads
        query, key, value = route(self.qkv, hidden).unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
        if self.config._attn_implementation == "eager":
            logits = query @ key.transpose(-2, -1) * query.shape[-1] ** -0.5
            weights = (logits if bias is None else logits + bias).softmax(dim=-1)
            attended = weights.to(value.dtype) @ value
        else:
            weights = None
            bias = None if bias is None else bias.to(query.dtype)
            attended = F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        return route(self.projection, attended.transpose(1, 2).flatten(2)), weights


class MultiwayBlock(GradientCheckpointingLayer):
    """One layer: attention, then expert, each behind a norm, scaled by LayerScale and dropped by stochastic depth."""

    def __init__(self, config: VLMoConfig, *, has_fusion_expert: bool, drop_path: float) -> None:
        super().__init__()
        norms = (SHARED,) if config.attention == "shared" else (VISION, LANGUAGE)
        experts = (SHARED,) if config.experts == "shared" else (VISION, LANGUAGE)
        if has_fusion_expert and config.experts == "multiway":
            experts += (VISION_LANGUAGE,)
        self.norm1 = nn.ModuleDict(
            {name: nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps) for name in norms}
        )
        self.attention = MultiwayAttention(config)
        self.experts = nn.ModuleDict({name: Expert(config) for name in experts})
        self.drop_path = DropPath(drop_path)
        scaled = config.layer_scale_init is not None
        self.gamma_1 = nn.Parameter(torch.ones(config.hidden_size)) if scaled else None
        self.gamma_2 = nn.Parameter(torch.ones(config.hidden_size)) if scaled else None

    def forward(
        self,
        hidden: Float[Tensor, "batch seq dim"],
        bias: Float[Tensor, "#batch #heads seq seq"] | None,
        *,
        route: Route,
    ) -> tuple[Float[Tensor, "batch seq dim"], Float[Tensor, "batch heads seq seq"] | None]:
        """One layer; `bias` is added to the attention logits (positions and padding)."""
        attended, weights = self.attention(route(self.norm1, hidden), route=route, bias=bias)
        hidden = hidden + self.drop_path(attended if self.gamma_1 is None else self.gamma_1 * attended)
        changed = route(self.experts, hidden)
        return hidden + self.drop_path(changed if self.gamma_2 is None else self.gamma_2 * changed), weights
