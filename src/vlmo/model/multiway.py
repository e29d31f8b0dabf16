"""The Multiway block: shared self-attention, then the expert of the modality (VLMo, "Multiway Transformer")."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.cache_utils import DynamicLayer
from transformers.modeling_layers import GradientCheckpointingLayer

from vlmo.model import cpu, masks
from vlmo.model.config import VLMoConfig

SHARED = "shared"
VISION = "vision"
LANGUAGE = "language"
VISION_LANGUAGE = "vision_language"


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
        """Send the tokens through the modules of their modalities, and the outputs through `then`."""
        if SHARED in modules:
            return then(modules[SHARED](hidden))
        # Top blocks of a pair: one expert for all tokens (VLMo, "Multiway Transformer").
        if self.fusion and VISION_LANGUAGE in modules:
            return then(modules[VISION_LANGUAGE](hidden))
        if not self.is_pair:
            return then(modules[self.leads](hidden))
        # Blocks below them: text and image go to their own experts.
        text, image = self.split(hidden)
        # In the order of the sequence, by which stochastic depth samples its random numbers.
        if self.image_first:
            parts = [then(modules[VISION](image)), then(modules[LANGUAGE](text))]
        else:
            parts = [then(modules[LANGUAGE](text)), then(modules[VISION](image))]
        return torch.cat(parts, dim=1)

    def split(
        self, hidden: Float[Tensor, "batch seq dim"]
    ) -> tuple[Float[Tensor, "batch text dim"], Float[Tensor, "batch image dim"]]:
        """Return the text tokens and the image tokens of a sequence."""
        if self.image_first:
            image, text = hidden.split([self.num_image, self.num_text], dim=1)
        else:
            text, image = hidden.split([self.num_text, self.num_image], dim=1)
        return text, image


@dataclass(frozen=True)
class OutputTokens:
    """Tokens whose states are wanted after the last block, which computes no others.

    Attributes:
        positions: In the sequence, in the order of its modalities, equally many in each row; a token may
            be named more than once.
        num_text: Number of them that are text.
    """

    positions: Int[Tensor, "batch queries"]
    num_text: int

    def select(self, states: Float[Tensor, "batch seq dim"]) -> Float[Tensor, "batch queries dim"]:
        """Return the states of these tokens."""
        # (batch, seq, dim) -> (batch, queries, dim)
        return states.gather(1, self.positions[..., None].expand(-1, -1, states.shape[-1]))

    def route(self, route: Route) -> Route:
        """Return the route of these tokens when all tokens go by `route`."""
        return replace(
            route, num_text=self.num_text, num_image=self.positions.shape[1] - self.num_text
        )


class WantedTokens(NamedTuple):
    """Numbers of wanted tokens, row by row: in the flattened output tokens but the first, and in the flattened mask."""

    in_outputs: Int[Tensor, "wanted"]
    in_mask: Int[Tensor, "wanted"]


@dataclass(frozen=True)
class TokenSequence:
    """Embedded tokens with what all blocks read."""

    hidden: Float[Tensor, "batch seq dim"]
    route: Route
    bias: list[Float[Tensor, "heads seq seq"]] | None
    mask: Bool[Tensor, "batch seq"] | None

    def outputs(
        self, wanted: Bool[Tensor, "batch tokens"] | None
    ) -> tuple[OutputTokens, WantedTokens]:
        """Return the first token with the `wanted` ones beside it, and where these stand.

        There are as many as the fullest row needs, rounded up to 8 so that compiled blocks meet few shapes.

        Args:
            wanted: True for some words, or for some patches of images alone.

        Raises:
            ValueError: Its shape does not fit.
        """
        route = self.route
        num_text = int(route.leads == LANGUAGE)
        first = torch.zeros(self.hidden.shape[0], 1, dtype=torch.long, device=self.hidden.device)
        if wanted is None:
            nowhere = first.new_zeros(0)
            return OutputTokens(first, num_text=num_text), WantedTokens(nowhere, nowhere)
        shape = tuple(wanted.shape)
        expected = (len(self.hidden), route.num_text or route.num_image - 1)
        if shape != expected:
            raise ValueError(
                f"wanted has shape {shape}; expected {expected}, one entry for a word (or patch)."
            )
        most, total = masks.count_true(wanted)[0]
        columns = min(8 * math.ceil(most / 8), wanted.shape[1])
        # The wanted ones first; stable, so that they keep their order.
        tokens = wanted.int().argsort(dim=1, descending=True, stable=True)[:, :columns]
        is_wanted = wanted.gather(1, tokens)
        tokens = tokens.masked_fill(~is_wanted, 0)
        in_outputs = masks.first_true(is_wanted, total)
        row_starts = wanted.shape[1] * torch.arange(len(wanted), device=wanted.device)
        in_mask = (row_starts[:, None] + tokens).flatten().index_select(0, in_outputs)
        if route.num_text:
            start = route.num_image if route.image_first else 0
            num_text += columns
        else:
            start = 1  # after the class token
        positions = torch.cat([first, start + tokens], dim=1)
        return OutputTokens(positions, num_text=num_text), WantedTokens(in_outputs, in_mask)


def additive_mask(
    bias: Float[Tensor, "#heads seq seq"] | None,
    attention_mask: Bool[Tensor, "batch seq"] | None,
    *,
    queries: OutputTokens | None,
    dtype: torch.dtype,
) -> Float[Tensor, "#batch #heads #queries seq"] | None:
    """Return the bias of the queries, with padded keys at the lowest finite value: no attention at all."""
    if bias is None:
        if attention_mask is None:
            return None
        # Broadcasts to (batch, 1, 1, seq) with the mask of keys.
        query_bias = attention_mask.new_zeros(1, 1, 1, 1, dtype=dtype)
    elif queries is None:
        query_bias = bias[None]
    else:
        # Looked up, not indexed: with several threads, the gradient of an index sums in any order.
        # (heads, seq, seq) -> a table of seq rows, (seq, heads * seq), one for a query.
        query_bias = F.embedding(queries.positions, bias.transpose(0, 1).flatten(1))
        # (batch, queries, heads * seq) -> (batch, heads, queries, seq)
        query_bias = query_bias.unflatten(-1, (len(bias), -1)).transpose(1, 2)
    if attention_mask is None:
        return query_bias
    seq = attention_mask.shape[1]
    missing = -seq % _row_multiple(query_bias.device)
    if missing and query_bias.shape[-1] == seq:
        # Before the fill, while there is one bias for the whole batch.
        query_bias = F.pad(query_bias, (0, missing))
        attention_mask = F.pad(attention_mask, (0, missing), value=True)
    masked = query_bias.masked_fill(~attention_mask[:, None, None, :], torch.finfo(dtype).min)
    return masked[..., :seq]


def _row_multiple(device: torch.device) -> int:
    # PyTorch copies a bias whose rows lie otherwise in a GPU's memory.
    return 16 if device.type == "cuda" else 1


def attend(
    qkv: Float[Tensor, "batch seq 3 heads dim"],
    *,
    bias: Float[Tensor, "#heads seq seq"] | None,
    attention_mask: Bool[Tensor, "batch seq"] | None,
    queries: OutputTokens | None,
    cache: DynamicLayer | None = None,
    eager: bool,
) -> tuple[
    Float[Tensor, "batch queries heads*dim"], Float[Tensor, "batch heads queries seq"] | None
]:
    """Softmax attention of the `queries`, of all tokens by default, to all tokens; with weights if `eager`."""
    # Queries, keys and values: (batch, heads, seq, dim).
    query, key, value = qkv.transpose(1, 3).unbind(2)
    if queries is not None:
        # qkv[:, :, 0] is (batch, seq, heads, dim); heads are joined while rows are selected.
        query = queries.select(qkv[:, :, 0].flatten(2)).unflatten(-1, qkv.shape[3:]).transpose(1, 2)
    if cache is not None:
        key, value = cache.update(key, value)
    # Written out, since fused kernels return no weights.
    is_written_out = eager or cpu.prefers_matrices(query, key, bias)
    if bias is not None and not is_written_out:
        # Fused kernels want the type of the queries: cast while there is one for the whole batch.
        bias = bias.to(query.dtype)
    dtype = query.dtype if bias is None else bias.dtype
    mask = additive_mask(bias, attention_mask, queries=queries, dtype=dtype)
    if is_written_out:
        # Logits and weights: (batch, heads, queries, seq).
        logits = query @ key.mT * query.shape[-1] ** -0.5
        if mask is not None:
            logits = logits + mask
        # In float32 at least: bfloat16 rounds a weight to three digits.
        weights = logits.softmax(dim=-1, dtype=torch.promote_types(logits.dtype, torch.float32))
        attended = weights.to(value.dtype) @ value
    else:
        weights = None
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    # (batch, heads, queries, dim) -> (batch, queries, heads * dim)
    return attended.transpose(1, 2).flatten(2), weights if eager else None


class MultiwayBlock(GradientCheckpointingLayer):
    """Attention, then the expert, each behind a norm, scaled by LayerScale and dropped by stochastic depth."""

    def __init__(self, config: VLMoConfig, *, has_fusion_expert: bool, drop_path: float) -> None:
        super().__init__()
        # BEiT-3 norms and projects text and image apart; VLMo shares both.
        norms = (SHARED,) if config.attention == "shared" else (VISION, LANGUAGE)
        experts = (SHARED,) if config.experts == "shared" else (VISION, LANGUAGE)
        if has_fusion_expert and config.experts == "multiway":
            experts += (VISION_LANGUAGE,)
        self.norm1 = layer_norms(config, norms)
        self.attention = MultiwayAttention(config)
        self.experts = nn.ModuleDict({name: Expert(config) for name in experts})
        self.drop_path = drop_path
        # LayerScale (CaiT, arXiv 2103.17239), as in BEiT; `_init_weights` fills in its first value.
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
            cache: Keys and values of earlier tokens, which are attended to as well; gets the new ones.
        """
        normed = route(self.norm1, hidden)
        attended, weights = self.attention(
            normed,
            route=route,
            bias=bias,
            attention_mask=attention_mask,
            queries=queries,
            cache=cache,
        )
        if queries is not None:
            hidden = queries.select(hidden)
            route = queries.route(route)
        hidden = hidden + self._scale_and_drop(attended, self.gamma_1)
        # Below the fusion experts, text and image of a pair are dropped apart, as in the published code.
        residual = route(
            self.experts, hidden, then=lambda part: self._scale_and_drop(part, self.gamma_2)
        )
        return hidden + residual, weights

    def _scale_and_drop(
        self, residual: Float[Tensor, "batch seq dim"], gamma: Tensor | None
    ) -> Float[Tensor, "batch seq dim"]:
        """Apply LayerScale and stochastic depth, which drops the residual of whole rows."""
        if gamma is not None:
            residual = gamma * residual
        if not self.training or self.drop_path == 0:
            return residual
        # One number a row, as timm samples it; what is kept grows, so that the mean stays.
        kept = residual.new_empty(len(residual), 1, 1).bernoulli_(1 - self.drop_path)
        # With a rate of 1 nothing is kept, and there is nothing to scale.
        return residual * kept.div_(1 - self.drop_path or 1)


class MultiwayAttention(nn.Module):
    """Self-attention over all tokens of a sequence, whatever their modality."""

    def __init__(self, config: VLMoConfig) -> None:
        super().__init__()
        self.config = config
        names = (SHARED,) if config.attention == "shared" else (VISION, LANGUAGE)
        self.qkv = nn.ModuleDict({name: QueryKeyValue(config) for name in names})
        self.inner_norm = layer_norms(config, names) if config.inner_norm else None
        self.projection = nn.ModuleDict(
            {name: nn.Linear(config.hidden_size, config.hidden_size) for name in names}
        )

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
        """Return the residual of the `queries` (all tokens by default), and attention weights if eager.

        They attend to the tokens of `attention_mask` and of the `cache`.
        """
        # (batch, seq, 3 * hidden) -> (batch, seq, 3, heads, dim)
        qkv = route(self.qkv, hidden).unflatten(-1, (3, self.config.num_attention_heads, -1))
        eager = self.config._attn_implementation == "eager"
        weights = None
        is_plain = queries is None and cache is None and not eager
        if bias is not None and is_plain and cpu.prefers_chunks(qkv, bias):
            attended = cpu.chunked_attention(qkv, bias=bias, attention_mask=attention_mask)
            attended = attended.flatten(2)
        else:
            attended, weights = attend(
                qkv,
                bias=bias,
                attention_mask=attention_mask,
                queries=queries,
                cache=cache,
                eager=eager,
            )
        if queries is not None:
            route = queries.route(route)
        # Sub-layer norm of Magneto (arXiv 2210.06423), which BEiT-3 uses.
        if self.inner_norm is not None:
            attended = route(self.inner_norm, attended)
        return route(self.projection, attended), weights


class QueryKeyValue(nn.Linear):
    """Joint projection to queries, keys and values.

    Keys usually have no bias: it would cancel in the softmax.

    A linear layer by type, so that adapters which look for linear layers (LoRA) find it.
    """

    def __init__(self, config: VLMoConfig) -> None:
        dim = config.hidden_size
        super().__init__(dim, 3 * dim, bias=False)
        self.query_bias = nn.Parameter(torch.zeros(dim))
        self.key_bias = nn.Parameter(torch.zeros(dim)) if config.key_bias else None
        self.value_bias = nn.Parameter(torch.zeros(dim))

    def reset_parameters(self) -> None:
        """Do nothing: `_init_weights` fills the weight.

        Random numbers sampled here would change all that come after.
        """

    def forward(self, hidden: Float[Tensor, "batch seq dim"]) -> Float[Tensor, "batch seq 3*dim"]:
        """Return queries, keys and values, in this order."""
        key_bias = self.key_bias
        if key_bias is None:
            key_bias = torch.zeros_like(self.query_bias)
        # (3 * dim), one matrix product for all three
        bias = torch.cat([self.query_bias, key_bias, self.value_bias])
        return F.linear(hidden, self.weight, bias)


class Expert(nn.Module):
    """Feed-forward network with its norm in front, and with `inner_norm` another before its second layer."""

    def __init__(self, config: VLMoConfig) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        intermediate_size = cast("int", config.intermediate_size)
        self.fc1 = nn.Linear(config.hidden_size, intermediate_size)
        self.inner_norm = (
            nn.LayerNorm(intermediate_size, eps=config.layer_norm_eps)
            if config.inner_norm
            else None
        )
        self.fc2 = nn.Linear(intermediate_size, config.hidden_size)

    def forward(self, hidden: Float[Tensor, "batch seq dim"]) -> Float[Tensor, "batch seq dim"]:
        """Return the residual that the block adds to `hidden`."""
        activations = F.gelu(self.fc1(self.norm(hidden)))
        if self.inner_norm is not None:
            activations = self.inner_norm(activations)
        return self.fc2(activations)


def layer_norms(config: VLMoConfig, names: tuple[str, ...]) -> nn.ModuleDict:
    """Return a norm for each modality of `names`."""
    return nn.ModuleDict(
        {name: nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps) for name in names}
    )
