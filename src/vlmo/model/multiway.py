"""The Multiway block: shared self-attention, then the expert of the modality (VLMo, "Multiway Transformer")."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from jaxtyping import Bool, Float, Int
from timm.layers import DropPath
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.modeling_layers import GradientCheckpointingLayer

from vlmo.model.attention import chunked_attention
from vlmo.model.config import VLMoConfig

SHARED, VISION, LANGUAGE, VISION_LANGUAGE = "shared", "vision", "language", "vision_language"
ALL, QUERY, KEY_VALUE = slice(0, 3), slice(0, 1), slice(1, 3)


@dataclass(frozen=True)
class Route:
    """Which tokens belong to which modality, and whether top blocks use their `vision_language` expert."""

    num_text: int
    num_image: int
    fusion: bool
    image_first: bool = False

    def __call__(
        self, modules: nn.ModuleDict, hidden: Float[Tensor, "batch seq dim"], **options: Any
    ) -> Float[Tensor, "batch seq new_dim"]:
        """Sends each token through the module of its modality."""
        if SHARED in modules:
            return modules[SHARED](hidden, **options)
        if self.fusion and VISION_LANGUAGE in modules:
            return modules[VISION_LANGUAGE](hidden, **options)
        if self.num_image == 0:
            return modules[LANGUAGE](hidden, **options)
        if self.num_text == 0:
            return modules[VISION](hidden, **options)
        if self.image_first:
            image, text = hidden.split([self.num_image, self.num_text], dim=1)
            return torch.cat([modules[VISION](image, **options), modules[LANGUAGE](text, **options)], dim=1)
        text, image = hidden.split([self.num_text, self.num_image], dim=1)
        return torch.cat([modules[LANGUAGE](text, **options), modules[VISION](image, **options)], dim=1)


@dataclass(frozen=True)
class Kept:
    """The tokens of a sequence whose states are wanted after the last block: the same number of each row.

    Attributes:
        places: Where they stand, in the order of the sequence's modalities; a token may be named more than once.
        num_text: How many of them are words.
    """

    places: Int[Tensor, "batch kept"]
    num_text: int

    def of(self, states: Float[Tensor, "batch seq dim"]) -> Float[Tensor, "batch kept dim"]:
        """The states of these tokens."""
        return states.gather(1, self.places[..., None].expand(-1, -1, states.shape[-1]))

    def bias_of(self, bias: Float[Tensor, "#heads seq seq"]) -> Float[Tensor, "batch #heads kept seq"]:
        """The rows of these queries."""
        # Looked up rather than indexed: with several threads, the gradient of an index sums in any order.
        rows = F.embedding(self.places, bias.transpose(0, 1).flatten(1))
        return rows.unflatten(-1, (len(bias), -1)).transpose(1, 2)

    def route(self, route: Route) -> Route:
        """Where these tokens go when all tokens go by `route`."""
        return replace(route, num_text=self.num_text, num_image=self.places.shape[1] - self.num_text)


def wanted_places(
    wanted: Bool[Tensor, "batch tokens"],
) -> tuple[Int[Tensor, "batch places"], Bool[Tensor, "batch places"]]:
    """Places of the wanted tokens of each row in rising order, and which of them are not filled up (with place 0).

    As many columns as the fullest row needs, rounded up to 8 so that compiled blocks meet few shapes.
    """
    columns = min(-(-int(wanted.sum(dim=1).amax()) // 8) * 8, wanted.shape[1]) if len(wanted) else 0
    places = wanted.int().argsort(dim=1, descending=True, stable=True)[:, :columns]
    filled = wanted.gather(1, places)
    return places.masked_fill(~filled, 0), filled


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
        inner = self.fc1(self.norm(hidden))
        if _trains_on_cpu(inner) and not _saved_tensors_are_watched():
            with _gelu_computed_again(inner) as active:
                return self._project(active)
        return self._project(F.gelu(inner))

    def _project(self, active: Float[Tensor, "batch seq inner"]) -> Float[Tensor, "batch seq dim"]:
        return self.fc2(active if self.inner_norm is None else self.inner_norm(active))


@contextmanager
def _gelu_computed_again(inner: Float[Tensor, "*tokens inner"]) -> Iterator[Float[Tensor, "*tokens inner"]]:
    """GELU of `inner`, which what is computed here does not keep: the backward pass takes it from `inner` again.

    GELU itself needs `inner`, so of two tensors that are four times as wide as a state one remains.
    """
    active, given = F.gelu(inner), inner.detach()
    address = active.untyped_storage().data_ptr()

    def pack(tensor: Tensor) -> Tensor | torch.Size:
        whole = tensor.untyped_storage().data_ptr() == address and tensor.is_contiguous()
        return tensor.shape if whole and tensor.numel() == given.numel() else tensor

    def unpack(packed: Tensor | torch.Size) -> Tensor:
        return packed if isinstance(packed, Tensor) else F.gelu(given).view(packed)

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        yield active


def _saved_tensors_are_watched() -> bool:
    """Whether somebody else decides what is kept for the backward pass, as checkpointing does."""
    return torch._C._autograd._top_saved_tensors_default_hooks(True) is not None


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

    def forward(
        self, hidden: Float[Tensor, "batch seq dim"], *, part: slice = ALL
    ) -> Float[Tensor, "batch seq parts*dim"]:
        """Queries, keys and values, in this order, or a `part` of these three."""
        key_bias = torch.zeros_like(self.query_bias) if self.key_bias is None else self.key_bias
        bias = torch.cat([self.query_bias, key_bias, self.value_bias][part])
        weight = self.weight if part == ALL else self.weight.unflatten(0, (3, -1))[part].flatten(0, 1)
        return F.linear(hidden, weight, bias)


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
        bias: Float[Tensor, "#heads seq seq"] | None,
        attention_mask: Bool[Tensor, "batch seq"] | None = None,
        kept: Kept | None = None,
    ) -> tuple[Float[Tensor, "batch kept dim"], Float[Tensor, "batch heads kept seq"] | None]:
        """Attends from the `kept` tokens (all by default) to all that `attention_mask` does not hide.

        `bias` is added to the scaled logits; the weights come back with the eager implementation only.
        """
        eager = self.config._attn_implementation == "eager"
        weights = None
        if kept is not None and _trains_on_cpu(hidden) and self._saves_keys(hidden, kept):
            attended, weights = self._attend_from_few(hidden, bias=bias, attention_mask=attention_mask, kept=kept)
        elif kept is None and not eager and _trains_on_cpu(hidden):
            hidden_keys = None if attention_mask is None else ~attention_mask
            qkv = route(self.qkv, hidden).unflatten(-1, (3, self.config.num_attention_heads, -1))
            attended = chunked_attention(qkv, bias=bias, hidden_keys=hidden_keys).flatten(2)
        else:
            query, key, value = self._project(hidden, route=route, kept=kept)
            mask = _additive_mask(bias, attention_mask, kept=kept, dtype=query.dtype if bias is None else bias.dtype)
            if eager:
                logits = query @ key.transpose(-2, -1) * query.shape[-1] ** -0.5
                weights = (logits if mask is None else logits + mask).softmax(dim=-1)
                attended = weights.to(value.dtype) @ value
            else:
                mask = None if mask is None else mask.to(query.dtype)
                attended = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
            attended = attended.transpose(1, 2).flatten(2)
        route = route if kept is None else kept.route(route)
        if self.inner_norm is not None:
            attended = route(self.inner_norm, attended)
        return route(self.projection, attended), weights if eager else None

    def _saves_keys(self, hidden: Float[Tensor, "batch seq dim"], kept: Kept) -> bool:
        """Whether `_attend_from_few` knows these weights, and multiplies less."""
        if SHARED not in self.qkv:
            return False
        module = self.qkv[SHARED]
        if not isinstance(module, QueryKeyValue) or module.key_bias is not None:
            return False
        (_, seq, dim), queries = hidden.shape, kept.places.shape[1]
        return queries * (dim + self.config.num_attention_heads * seq) < seq * (dim + queries)

    def _attend_from_few(
        self,
        hidden: Float[Tensor, "batch seq dim"],
        *,
        bias: Float[Tensor, "#heads seq seq"] | None,
        attention_mask: Bool[Tensor, "batch seq"] | None,
        kept: Kept,
    ) -> tuple[Float[Tensor, "batch kept dim"], Float[Tensor, "batch heads kept seq"]]:
        """Attention from the kept tokens for which no token is projected to a key or a value.

        The key matrix multiplies the queries instead of all tokens, and the value matrix the weighted means of tokens:
        the same products in another order. Scores are float32, as in `chunked_attention`.
        """
        module, heads, (batch, queries) = (
            cast("QueryKeyValue", self.qkv[SHARED]),
            self.config.num_attention_heads,
            kept.places.shape,
        )
        query_weight, key_weight, value_weight = module.weight.unflatten(0, (3, heads, -1)).unbind(0)
        query = F.linear(kept.of(hidden), query_weight.flatten(0, 1), module.query_bias)
        by_head = query.unflatten(-1, (heads, -1)).permute(2, 0, 1, 3).flatten(1, 2) @ key_weight
        wanted = by_head.unflatten(1, (batch, queries)).transpose(0, 1).flatten(1, 2)  # batch heads*kept dim
        exact = torch.promote_types(hidden.dtype, torch.float32)
        with torch.autocast(hidden.device.type, enabled=False):
            scores = (wanted.to(exact) @ hidden.to(exact).mT).unflatten(1, (heads, queries))
            scores = scores * key_weight.shape[1] ** -0.5
            mask = _additive_mask(bias, attention_mask, kept=kept, dtype=exact)
            weights = (scores if mask is None else scores + mask).softmax(dim=-1)
        means = weights.flatten(1, 2).to(hidden.dtype) @ hidden
        by_head = means.unflatten(1, (heads, queries)).transpose(0, 1).flatten(1, 2) @ value_weight.mT
        attended = by_head.unflatten(1, (batch, queries)).permute(1, 2, 0, 3).flatten(2)
        return attended + module.value_bias.to(attended.dtype), weights  # weights sum to one

    def _project(
        self, hidden: Float[Tensor, "batch seq dim"], *, route: Route, kept: Kept | None
    ) -> tuple[
        Float[Tensor, "batch heads kept d"], Float[Tensor, "batch heads seq d"], Float[Tensor, "batch heads seq d"]
    ]:
        """Queries of the kept tokens, keys and values of all."""
        heads = self.config.num_attention_heads
        # An adapter around the layer has no parts, and a graph keeps its weights whole so that int8 finds them.
        divisible = all(isinstance(module, QueryKeyValue) for module in self.qkv.values())
        if kept is not None and divisible and not torch.compiler.is_exporting():
            query = kept.route(route)(self.qkv, kept.of(hidden), part=QUERY).unflatten(-1, (heads, -1))
            pair = route(self.qkv, hidden, part=KEY_VALUE).unflatten(-1, (2, heads, -1))
            key, value = pair.permute(2, 0, 3, 1, 4)
            return query.transpose(1, 2), key, value
        joint = route(self.qkv, hidden)
        query, key, value = joint.unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
        if kept is not None:
            query = kept.of(query.transpose(1, 2).flatten(2)).unflatten(-1, (heads, -1)).transpose(1, 2)
        return query, key, value


def _trains_on_cpu(hidden: Tensor) -> bool:
    """Whether attention has gradients to compute where no fused kernel of PyTorch gives that of a bias."""
    return hidden.device.type == "cpu" and torch.is_grad_enabled() and not torch.compiler.is_compiling()


def _additive_mask(
    bias: Float[Tensor, "#heads seq seq"] | None,
    attention_mask: Bool[Tensor, "batch seq"] | None,
    *,
    kept: Kept | None,
    dtype: torch.dtype,
) -> Float[Tensor, "#batch #heads #kept seq"] | None:
    """The bias of the kept queries, with padded keys at the lowest finite value: their softmax is exactly zero."""
    rows = None if bias is None else bias[None] if kept is None else kept.bias_of(bias)
    if attention_mask is None:
        return rows
    if rows is None:
        rows = attention_mask.new_zeros(1, 1, 1, 1, dtype=dtype)
    return rows.masked_fill(~attention_mask[:, None, None, :], torch.finfo(dtype).min)


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
        bias: Float[Tensor, "#heads seq seq"] | None,
        *,
        route: Route,
        attention_mask: Bool[Tensor, "batch seq"] | None = None,
        kept: Kept | None = None,
    ) -> tuple[Float[Tensor, "batch kept dim"], Float[Tensor, "batch heads kept seq"] | None]:
        """One layer; `bias` is added to the attention logits, and padding is hidden.

        Args:
            kept: The tokens whose new states are wanted; keys and values are computed for all of them.
        """
        attended, weights = self.attention(
            route(self.norm1, hidden), route=route, bias=bias, attention_mask=attention_mask, kept=kept
        )
        if kept is not None:
            hidden, route = kept.of(hidden), kept.route(route)
        hidden = hidden + self.drop_path(attended if self.gamma_1 is None else self.gamma_1 * attended)
        changed = route(self.experts, hidden)
        return hidden + self.drop_path(changed if self.gamma_2 is None else self.gamma_2 * changed), weights
