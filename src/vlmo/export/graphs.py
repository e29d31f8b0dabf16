"""ONNX graphs of a model: one for every encoder that its class has."""

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

PIXELS = "pixel_values"
IDS = "input_ids"
MASK = "attention_mask"


@dataclass(frozen=True)
class Graph:
    """One encoder of a model, which becomes one file.

    Attributes:
        method: Of the model; takes `inputs` by their names.
        num_images: Images in a row of `pixel_values`.
    """

    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    method: str = "forward"
    num_images: int = 1

    @property
    def reads_text(self) -> bool:
        """True if texts are among the inputs."""
        return IDS in self.inputs


class GraphModule(nn.Module):
    """A graph of a model as a module, as exporters need it."""

    def __init__(self, model: models.VLMoPreTrainedModel, graph: Graph) -> None:
        super().__init__()
        self.model = model
        self.graph = graph

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Return the outputs of the graph for inputs in the order of `Graph.inputs`."""
        # Exporters call `forward`, and a graph may be another method of the model.
        method = getattr(self.model, self.graph.method)
        result = method(**dict(zip(self.graph.inputs, inputs, strict=True)))
        if isinstance(result, Tensor):
            return (result,)
        return tuple(result[name] for name in self.graph.outputs)


def graphs_of(model: models.VLMoPreTrainedModel) -> tuple[Graph, ...]:
    """Return the graphs that the class of a model has; ValueError if none is known."""
    image = (PIXELS,)
    text = (IDS, MASK)
    pair = (PIXELS, IDS, MASK)
    logits = ("logits",)
    match model:
        case models.VLMoForPreTraining() | models.VLMoForImageTextRetrieval():
            encoders = (
                Graph(IMAGE_ENCODER, image, ("image_embeds",), method="get_image_features"),
                Graph(TEXT_ENCODER, text, ("text_embeds",), method="get_text_features"),
            )
            if model.match_head is None:
                return encoders
            return (*encoders, Graph(FUSION_ENCODER, pair, ("match_logits",), method="match"))
        case models.VLMoForVisualQuestionAnswering() | models.VLMoForImageCaptioning():
            return (Graph(FUSION_ENCODER, pair, logits),)
        case models.VLMoForVisualReasoning():
            return (Graph(FUSION_ENCODER, pair, logits, num_images=2),)
        case models.VLMoForImageClassification() | models.VLMoForSemanticSegmentation():
            return (Graph(IMAGE_ENCODER, image, logits),)
        case models.VLMoModel():
            pooled = () if model.pooler is None else ("pooler_output",)
            return (
                Graph(IMAGE_ENCODER, image, ("last_hidden_state", *pooled)),
                Graph(TEXT_ENCODER, text, ("last_hidden_state", *pooled)),
                Graph(FUSION_ENCODER, pair, ("text_hidden_state", "image_hidden_state", *pooled)),
            )
    raise ValueError(
        f"{type(model).__name__} has no ONNX form; export VLMoModel, or a retrieval or fine-tuned model"
    )


def free_text_length(model: models.VLMoPreTrainedModel) -> None:
    """Replace the model's position bias by one that a graph can cut to any text length; its values stay the same."""
    backbone = model.backbone
    bias: nn.Module
    if backbone.position_bias is None:
        bias = NoPositionBias(num_layers=len(backbone.blocks))
    else:
        bias = AnyLengthPositionBias(backbone.position_bias)
    # Called alike, though of another class.
    backbone.position_bias = cast("RelativePositionBias", bias)


class NoPositionBias(nn.Module):
    """Zeros in place of a bias: ONNX Runtime's attention needs padding with an entry for every query and key."""

    zero: Tensor

    def __init__(self, *, num_layers: int) -> None:
        super().__init__()
        self.num_layers = num_layers
        self.register_buffer("zero", torch.zeros(1, 1, 1), persistent=False)

    def forward(
        self, *, num_text: int, grid: tuple[int, int] | None
    ) -> list[Float[Tensor, "1 seq seq"]] | None:
        """Return the same zeros for all layers; None without a text, as only texts are padded."""
        if num_text == 0:
            return None
        length = num_text if grid is None else num_text + 1 + grid[0] * grid[1]
        return [self.zero.expand(1, length, length)] * self.num_layers


class AnyLengthPositionBias(nn.Module):
    """Relative position bias for the longest text and the image, cut to the given text.

    `RelativePositionBias` makes its index for each length in Python, so a graph would hold that of
    one length. This one does not depend on the inputs, so ONNX Runtime computes it once, when it
    loads the file, which holds the small table and index.
    """

    index: Tensor

    def __init__(self, source: RelativePositionBias) -> None:
        super().__init__()
        self.table = source.table
        self.grid = source.grid
        self.longest = source.max_text
        self.shape = (source.num_layers, source.num_heads)
        index = relative_position_index(
            num_text=self.longest, max_text=self.longest, grid=self.grid, table_grid=self.grid
        )
        self.register_buffer("index", index, persistent=False)

    def forward(
        self, *, num_text: int, grid: tuple[int, int] | None
    ) -> list[Float[Tensor, "heads seq seq"]]:
        """Return the bias by layer, as `RelativePositionBias` does; ValueError for another `grid`."""
        if grid is not None and grid != self.grid:
            raise ValueError(
                f"A grid of {grid} patches; this bias is for the configured one, {self.grid}."
            )
        bias = F.embedding(self.index, self.table).permute(2, 0, 1)
        # Queries, then keys: (heads, longest + image, longest + image) -> (heads, seq, seq).
        for dim in (1, 2):
            parts = []
            if num_text:
                parts.append(bias.narrow(dim, 0, num_text))
            if grid is not None:
                parts.append(bias.narrow(dim, self.longest, bias.shape[dim] - self.longest))
            bias = torch.cat(parts, dim=dim)
        return list(bias.unflatten(0, self.shape).unbind(0))
