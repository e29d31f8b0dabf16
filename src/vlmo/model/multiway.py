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
    image_first: bool = False

    def __call__(
        self, modules: nn.ModuleDict, hidden: Float[Tensor, "batch seq dim"]
    ) -> Float[Tensor, "batch seq new_dim"]:
        """Sends each token through the module of its modality."""
        if SHARED in modules:
            return modules[SHARED](hidden)
        if self.fusion and VISION_LANGUAGE in modules:
            return modules[VISION_LANGUAGE](hidden)
        if self.num_image == 0:
            return modules[LANGUAGE](hidden)
        if self.num_text == 0:
            return modules[VISION](hidden)
        if self.image_first:
            image, text = hidden.split([self.num_image, self.num_text], dim=1)
            return torch.cat([modules[VISION](image), modules[LANGUAGE](text)], dim=1)
        text, image = hidden.split([self.num_text, self.num_image], dim=1)
        return torch.cat([modules[LANGUAGE](text), modules[VISION](image)], dim=1)


class Expert(nn.Module):
    """Feed-forward network with its own norm in front, and with `inner_norm` another one before its second layer."""

    def __init__(self, config: VLMoConfig) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        intermediate_size = cast("int", config.intermediate_size)
        self.fc1 = nn.Linear(config.hidden_size, intermediate_size)
        self.inner_norm = nn.LayerNorm(intermediate_size, eps=config.layer_norm_eps) if config.inner_norm else None
        self.fc2 = nn.Linear(intermediate_size, config.hidden_size)

    def forward(self, hidden: Float[Tensor, "batch seq dim"]) -> Float[Tensor, "batch seq dim"]:
        """What the block adds to `hidden`."""
        inner = F.gelu(self.fc1(self.norm(hidden)))
        return self.fc2(inner if self.inner_norm is None else self.inner_norm(inner))


class QueryKeyValue(nn.Linear):
    """Joint projection to queries, keys and values; keys usually carry no bias (it would cancel in the softmax).

    A linear layer by type, so that adapters which look for linear layers (LoRA) find it.
    """

    def __init__(self, config: VLMoConfig) -> None:
        dim = config.hidden_size
        super().__init__(dim, 3 * dim, bias=False)
        self.query_bias = nn.Parameter(torch.zeros(dim))
        self.key_bias = nn.Parameter(torch.zeros(dim)) if config.key_bias else None
        self.value_bias = nn.Parameter(torch.zeros(dim))

    def reset_parameters(self) -> None:
        """Nothing: `_init_weights` fills the weight, and random numbers drawn here would move all that come after."""

    def forward(self, hidden: Float[Tensor, "batch seq dim"]) -> Float[Tensor, "batch seq 3*dim"]:
        """Queries, keys and values, in this order."""
        key_bias = torch.zeros_like(self.query_bias) if self.key_bias is None else self.key_bias
        return F.linear(hidden, self.weight, torch.cat([self.query_bias, key_bias, self.value_bias]))


class MultiwayAttention(nn.Module):
    """Self-attention over all tokens of a sequence, whatever their modality."""

    def __init__(self, config: VLMoConfig) -> None:
        super().__init__()
        self.config = config
        names = (SHARED,) if config.attention == "shared" else (VISION, LANGUAGE)
        self.qkv = nn.ModuleDict({name: QueryKeyValue(config) for name in names})
        self.inner_norm = (
            nn.ModuleDict({name: nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps) for name in names})
            if config.inner_norm
            else None
        )
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
        attended = attended.transpose(1, 2).flatten(2)
        if self.inner_norm is not None:
            attended = route(self.inner_norm, attended)
        return route(self.projection, attended), weights


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
