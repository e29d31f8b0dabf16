"""What every reader of a published layout hands back: a configuration, weights under our names, and what is left."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from vlmo.model import VLMoConfig
from vlmo.model.backbone import VLMoPreTrainedModel


@dataclass(frozen=True)
class Conversion:
    """A published checkpoint in our terms; nothing is resized and nothing is built yet.

    Attributes:
        kind: For people, for example `"VLMo, fine-tuned on VQA"`.
        weights: Under our names, at the shapes that `config` gives.
        unused: Published keys that are known and have no place in our model, such as index buffers.
        unknown: Published keys that nobody knows.
        created: Patterns (`re.match` on our names) of parameters that a file of this kind never holds. They start anew
            from a fixed seed.
        max_text_length: Longest text that the file was trained for, in tokens; None where there is no text side.
        text: The tokenizer that the words need; None where there is no text side.
        notes: One sentence each, for the person who imports.
    """

    kind: str
    model_class: type[VLMoPreTrainedModel]
    config: VLMoConfig
    weights: dict[str, Tensor]
    unused: dict[str, Tensor] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)
    created: list[str] = field(default_factory=list)
    max_text_length: int | None = None
    text: Literal["wordpiece", "sentencepiece"] | None = None
    notes: list[str] = field(default_factory=list)
