"""The dual encoder made ready to embed quickly: same vectors, fewer operations, float32 or bfloat16."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any, Self, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from vlmo.model.backbone import IMAGE_TYPE, TEXT_TYPE, VLMoModel
from vlmo.model.heads import ContrastHead
from vlmo.model.multiway import LANGUAGE, SHARED, VISION, MultiwayAttention, MultiwayBlock, QueryKeyValue

# glibc gives larger tensors back at once and asks for their memory anew, page by page: a ninth of the time of 32
# images in bfloat16. In float32, whose products take longer, parts of a batch gain nothing.
_LARGEST_BYTES = 2**25


class PackedLinear(nn.Module):
    """Linear layer whose weight lies in memory as oneDNN's products on this CPU read it, with GELU behind it if wanted.

    A weight that is packed once need not be brought into that order at each call, and GELU is applied while the sums
    are in the registers; in bfloat16 it therefore sees them unrounded.
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, weight: Float[Tensor, "out in"], bias: Float[Tensor, " out"], *, gelu: bool = False) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)
        self.gelu = gelu
        self._pack()

    @staticmethod
    @functools.cache
    def serves(device: str, dtype: torch.dtype) -> bool:
        """Return True if this build of PyTorch and this machine multiply so."""
        operators = torch.ops.mkldnn
        there = device == "cpu" and torch.backends.mkldnn.is_available() and hasattr(operators, "_linear_pointwise")
        return there and (dtype == torch.float32 or (dtype == torch.bfloat16 and operators._is_mkldnn_bf16_supported()))

    def forward(self, hidden: Float[Tensor, "*tokens in"]) -> Float[Tensor, "*tokens out"]:
        """`hidden @ weight.T + bias`, or GELU of it, in the type of `hidden`."""
        if self.weight.is_mkldnn:
            after = ("gelu", [], "none") if self.gelu else ("none", [], "")
            return torch.ops.mkldnn._linear_pointwise(hidden, self.weight, self.bias, *after)
        sums = F.linear(hidden, self.weight, self.bias)
        return F.gelu(sums) if self.gelu else sums

    def unpack(self) -> None:
        """Give the weight its usual order again, which torch.compile needs."""
        self.weight = self._plain_weight()

    def _plain_weight(self) -> Float[Tensor, "out in"]:
        return self.weight.to_dense() if self.weight.is_mkldnn else self.weight

    def _pack(self) -> None:
        weight = self.weight.contiguous()
        packs = self.serves(weight.device.type, weight.dtype)
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight) if packs else weight

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Self:  # noqa: FBT001, FBT002 (torch's own)
        self.unpack()
        super()._apply(fn, recurse)
        self._pack()
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        # Packed memory can be neither copied nor written.
        return functools.partial(PackedLinear, gelu=self.gelu), (self._plain_weight(), self.bias)


class _Layer(nn.Module):
    """A Multiway block as tokens of one modality see it, LayerScale and the scale of the logits in its weights."""

    def __init__(self, block: MultiwayBlock, *, modality: str, weights: _Weights) -> None:
        super().__init__()
        attention, expert = cast("MultiwayAttention", block.attention), _of(block.experts, modality)
        self.num_heads = attention.config.num_attention_heads
        self.norm1 = weights.copied(_of(block.norm1, modality))
        self.query, self.key_value = weights.query_and_key_value(_of(attention.qkv, modality), num_heads=self.num_heads)
        self.inner_norm = weights.copied(_of(attention.inner_norm, modality))
        self.projection = weights.linear(_of(attention.projection, modality), gamma=block.gamma_1)
        self.norm2 = weights.copied(expert.norm)
        self.fc1 = weights.linear(expert.fc1, gelu=True)
        self.expert_norm = weights.copied(expert.inner_norm)
        self.fc2 = weights.linear(expert.fc2, gamma=block.gamma_2)

    def forward(
        self,
        hidden: Float[Tensor, "batch seq dim"],
        bias: Float[Tensor, "#batch heads seq seq"] | None,
        *,
        first_only: bool = False,
    ) -> Float[Tensor, "batch queries dim"]:
        """Return the states of all tokens, or of the first one alone, which attends to all of them."""
        normed = self.norm1(hidden)
        key, value = self.key_value(normed).unflatten(-1, (2, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        if first_only:
            hidden, normed, bias = hidden[:, :1], normed[:, :1], None if bias is None else bias[:, :, :1]
        query = self.query(normed).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        if bias is not None and query.device.type == "cpu" and query.dtype == torch.bfloat16:
            # torch's fused kernel takes twice as long here; in float32 it is the faster one.
            logits = query.contiguous() @ key.contiguous().transpose(-2, -1)
            attended = logits.add_(bias).softmax(dim=-1) @ value.contiguous()
        else:  # queries are scaled already
            attended = F.scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=1.0)
        attended = attended.transpose(1, 2).flatten(2)
        hidden = hidden + self.projection(attended if self.inner_norm is None else self.inner_norm(attended))
        inner = self.fc1(self.norm2(hidden))
        return hidden + self.fc2(inner if self.expert_norm is None else self.expert_norm(inner))


class Tower(nn.Module):
    """From embedded tokens of one modality to vectors of length one."""

    def __init__(self, backbone: VLMoModel, projection: nn.Linear, *, modality: str, weights: _Weights) -> None:
        super().__init__()
        images = modality == VISION
        self.embeddings = weights.copied(backbone.image_embeddings if images else backbone.text_embeddings)
        types, kind = backbone.modality_types, IMAGE_TYPE if images else TEXT_TYPE
        self.register_buffer(
            "modality_type", None if types is None else types.weight[kind].to(weights.dtype, copy=True)
        )
        self.layers = nn.ModuleList(
            _Layer(cast("MultiwayBlock", block), modality=modality, weights=weights) for block in backbone.blocks
        )
        self.norm = weights.copied(_of(backbone.norm, modality))
        self.projection = weights.copied(projection)
        self._row_bytes = cast("int", backbone.config.intermediate_size) * weights.dtype.itemsize

    def forward(
        self,
        inputs: Float[Tensor, "batch 3 height width"] | Int[Tensor, "batch text"],
        bias: Float[Tensor, "layers #batch heads seq seq"] | None = None,
    ) -> Float[Tensor, "batch projection"]:
        """Return L2-normalised vectors of pixels or token ids; adds `bias` of each layer to the attention logits."""
        hidden = self.embeddings(inputs)
        if self.modality_type is not None:
            hidden = hidden + self.modality_type
        count = 1
        if hidden.device.type == "cpu" and hidden.dtype != torch.float32 and not torch.compiler.is_compiling():
            count = max(1, min(len(hidden), -(-hidden.shape[:2].numel() * self._row_bytes // _LARGEST_BYTES)))
        parts = hidden.chunk(count)
        biases = [bias] * len(parts) if bias is None or bias.shape[1] == 1 else bias.chunk(len(parts), dim=1)
        vectors = []
        for part, part_bias in zip(parts, biases, strict=True):
            for number, layer in enumerate(self.layers, start=1):
                layer_bias = None if part_bias is None else part_bias[number - 1]
                part = layer(part, layer_bias, first_only=number == len(self.layers))
            vectors.append(F.normalize(self.projection(self.norm(part[:, 0])).float(), dim=-1))
        return torch.cat(vectors)

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """As `torch.nn.Module.compile`; the compiler packs weights itself where that pays."""
        for module in self.modules():
            if isinstance(module, PackedLinear):
                module.unpack()
        super().compile(*args, **kwargs)


class DualEncoderForInference(nn.Module):
    """The dual encoder of a model, ready to embed (VLMo, "Image-Text Retrieval"; unimodal ITC branch).

    Computes what `get_image_features` and `get_text_features` of the model compute, to rounding: LayerScale, the scale
    of the attention logits and the missing key bias are part of the weights, position biases are kept from call to
    call, the last block computes the first token alone, and columns that are padding in every text are left out.

    It holds weights of its own: the model may be dropped, and what changes in it later does not show. It has no
    gradients. Each tower is a module of its own, so `encoder.images.compile()` works.

    Args:
        dtype: Of weights and activations; that of the model by default.

    Attributes:
        images: From pixels to vectors.
        texts: From token ids to vectors.

    Raises:
        ValueError: A model with adapters that are not merged.
    """

    @torch.no_grad()
    def __init__(self, backbone: VLMoModel, head: ContrastHead, *, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        if any("lora_" in name for name, _ in backbone.named_parameters()):
            raise ValueError("This model has adapters, which would be left out; merge them first (merge_and_unload).")
        weights = _Weights(dtype or backbone.dtype)
        self.images = Tower(backbone, head.image_projection, modality=VISION, weights=weights)
        self.texts = Tower(backbone, head.text_projection, modality=LANGUAGE, weights=weights)
        self.position_bias = copy.deepcopy(backbone.position_bias)
        self._image_bias: tuple[tuple[int, int], Tensor | None] | None = None
        self._text_bias: Tensor | None = None
        self.requires_grad_(requires_grad=False).eval()

    @property
    def device(self) -> torch.device:
        """Device of the inputs."""
        return self.images.projection.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Type of the activations."""
        return self.images.projection.weight.dtype

    def get_image_features(self, pixel_values: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch dim"]:
        """Return L2-normalised `image_embeds`, float32."""
        grid = self.images.embeddings.grid_of(pixel_values)
        if self._image_bias is None or self._image_bias[0] != grid:
            self._image_bias = grid, self._bias(num_text=0, grid=grid)
        return self.images(pixel_values, self._image_bias[1])

    def get_text_features(
        self, input_ids: Int[Tensor, "batch text"], attention_mask: Int[Tensor, "batch text"] | None = None
    ) -> Float[Tensor, "batch dim"]:
        """Return L2-normalised `text_embeds`, float32; ValueError if `attention_mask` has another shape."""
        if attention_mask is None:
            return self.texts(input_ids, self._bias_of_texts(input_ids.shape[1]))
        if attention_mask.shape != input_ids.shape:
            given, expected = tuple(attention_mask.shape), tuple(input_ids.shape)
            raise ValueError(f"attention_mask has shape {given}; expected {expected}, one entry for each token.")
        mask = attention_mask.bool()
        length = int(mask.any(dim=0).nonzero().max()) + 1 if mask.any() else mask.shape[1]
        mask = mask[:, :length]
        bias = self._bias_of_texts(length)
        if not mask.all():
            bias = mask.new_zeros(len(self.texts.layers), 1, 1, 1, 1, dtype=self.dtype) if bias is None else bias
            bias = bias.masked_fill(~mask[:, None, None, :], torch.finfo(bias.dtype).min)
        return self.texts(input_ids[:, :length], bias)

    def _bias_of_texts(self, length: int) -> Float[Tensor, "layers 1 heads seq seq"] | None:
        """Return the bias of a length, kept for the longest so far, whose upper left corner serves shorter ones."""
        if self._text_bias is None or self._text_bias.shape[-1] < length:
            self._text_bias = self._bias(num_text=length, grid=None)
        return None if self._text_bias is None else self._text_bias[..., :length, :length]

    def _bias(self, *, num_text: int, grid: tuple[int, int] | None) -> Float[Tensor, "layers 1 heads seq seq"] | None:
        if self.position_bias is None:
            return None
        return torch.stack(self.position_bias(num_text=num_text, grid=grid))[:, None].to(self.dtype)

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Self:  # noqa: FBT001, FBT002 (torch's own)
        self._image_bias = self._text_bias = None
        return super()._apply(fn, recurse)


class _Weights:
    """Maker of fast layers out of those of a model; a layer that both modalities share is made once."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self._made: dict[nn.Module, Any] = {}

    def copied(self, module: Any) -> Any:
        """Return a copy in the wanted type; None of None."""
        return None if module is None else copy.deepcopy(module).to(self.dtype)

    def linear(self, layer: nn.Linear, *, gamma: Tensor | None = None, gelu: bool = False) -> nn.Module:
        """Return the layer with LayerScale and GELU, if there are any, as one layer."""
        if layer not in self._made:
            scale = layer.bias.new_ones(()).float() if gamma is None else gamma.float()
            weight, bias = (layer.weight.float().T * scale).T, layer.bias.float() * scale
            self._made[layer] = self._layer(weight, bias, gelu=gelu)
        return self._made[layer]

    def query_and_key_value(self, module: QueryKeyValue, *, num_heads: int) -> tuple[nn.Module, nn.Module]:
        """Queries, scaled as attention wants them, apart from keys and values: the last block needs few of them."""
        if module not in self._made:
            dim = module.in_features
            scale = (dim // num_heads) ** -0.5
            weight, query_bias = module.weight.float(), module.query_bias.float()
            key_bias = torch.zeros_like(query_bias) if module.key_bias is None else module.key_bias.float()
            self._made[module] = (
                self._layer(weight[:dim] * scale, query_bias * scale),
                self._layer(weight[dim:], torch.cat([key_bias, module.value_bias.float()])),
            )
        return self._made[module]

    def _layer(self, weight: Float[Tensor, "out in"], bias: Float[Tensor, " out"], *, gelu: bool = False) -> nn.Module:
        return PackedLinear(weight.to(self.dtype, copy=True), bias.to(self.dtype, copy=True), gelu=gelu)


def _of(modules: Any, modality: str) -> Any:
    """Return the module of a modality, or the one for all."""
    if not isinstance(modules, nn.ModuleDict):
        return modules
    return modules[SHARED if SHARED in modules else modality]
