"""Sequences of text and image tokens on their way through the Multiway blocks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

SHARED, VISION, LANGUAGE, VISION_LANGUAGE = "shared", "vision", "language", "vision_language"


@dataclass(frozen=True)
class Route:
    """Numbers of text and image tokens; with `fusion`, top blocks use their `vision_language` expert."""

    num_text: int
    num_image: int
    fusion: bool
    image_first: bool = False

    def __call__(
        self,
        modules: nn.ModuleDict,
        hidden: Float[Tensor, "batch seq dim"],
        *,
        then: Callable[[Tensor], Tensor] = lambda part: part,
        **options: Any,
    ) -> Float[Tensor, "batch seq new_dim"]:
        """Send each token through the module of its modality.

        Args:
            then: Applied to the result of each module.
            options: Arguments of the modules.
        """
        both = [(LANGUAGE, self.num_text), (VISION, self.num_image)]
        names = [name for name, count in (both[::-1] if self.image_first else both) if count]
        if SHARED in modules:
            names = [SHARED]
        elif self.fusion and VISION_LANGUAGE in modules:
            names = [VISION_LANGUAGE]
        if len(names) == 1:
            return then(modules[names[0]](hidden, **options))
        sizes = [self.num_image, self.num_text] if self.image_first else [self.num_text, self.num_image]
        parts = zip(names, hidden.split(sizes, dim=1), strict=True)
        return torch.cat([then(modules[name](part, **options)) for name, part in parts], dim=1)


@dataclass(frozen=True)
class Queries:
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


def additive_mask(
    bias: Float[Tensor, "#heads seq seq"] | None,
    attention_mask: Bool[Tensor, "batch seq"] | None,
    *,
    queries: Queries | None,
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


def masked_positions(
    mask: Bool[Tensor, "batch tokens"],
) -> tuple[Int[Tensor, "batch positions"], Bool[Tensor, "batch positions"]]:
    """Return the positions where `mask` is True, rising in each row, and which of them are no filling (position 0).

    As many columns as the fullest row needs, rounded up to 8 so that compiled blocks meet few shapes.
    """
    columns = min(-(-int(mask.sum(dim=1).amax()) // 8) * 8, mask.shape[1]) if len(mask) else 0
    positions = mask.int().argsort(dim=1, descending=True, stable=True)[:, :columns]
    filled = mask.gather(1, positions)
    return positions.masked_fill(~filled, 0), filled


@dataclass(frozen=True)
class Sequence:
    """Embedded tokens; built once, then run through the blocks as often as an objective needs.

    Attributes:
        hidden: Text tokens, then image tokens; the other way round if `image_first`.
        position_bias: Of each layer, or None with absolute positions.
        attention_mask: Over all tokens, True keeps; None keeps all.
    """

    hidden: Float[Tensor, "batch seq dim"]
    num_text: int
    position_bias: list[Float[Tensor, "heads seq seq"]] | None
    attention_mask: Bool[Tensor, "batch seq"] | None
    image_first: bool = False

    def route(self, *, fusion: bool) -> Route:
        """Return the route of all tokens; with `fusion`, through the `vision_language` experts of the top blocks."""
        num_image = self.hidden.shape[1] - self.num_text
        return Route(num_text=self.num_text, num_image=num_image, fusion=fusion, image_first=self.image_first)

    def split(
        self, states: Float[Tensor, "batch seq dim"]
    ) -> tuple[Float[Tensor, "batch text dim"], Float[Tensor, "batch image dim"]]:
        """Return the text tokens and the image tokens (`[I_CLS]` first) of states of this sequence."""
        num_image = states.shape[1] - self.num_text
        if self.image_first:
            return states[:, num_image:], states[:, :num_image]
        return states[:, : self.num_text], states[:, self.num_text :]

    def queries(
        self, *, words: Int[Tensor, "batch words"] | None = None, patches: Int[Tensor, "batch patches"] | None = None
    ) -> Queries:
        """Return the first token, then `words` (positions in the text) or `patches` (in the image, class token 0)."""
        batch, seq, _ = self.hidden.shape
        num_image = seq - self.num_text
        first = torch.zeros(batch, 1, dtype=torch.long, device=self.hidden.device)
        leading_text = int(self.num_text > 0 and not (self.image_first and num_image))
        if words is not None:
            words = words + num_image if self.image_first else words
            return Queries(torch.cat([first, words], dim=1), num_text=leading_text + words.shape[1])
        if patches is not None:
            patches = patches if self.image_first else patches + self.num_text
            return Queries(torch.cat([first, patches], dim=1), num_text=leading_text)
        return Queries(first, num_text=leading_text)
