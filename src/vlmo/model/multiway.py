"""The Multiway block: shared self-attention, then the expert of the modality (VLMo, "Multiway Transformer")."""

from __future__ import annotations

from typing import cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.modeling_layers import GradientCheckpointingLayer

from vlmo.model import cpu
from vlmo.model.config import VLMoConfig
from vlmo.model.sequence import LANGUAGE, SHARED, VISION, VISION_LANGUAGE, Queries, Route, additive_mask

QKV, QUERY, KEY_VALUE = slice(0, 3), slice(0, 1), slice(1, 3)


class DropPath(nn.Module):
    """Stochastic depth: in training, drop all states of a sample with this probability, and scale the others up."""

    def __init__(self, drop_prob: float) -> None:
        super().__init__()
        self.drop_prob = drop_prob

    def forward(self, states: Float[Tensor, "batch seq dim"]) -> Float[Tensor, "batch seq dim"]:
        """Return the states, some of them 0."""
        if not self.training or self.drop_prob == 0:
            return states
        kept = states.new_empty(len(states), 1, 1).bernoulli_(1 - self.drop_prob)
        return states * kept.div_(1 - self.drop_prob or 1)


class MultiwayBlock(GradientCheckpointingLayer):
    """Attention, then the expert, each behind a norm, scaled by LayerScale and dropped by stochastic depth."""

    def __init__(self, config: VLMoConfig, *, has_fusion_expert: bool, drop_path: float) -> None:
        super().__init__()
        norms = (SHARED,) if config.attention == "shared" else (VISION, LANGUAGE)
        experts = (SHARED,) if config.experts == "shared" else (VISION, LANGUAGE)
        if has_fusion_expert and config.experts == "multiway":
            experts += (VISION_LANGUAGE,)
        self.norm1 = _norms(config, norms)
        self.attention = MultiwayAttention(config)
        self.experts = nn.ModuleDict({name: Expert(config) for name in experts})
        self.drop_path = DropPath(drop_path)
        scaled = config.layer_scale_init is not None
        self.gamma_1 = nn.Parameter(torch.ones(config.hidden_size)) if scaled else None
        self.gamma_2 = nn.Parameter(torch.ones(config.hidden_size)) if scaled else None

    def forward(
        self,
        hidden: Float[Tensor, "batch seq dim"],
        bias: Float[Tensor, "#heads seq seq"] | None,
        *,
        route: Route,
        attention_mask: Bool[Tensor, "batch seq"] | None = None,
        queries: Queries | None = None,
    ) -> tuple[Float[Tensor, "batch queries dim"], Float[Tensor, "batch heads queries seq"] | None]:
        """Return new states of the `queries` (all tokens by default), and attention weights if eager.

        Args:
            bias: Added to the scaled attention logits.
            attention_mask: True for the tokens that are attended to.
        """
        attended, weights = self.attention(
            route(self.norm1, hidden), route=route, bias=bias, attention_mask=attention_mask, queries=queries
        )
        if queries is not None:
            hidden, route = queries.select(hidden), queries.route(route)
        hidden = hidden + self.drop_path(_scaled(attended, self.gamma_1))
        # Below the fusion experts, text and image of a pair are dropped apart, as in the published code.
        return hidden + route(
            self.experts, hidden, then=lambda part: self.drop_path(_scaled(part, self.gamma_2))
        ), weights


class MultiwayAttention(nn.Module):
    """Self-attention over all tokens of a sequence, whatever their modality."""

    def __init__(self, config: VLMoConfig) -> None:
        super().__init__()
        self.config = config
        names = (SHARED,) if config.attention == "shared" else (VISION, LANGUAGE)
        self.qkv = nn.ModuleDict({name: QueryKeyValue(config) for name in names})
        self.inner_norm = _norms(config, names) if config.inner_norm else None
        self.projection = nn.ModuleDict({name: nn.Linear(config.hidden_size, config.hidden_size) for name in names})

    def forward(
        self,
        hidden: Float[Tensor, "batch seq dim"],
        *,
        route: Route,
        bias: Float[Tensor, "#heads seq seq"] | None,
        attention_mask: Bool[Tensor, "batch seq"] | None = None,
        queries: Queries | None = None,
    ) -> tuple[Float[Tensor, "batch queries dim"], Float[Tensor, "batch heads queries seq"] | None]:
        """Attend from the `queries` (all tokens by default) to the tokens of `attention_mask`; weights if eager."""
        attended = weights = None
        if queries is None and self.config._attn_implementation != "eager":
            attended = cpu.attend(
                hidden,
                self.qkv,
                num_heads=self.config.num_attention_heads,
                route=route,
                bias=bias,
                attention_mask=attention_mask,
            )
        if attended is None:
            query, key, value = self._project(hidden, route=route, queries=queries)
            dtype = query.dtype if bias is None else bias.dtype
            mask = additive_mask(bias, attention_mask, queries=queries, dtype=dtype)
            if self.config._attn_implementation == "eager":
                logits = query @ key.mT * query.shape[-1] ** -0.5
                weights = (logits if mask is None else logits + mask).softmax(dim=-1)
                attended = weights.to(value.dtype) @ value
            else:
                mask = None if mask is None else mask.to(query.dtype)
                attended = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
            attended = attended.transpose(1, 2).flatten(2)
        route = route if queries is None else queries.route(route)
        if self.inner_norm is not None:
            attended = route(self.inner_norm, attended)
        return route(self.projection, attended), weights

    def _project(
        self, hidden: Float[Tensor, "batch seq dim"], *, route: Route, queries: Queries | None
    ) -> tuple[
        Float[Tensor, "batch heads queries d"], Float[Tensor, "batch heads seq d"], Float[Tensor, "batch heads seq d"]
    ]:
        """Return queries of the wanted tokens, keys and values of all."""
        heads = self.config.num_attention_heads
        # An adapter around the layer has no parts, and a graph keeps its weights whole so that int8 finds them.
        divisible = all(isinstance(module, QueryKeyValue) for module in self.qkv.values())
        if queries is not None and divisible and not torch.compiler.is_exporting():
            query = queries.route(route)(self.qkv, queries.select(hidden), part=QUERY).unflatten(-1, (heads, -1))
            pair = route(self.qkv, hidden, part=KEY_VALUE).unflatten(-1, (2, heads, -1))
            key, value = pair.permute(2, 0, 3, 1, 4)
            return query.transpose(1, 2), key, value
        query, key, value = route(self.qkv, hidden).unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
        if queries is not None:
            query = queries.select(query.transpose(1, 2).flatten(2)).unflatten(-1, (heads, -1)).transpose(1, 2)
        return query, key, value


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
        """Do nothing: `_init_weights` fills the weight, and numbers sampled here would change all that come after."""

    def forward(
        self, hidden: Float[Tensor, "batch seq dim"], *, part: slice = QKV
    ) -> Float[Tensor, "batch seq parts*dim"]:
        """Return queries, keys and values, in this order, or a `part` of these three."""
        key_bias = torch.zeros_like(self.query_bias) if self.key_bias is None else self.key_bias
        bias = torch.cat([self.query_bias, key_bias, self.value_bias][part])
        weight = self.weight if part == QKV else self.weight.unflatten(0, (3, -1))[part].flatten(0, 1)
        return F.linear(hidden, weight, bias)


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
        """Return the change that the block adds to `hidden`."""
        return cpu.gelu_then(self._project, self.fc1(self.norm(hidden)))

    def _project(self, active: Float[Tensor, "batch seq inner"]) -> Float[Tensor, "batch seq dim"]:
        return self.fc2(active if self.inner_norm is None else self.inner_norm(active))


def _norms(config: VLMoConfig, names: tuple[str, ...]) -> nn.ModuleDict:
    return nn.ModuleDict({name: nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps) for name in names})


def _scaled(states: Float[Tensor, "batch seq dim"], gamma: Tensor | None) -> Float[Tensor, "batch seq dim"]:
    return states if gamma is None else gamma * states
