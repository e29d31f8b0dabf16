"""What becomes of a model in ONNX: a graph for each way through it that its class knows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from vlmo.model import (
    VLMoForImageClassification,
    VLMoForImageTextRetrieval,
    VLMoForMaskedImageModeling,
    VLMoForMaskedLM,
    VLMoForPreTraining,
    VLMoForSemanticSegmentation,
    VLMoForVisualQuestionAnswering,
    VLMoForVisualReasoning,
    VLMoModel,
    VLMoPreTrainedModel,
)
from vlmo.model.position import RelativePositionBias, relative_position_index

IMAGE_ENCODER, TEXT_ENCODER, FUSION_ENCODER = "image_encoder", "text_encoder", "fusion_encoder"

_PIXELS, _IDS, _MASK, _MASKED_PATCHES = "pixel_values", "input_ids", "attention_mask", "bool_masked_pos"
_TEXT = (_IDS, _MASK)
_PAIR = (_PIXELS, *_TEXT)
_LOGITS = ("logits",)


@dataclass(frozen=True)
class Graph:
    """One way through a model, which becomes one file.

    Attributes:
        call: Takes the model and the inputs in the order of `inputs`, gives tensors in the order of `outputs`.
        num_images: Pictures of each row of `pixel_values`.
    """

    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    call: Callable[..., tuple[Tensor, ...]]
    num_images: int = 1

    @property
    def reads_text(self) -> bool:
        """Whether texts go in."""
        return _IDS in self.inputs

    @property
    def dynamic_axes(self) -> tuple[dict[int, str], ...]:
        """Names of the axes of each input whose size is free."""
        return tuple({0: "batch", 1: "text"} if name in _TEXT else {0: "batch"} for name in self.inputs)


class GraphModule(nn.Module):
    """A graph as a module of its own, as exporters want it."""

    def __init__(self, model: VLMoPreTrainedModel, graph: Graph) -> None:
        super().__init__()
        self.model, self.call = model, graph.call

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Outputs of the graph."""
        return self.call(self.model, *inputs)


def graphs_of(model: VLMoPreTrainedModel) -> tuple[Graph, ...]:
    """The graphs that the class of a model has.

    Raises:
        ValueError: None is known for this class.
    """
    match model:
        case VLMoForPreTraining() | VLMoForImageTextRetrieval():
            return tuple(_dual_encoder(model))
        case VLMoForVisualQuestionAnswering():
            return (Graph(FUSION_ENCODER, _PAIR, _LOGITS, _logits),)
        case VLMoForVisualReasoning():
            return (Graph(FUSION_ENCODER, _PAIR, _LOGITS, _logits, num_images=2),)
        case VLMoForImageClassification() | VLMoForSemanticSegmentation():
            return (Graph(IMAGE_ENCODER, (_PIXELS,), _LOGITS, _logits),)
        case VLMoForMaskedImageModeling():
            return (Graph(IMAGE_ENCODER, (_PIXELS, _MASKED_PATCHES), _LOGITS, _visual_token_logits),)
        case VLMoForMaskedLM():
            text = Graph(TEXT_ENCODER, _TEXT, _LOGITS, _logits)
            return (text, Graph(FUSION_ENCODER, _PAIR, _LOGITS, _pair_word_logits))
        case VLMoModel():
            return tuple(_backbone(model))
    raise ValueError(f"{type(model).__name__} has no ONNX form here; export one of the classes VLMoModel or VLMoFor...")


def _dual_encoder(model: VLMoForPreTraining | VLMoForImageTextRetrieval) -> Iterator[Graph]:
    yield Graph(
        IMAGE_ENCODER, (_PIXELS,), ("image_embeds",), lambda model, *inputs: (model.get_image_features(*inputs),)
    )
    yield Graph(TEXT_ENCODER, _TEXT, ("text_embeds",), lambda model, *inputs: (model.get_text_features(*inputs),))
    if model.match_head is not None:
        yield Graph(FUSION_ENCODER, _PAIR, ("match_logits",), lambda model, *inputs: (model.match(*inputs),))


def _backbone(model: VLMoModel) -> Iterator[Graph]:
    def states(*names: str) -> tuple[tuple[str, ...], Callable[..., tuple[Tensor, ...]]]:
        wanted = names if model.pooler is None else (*names, "pooler_output")

        def call(model: VLMoModel, *tensors: Tensor) -> tuple[Tensor, ...]:
            inputs = dict(zip(_TEXT if len(tensors) == len(_TEXT) else _PAIR, tensors, strict=False))
            output = model(**inputs)
            return tuple(output[name] for name in wanted)

        return wanted, call

    yield Graph(IMAGE_ENCODER, (_PIXELS,), *states("last_hidden_state"))
    yield Graph(TEXT_ENCODER, _TEXT, *states("last_hidden_state"))
    yield Graph(FUSION_ENCODER, _PAIR, *states("text_hidden_state", "image_hidden_state"))


def _logits(model: Any, *inputs: Tensor) -> tuple[Tensor, ...]:
    return (model(*inputs).logits,)


def _visual_token_logits(model: Any, pixel_values: Tensor, bool_masked_pos: Tensor) -> tuple[Tensor, ...]:
    return (model(pixel_values, bool_masked_pos).reconstruction,)


def _pair_word_logits(model: Any, pixel_values: Tensor, *text: Tensor) -> tuple[Tensor, ...]:
    return (model(*text, pixel_values).logits,)


def free_text_length(model: VLMoPreTrainedModel) -> None:
    """Makes the model's position bias one that a graph can cut to any text length; its values stay the same."""
    backbone = model.backbone
    source = backbone.position_bias
    bias = NoPositionBias(num_layers=len(backbone.blocks)) if source is None else AnyLengthPositionBias(source)
    backbone.position_bias = cast("RelativePositionBias", bias)


class NoPositionBias(nn.Module):
    """Zeros in the place of a bias, as ONNX Runtime's attention wants padding with an entry for each query and key."""

    zero: Tensor

    def __init__(self, *, num_layers: int) -> None:
        super().__init__()
        self.num_layers = num_layers
        self.register_buffer("zero", torch.zeros(1, 1, 1), persistent=False)

    def forward(self, *, num_text: int, grid: tuple[int, int] | None) -> list[Float[Tensor, "1 seq seq"]] | None:
        """The same zeros for each layer; None without a text, as only texts are padded."""
        if num_text == 0:
            return None
        length = num_text if grid is None else num_text + 1 + grid[0] * grid[1]
        return [self.zero.expand(1, length, length)] * self.num_layers


class AnyLengthPositionBias(nn.Module):
    """The relative position bias, read for the longest text and cut to the given one.

    `RelativePositionBias` makes its index for each length in Python, so a graph would hold that of one length. Here the
    blocks text to text and image to image are read whole. Nothing given goes into that, so ONNX Runtime does it once,
    when it loads the file, which holds the small table and index. The blocks between the modalities are one number for
    each head.
    """

    text_index: Tensor
    image_index: Tensor
    text_to_image: Tensor
    image_to_text: Tensor

    def __init__(self, source: RelativePositionBias) -> None:
        super().__init__()
        self.table, self.grid = source.table, source.grid
        self.shape = (source.num_layers, source.num_heads)
        cut = source.max_text
        index = relative_position_index(num_text=cut, grid=self.grid, max_text=cut, table_grid=self.grid)
        blocks = {
            "text_index": index[:cut, :cut],
            "image_index": index[cut:, cut:],
            "text_to_image": index[:1, cut : cut + 1],
            "image_to_text": index[cut : cut + 1, :1],
        }
        for name, block in blocks.items():
            self.register_buffer(name, block.clone(), persistent=False)

    def forward(self, *, num_text: int, grid: tuple[int, int] | None) -> list[Float[Tensor, "heads seq seq"]]:
        """Bias of each layer, as `RelativePositionBias` gives it.

        Raises:
            ValueError: `grid` is not the configured one.
        """
        if grid is not None and grid != self.grid:
            raise ValueError(f"A grid of {grid} patches; this bias is for the configured one, {self.grid}.")
        if grid is None:
            return [block[:, :num_text, :num_text] for block in self._blocks(self.text_index)]
        if num_text == 0:
            return self._blocks(self.image_index)
        return [
            _joined(text[:, :num_text, :num_text], image, text_to_image=text_to_image, image_to_text=image_to_text)
            for text, image, text_to_image, image_to_text in zip(
                self._blocks(self.text_index),
                self._blocks(self.image_index),
                self._blocks(self.text_to_image),
                self._blocks(self.image_to_text),
                strict=True,
            )
        ]

    def _blocks(self, index: Int[Tensor, "n n"]) -> list[Float[Tensor, "heads n n"]]:
        return list(F.embedding(index, self.table).permute(2, 0, 1).unflatten(0, self.shape).unbind(0))


def _joined(
    text: Float[Tensor, "heads text text"],
    image: Float[Tensor, "heads image image"],
    *,
    text_to_image: Float[Tensor, "heads 1 1"],
    image_to_text: Float[Tensor, "heads 1 1"],
) -> Float[Tensor, "heads seq seq"]:
    num_text, num_image = text.shape[1], image.shape[1]
    upper = torch.cat([text, text_to_image.expand(-1, num_text, num_image)], dim=2)
    lower = torch.cat([image_to_text.expand(-1, num_image, num_text), image], dim=2)
    return torch.cat([upper, lower], dim=1)
