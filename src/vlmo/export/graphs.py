"""ONNX graphs of a model: one for each encoder that its class has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from vlmo import model as models
from vlmo.export.sessions import FUSION_ENCODER, IMAGE_ENCODER, TEXT_ENCODER
from vlmo.model.embeddings import RelativePositionBias, relative_position_index

_PIXELS = "pixel_values"
_IDS = "input_ids"
_MASK = "attention_mask"
_TEXT = (_IDS, _MASK)
_PAIR = (_PIXELS, *_TEXT)
_LOGITS = ("logits",)


@dataclass(frozen=True)
class Graph:
    """One encoder of a model, which becomes one file.

    Attributes:
        method: Of the model; takes `inputs` by their names.
        num_images: Images of each row of `pixel_values`.
    """

    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    method: str = "forward"
    num_images: int = 1

    @property
    def reads_text(self) -> bool:
        """True if texts are among the inputs."""
        return _IDS in self.inputs

    @property
    def dynamic_axes(self) -> tuple[dict[int, str], ...]:
        """Names of the axes of each input whose size is free."""
        return tuple(
            {0: "batch", 1: "text"} if name in _TEXT else {0: "batch"} for name in self.inputs
        )


class GraphModule(nn.Module):
    """A graph of a model as a module, as exporters need it."""

    def __init__(self, model: models.VLMoPreTrainedModel, graph: Graph) -> None:
        super().__init__()
        self.model = model
        self.graph = graph

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Return the outputs of the graph for inputs in the order of `Graph.inputs`."""
        graph = self.graph
        result = getattr(self.model, graph.method)(**dict(zip(graph.inputs, inputs, strict=True)))
        if isinstance(result, Tensor):
            return (result,)
        return tuple(result[name] for name in graph.outputs)


def graphs_of(model: models.VLMoPreTrainedModel) -> tuple[Graph, ...]:
    """Return the graphs that the class of a model has; ValueError if none is known."""
    match model:
        case models.VLMoForPreTraining() | models.VLMoForImageTextRetrieval():
            graphs = (
                Graph(IMAGE_ENCODER, (_PIXELS,), ("image_embeds",), method="get_image_features"),
                Graph(TEXT_ENCODER, _TEXT, ("text_embeds",), method="get_text_features"),
                Graph(FUSION_ENCODER, _PAIR, ("match_logits",), method="match"),
            )
            return graphs[:2] if model.match_head is None else graphs
        case models.VLMoForVisualQuestionAnswering() | models.VLMoForImageCaptioning():
            return (Graph(FUSION_ENCODER, _PAIR, _LOGITS),)
        case models.VLMoForVisualReasoning():
            return (Graph(FUSION_ENCODER, _PAIR, _LOGITS, num_images=2),)
        case models.VLMoForImageClassification() | models.VLMoForSemanticSegmentation():
            return (Graph(IMAGE_ENCODER, (_PIXELS,), _LOGITS),)
        case models.VLMoModel():
            pooled = () if model.pooler is None else ("pooler_output",)
            return (
                Graph(IMAGE_ENCODER, (_PIXELS,), ("last_hidden_state", *pooled)),
                Graph(TEXT_ENCODER, _TEXT, ("last_hidden_state", *pooled)),
                Graph(FUSION_ENCODER, _PAIR, ("text_hidden_state", "image_hidden_state", *pooled)),
            )
    raise ValueError(
        f"{type(model).__name__} has no ONNX form; export VLMoModel, or a retrieval or fine-tuned model"
    )


def free_text_length(model: models.VLMoPreTrainedModel) -> None:
    """Replace the model's position bias by one that a graph can cut to any text length; its values stay the same."""
    backbone = model.backbone
    source = backbone.position_bias
    bias = (
        NoPositionBias(num_layers=len(backbone.blocks))
        if source is None
        else AnyLengthPositionBias(source)
    )
    backbone.position_bias = cast("RelativePositionBias", bias)


class NoPositionBias(nn.Module):
    """Zeros in place of a bias: ONNX Runtime's attention needs padding with an entry for each query and key."""

    zero: Tensor

    def __init__(self, *, num_layers: int) -> None:
        super().__init__()
        self.num_layers = num_layers
        self.register_buffer("zero", torch.zeros(1, 1, 1), persistent=False)

    def forward(
        self, *, num_text: int, grid: tuple[int, int] | None
    ) -> list[Float[Tensor, "1 seq seq"]] | None:
        """Return the same zeros for each layer; None without a text, as only texts are padded."""
        if num_text == 0:
            return None
        length = num_text if grid is None else num_text + 1 + grid[0] * grid[1]
        return [self.zero.expand(1, length, length)] * self.num_layers


class AnyLengthPositionBias(nn.Module):
    """Relative position bias for the longest text and the image, cut to the given text.

    `RelativePositionBias` makes its index for each length in Python, so a graph would hold that of one length. This one
    does not depend on the inputs, so ONNX Runtime computes it once, when it loads the file, which holds the small table
    and index.
    """

    index: Tensor

    def __init__(self, source: RelativePositionBias) -> None:
        super().__init__()
        self.table = source.table
        self.grid = source.grid
        self.longest = source.max_text
        self.shape = (source.num_layers, source.num_heads)
        sizes = {
            "num_text": self.longest,
            "max_text": self.longest,
            "grid": self.grid,
            "table_grid": self.grid,
        }
        self.register_buffer("index", relative_position_index(**sizes), persistent=False)

    def forward(
        self, *, num_text: int, grid: tuple[int, int] | None
    ) -> list[Float[Tensor, "heads seq seq"]]:
        """Return the bias of each layer, as `RelativePositionBias` does; ValueError for another `grid`."""
        if grid is not None and grid != self.grid:
            raise ValueError(
                f"A grid of {grid} patches; this bias is for the configured one, {self.grid}."
            )
        bias = F.embedding(self.index, self.table).permute(2, 0, 1)
        for dim in (1, 2):
            text = bias.narrow(dim, 0, num_text)
            image = bias.narrow(dim, self.longest, bias.shape[dim] - self.longest)
            bias = (
                image
                if num_text == 0
                else text
                if grid is None
                else torch.cat([text, image], dim=dim)
            )
        return list(bias.unflatten(0, self.shape).unbind(0))
