"""Learning rates that fall from the head to the embeddings (BEiT, "Fine-Tuning BEiT on Downstream Vision Tasks")."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from vlmo.model.backbone import VLMoPreTrainedModel
from vlmo.model.multiway import MultiwayBlock


def layer_scales(model: VLMoPreTrainedModel, *, decay: float) -> dict[str, float]:
    """Factor on the learning rate for each parameter, by its full name.

    `decay` to the power of the distance from the top, with blocks + 2 storeys as BEiT counts them: 0 for embeddings
    (of pixels, words and modality types), *i* + 1 for block *i*, the last for heads, norms after the blocks and the
    pooler. The one table of relative positions serves all blocks and is on the last storey, as BEiT's shared table is.

    Raises:
        ValueError: `decay` is not above 0 and at most 1.
    """
    if not 0 < decay <= 1:
        raise ValueError(f"the layer decay is {decay}; give a number above 0, at most 1 (which leaves all rates equal)")
    storeys = dict(_storeys(model))
    top = model.config.num_hidden_layers + 1
    return {name: decay ** (top - storeys.get(id(parameter), top)) for name, parameter in model.named_parameters()}


def _storeys(model: VLMoPreTrainedModel) -> Iterator[tuple[int, int]]:
    """Identity of each parameter below the top, and its storey."""
    backbone = model.backbone
    embeddings: list[nn.Module | None] = [
        backbone.image_embeddings,
        backbone.text_embeddings,
        backbone.modality_types,
    ]
    for module in embeddings:
        yield from _all(module, storey=0)
    for number, block in enumerate(block for block in backbone.blocks if isinstance(block, MultiwayBlock)):
        yield from _all(block, storey=number + 1)


def _all(module: nn.Module | None, *, storey: int) -> Iterator[tuple[int, int]]:
    for parameter in module.parameters() if module is not None else ():
        yield id(parameter), storey
