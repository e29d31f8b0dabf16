"""The visual tokenizer, whose tokens stage 1 predicts."""

from __future__ import annotations

import dataclasses
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from torch import nn

from vlmo.data.examples import Examples, RowExamples
from vlmo.data.stream import StreamExamples
from vlmo.model.visual_tokenizer import VQVisualTokenizer, VQVisualTokenizerConfig
from vlmo.objectives.unimodal import VisualTokenizerObjective, VisualTokenizerObjectiveConfig
from vlmo.tasks.base import RunContext, Task


def plain_fields(config_class: type, *, leave_out: tuple[str, ...] = ()) -> list[tuple[str, Any, Any]]:
    """Return the fields that a Hugging Face configuration declares itself: (name, type, field with default)."""
    fields = {field.name: field for field in dataclasses.fields(config_class)}
    return [
        (name, kind, dataclasses.field(default=fields[name].default))
        for name, kind in config_class.__annotations__.items()
        if name in fields and name not in leave_out
    ]


# Hugging Face configurations cannot be frozen, nor shown as options; a plain dataclass with their fields can.
VisualTokenizerConfig: Any = dataclasses.make_dataclass(
    "VisualTokenizerConfig", plain_fields(VQVisualTokenizerConfig), frozen=True, namespace={"__module__": __name__}
)


@dataclass(frozen=True)
class TokenizerStage(Task):
    """Trains the visual tokenizer whose tokens stage 1 predicts."""

    name: ClassVar[str] = "visual-tokenizer"
    title: ClassVar[str] = "visual tokenizer"
    can_stream: ClassVar[bool] = True
    reads_text: ClassVar[bool] = False
    can_start: ClassVar[bool] = False
    tokenizer: VisualTokenizerConfig = VisualTokenizerConfig()
    """Sizes of the tokenizer."""
    losses: VisualTokenizerObjectiveConfig = VisualTokenizerObjectiveConfig()
    """Weights of its losses."""

    def build_model(self, settings: dict[str, Any]) -> VQVisualTokenizer:
        """Return the tokenizer; its sizes are its own."""
        del settings
        return VQVisualTokenizer(VQVisualTokenizerConfig(**asdict(self.tokenizer)))

    def objective(self, run: RunContext) -> nn.Module:
        """Return the tokenizer with its losses."""
        return VisualTokenizerObjective(self.build_model(run.model), config=self.losses)

    def examples(self, run: RunContext) -> Examples:
        """Return images."""
        return RowExamples(run.rows, **run.image_options())

    def stream_examples(self, run: RunContext) -> StreamExamples:
        """Return images."""
        return StreamExamples(**run.stream_options())
