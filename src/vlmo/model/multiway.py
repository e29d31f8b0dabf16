"""The Multiway block: shared self-attention, then the expert of the modality (VLMo, "Multiway Transformer")."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.cache_utils import DynamicLayer
from transformers.modeling_layers import GradientCheckpointingLayer

from vlmo.model import cpu
from vlmo.model.config import VLMoConfig

SHARED, VISION, LANGUAGE, VISION_LANGUAGE = "shared", "vision", "language", "vision_language"


@dataclass(frozen=True)
class Route:
    """Numbers of text and image tokens; with `fusion`, top blocks use their `vision_language` expert."""

    num_text: int
    num_image: int
    image_first: bool = False
    fusion: bool = False

    @property
    def is_pair(self) -> bool:
        """True with tokens of both modalities."""
        return self.num_text > 0 and self.num_image > 0

    @property
    def leads(self) -> str:
        """Modality of the first token."""
        return LANGUAGE if self.num_text and not (self.image_first and self.num_image) else VISION

    def __call__(
        self,
        modules: nn.ModuleDict,
        hidden: Float[Tensor, "batch seq dim"],
        *,
        then: Callable[[Tensor], Tensor] = lambda part: part,
    ) -> Float[Tensor, "batch seq new_dim"]:
        """Send each token through the module of its modality, and what comes out through `then`."""
        both = [(LANGUAGE, self.num_text), (VISION, self.num_image)]
        parts = [part for part in (both[::-1] if self.image_first else both) if part[1]]
        names = [name for name, _ in parts]
        if SHARED in modules:
            names = [SHARED]
        elif self.fusion and VISION_LANGUAGE in modules:
            names = [VISION_LANGUAGE]
        if len(names) == 1:
            return then(modules[names[0]](hidden))
        split = zip(names, hidden.split([count for _, count in parts], dim=1), strict=True)
        return torch.cat([then(modules[name](part)) for name, part in split], dim=1)


@dataclass(frozen=True)
class OutputTokens:
    """The tokens whose states are wanted after the last block, equally many of each row; it computes no others.

    Attributes:
        positions: In the sequence, in the order of its modalities; a token may be named more than once.
        num_text: Number of them that are text.
    """

    positions: Int[Tensor, "batch queries"]
    num_text: int

    def select(self, states: Float[Tensor, "batch seq dim"]) -> Float[Tensor, "batch queries dim"]:
        """Return the states of these tokens."""
        return states.gather(1, self.positions[..., None].expand(-1, -1, states.shape[-1]))

    def route(self, route: Route) -> Route:
        """Return the route of these tokens when all tokens go by `route`."""
        return replace(route, num_text=self.num_text, num_image=self.positions.shape[1] - self.num_text)


@dataclass(frozen=True)
class TokenSequence:
    """Embedded tokens with what every block reads."""

    hidden: Float[Tensor, "batch seq dim"]
    route: Route
    bias: list[Float[Tensor, "heads seq seq"]] | None
    mask: Bool[Tensor, "batch seq"] | None

    def outputs(
        self, wanted: Bool[Tensor, "batch tokens"] | None
    ) -> tuple[OutputTokens, Bool[Tensor, "batch filled"] | None]:
        """Return the first token with `wanted` words beside it (patches of images alone), and which are no filling.

        There are as many as the fullest row needs, rounded up to 8 so that compiled blocks meet few shapes. ValueError
        if the shape does not fit.
        """
        route = self.route
        leads_text = int(route.leads == LANGUAGE)
        positions = torch.zeros(self.hidden.shape[0], 1, dtype=torch.long, device=self.hidden.device)
        if wanted is None:
            return OutputTokens(positions, num_text=leads_text), None
        given, expected = tuple(wanted.shape), (len(self.hidden), route.num_text or route.num_image - 1)
        if given != expected:
            raise ValueError(f"wanted has shape {given}; expected {expected}, one entry for each word (or patch).")
        columns = min(-(-int(wanted.sum(dim=1).amax()) // 8) * 8, wanted.shape[1]) if len(wanted) else 0
        found = wanted.int().argsort(dim=1, descending=True, stable=True)[:, :columns]
        filled = wanted.gather(1, found)
        start = route.num_image * route.image_first if route.num_text else 1
        positions = torch.cat([positions, start + found.masked_fill(~filled, 0)], dim=1)
        return OutputTokens(positions, num_text=leads_text + columns * (route.num_text > 0)), filled


def additive_mask(
    bias: Float[Tensor, "#heads seq seq"] | None,
    attention_mask: Bool[Tensor, "batch seq"] | None,
    *,
    queries: OutputTokens | None,
    dtype: torch.dtype,
) -> Float[Tensor, "#batch #heads #queries seq"] | None:
    """Return the bias of the queries, with padded keys at the lowest finite value: their softmax is exactly zero."""
    rows = None if bias is None else bias[None]
    if bias is not None and queries is not None:
        # Looked up rather than indexed: with several threads, the gradient of an index sums in any order.
        rows = F.embedding(queries.positions, bias.transpose(0, 1).flatten(1))
        rows = rows.unflatten(-1, (len(bias), -1)).transpose(1, 2)
    if attention_mask is None:
        return rows
    if rows is None:
        rows = attention_mask.new_zeros(1, 1, 1, 1, dtype=dtype)
    return rows.masked_fill(~attention_mask[:, None, None, :], torch.finfo(dtype).min)


def attend(
    qkv: Float[Tensor, "batch seq 3 heads dim"],
    *,
    bias: Float[Tensor, "#heads seq seq"] | None,
    attention_mask: Bool[Tensor, "batch seq"] | None,
    queries: OutputTokens | None,
    cache: DynamicLayer | None = None,
    eager: bool,
) -> tuple[Float[Tensor, "batch queries heads*dim"], Float[Tensor, "batch heads queries seq"] | None]:
    """Softmax attention from the `queries` (all tokens by default) by the fastest way there is; weights if `eager`."""
    whole = queries is None and cache is None and not eager
    if whole and bias is not None and bias.requires_grad and cpu.trains_on_cpu(qkv):
        hidden_keys = None if attention_mask is None else ~attention_mask
        return cpu.chunked_attention(qkv, bias=bias, hidden_keys=hidden_keys).flatten(2), None
    query, key, value = (part.transpose(1, 2) for part in qkv.unbind(2))
    if cache is not None:
        key, value = cache.update(key, value)
    if queries is not None:
        query = queries.select(qkv[:, :, 0].flatten(2)).unflatten(-1, qkv.shape[3:]).transpose(1, 2)
    mask = additive_mask(bias, attention_mask, queries=queries, dtype=query.dtype if bias is None else bias.dtype)
    weights = None
    if eager or cpu.prefers_matrices(query, key):
        logits = query @ key.mT * query.shape[-1] ** -0.5
        exact = torch.promote_types(logits.dtype, torch.float32)
        weights = (logits if mask is None else logits + mask).softmax(dim=-1, dtype=exact)
        attended = weights.to(value.dtype) @ value
    else:
        mask = None if mask is None else mask.to(query.dtype)
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    return attended.transpose(1, 2).flatten(2), weights if eager else None


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
        self.drop_path = drop_path
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
        queries: OutputTokens | None = None,
        cache: DynamicLayer | None = None,
    ) -> tuple[Float[Tensor, "batch queries dim"], Float[Tensor, "batch heads queries seq"] | None]:
        """Return new states of the `queries` (all tokens by default), and attention weights if eager.

        Args:
            attention_mask: True for the tokens that are attended to.
            cache: Of earlier tokens, which are attended to as well; gets those of these tokens.
        """
        normed = route(self.norm1, hidden)
        given = {"bias": bias, "attention_mask": attention_mask, "queries": queries, "cache": cache}
        attended, weights = self.attention(normed, route=route, **given)
        if queries is not None:
            hidden, route = queries.select(hidden), queries.route(route)
        hidden = hidden + self._change(attended, self.gamma_1)
        # Below the fusion experts, text and image of a pair are dropped apart, as in the published code.
        changes = route(self.experts, hidden, then=lambda part: self._change(part, self.gamma_2))
        return hidden + changes, weights

    def _change(self, states: Float[Tensor, "batch seq dim"], gamma: Tensor | None) -> Float[Tensor, "batch seq dim"]:
        states = states if gamma is None else gamma * states
        if not self.training or self.drop_path == 0:
            return states
        kept = states.new_empty(len(states), 1, 1).bernoulli_(1 - self.drop_path)
        return states * kept.div_(1 - self.drop_path or 1)


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
        queries: OutputTokens | None = None,
        cache: DynamicLayer | None = None,
    ) -> tuple[Float[Tensor, "batch queries dim"], Float[Tensor, "batch heads queries seq"] | None]:
        """Attend from the `queries` (all by default) to tokens of `attention_mask` and `cache`; weights if eager."""
        qkv = route(self.qkv, hidden).unflatten(-1, (3, self.config.num_attention_heads, -1))
        eager = self.config._attn_implementation == "eager"
        given = {"bias": bias, "attention_mask": attention_mask, "queries": queries, "cache": cache}
        attended, weights = attend(qkv, **given, eager=eager)
        route = route if queries is None else queries.route(route)
        if self.inner_norm is not None:
            attended = route(self.inner_norm, attended)
        return route(self.projection, attended), weights


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

    def forward(self, hidden: Float[Tensor, "batch seq dim"]) -> Float[Tensor, "batch seq 3*dim"]:
        """Return queries, keys and values, in this order."""
        key_bias = torch.zeros_like(self.query_bias) if self.key_bias is None else self.key_bias
        return F.linear(hidden, self.weight, torch.cat([self.query_bias, key_bias, self.value_bias]))


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
        active = F.gelu(self.fc1(self.norm(hidden)))
        return self.fc2(active if self.inner_norm is None else self.inner_norm(active))


def _norms(config: VLMoConfig, names: tuple[str, ...]) -> nn.ModuleDict:
    return nn.ModuleDict({name: nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps) for name in names})
