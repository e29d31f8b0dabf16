"""Runs a model that gives logits, batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from typing import Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from vlmo.types import Batch

Advance = Callable[[int], None]
"""Called with the number of rows that are done."""


class Logits(Protocol):
    """What a model of this module returns."""

    @property
    def logits(self) -> Float[Tensor, "batch classes"]:
        """A number for each answer or class."""
        ...


class HasModes(Protocol):
    """What has a training and an evaluation mode, as `torch.nn.Module`."""

    def modules(self) -> Iterator[nn.Module]:
        """The model and all that is in it, as `torch.nn.Module.modules`."""
        ...

    def eval(self) -> object:
        """Switch dropout and drop path off."""
        ...


class PairModel(HasModes, Protocol):
    """A model that reads pictures and texts and gives logits: `VLMoForVisualQuestionAnswering` and the like."""

    @property
    def device(self) -> torch.device:
        """Where the inputs go."""
        ...

    def __call__(self, *, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Logits:
        """Logits of each pair."""
        ...


def top_logits(
    model: PairModel,
    batches: Iterable[Batch],
    *,
    top: int,
    autocast_dtype: torch.dtype | None = None,
    advance: Advance | None = None,
) -> tuple[Float[Tensor, "rows top"], Int[Tensor, "rows top"]]:
    """The `top` largest logits of each row, or all where there are fewer, and their classes; on the CPU.

    Args:
        model: Put in evaluation mode and back again.
        autocast_dtype: `torch.bfloat16` runs the model under autocast.
        advance: Hears of progress.

    Raises:
        ValueError: There are no batches, or the model returns NaN.
    """
    values: list[Tensor] = []
    classes: list[Tensor] = []
    with evaluating(model):
        for batch in batches:
            with torch.autocast(model.device.type, dtype=autocast_dtype, enabled=autocast_dtype is not None):
                logits = model(
                    pixel_values=batch["pixel_values"].to(model.device),
                    input_ids=batch["input_ids"].to(model.device),
                    attention_mask=batch["attention_mask"].to(model.device),
                ).logits
            best = logits.float().topk(min(top, logits.shape[-1]))
            values.append(best.values.cpu())
            classes.append(best.indices.cpu())
            if advance is not None:
                advance(sum(map(len, values)))
    if not values:
        raise ValueError("there are no rows: nothing can be predicted")
    found = torch.cat(values)
    if found.isnan().any():
        raise ValueError("the logits contain NaN; check the weights of the model")
    return found, torch.cat(classes)


@contextmanager
def evaluating(model: HasModes) -> Generator[None]:
    """Evaluation mode without gradients; every module gets its own mode back, frozen ones too."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        for module, mode in modes:
            module.training = mode
