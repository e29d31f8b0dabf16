"""The learning rate as a pure function of the step number."""

import math
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class ScheduleConfig:
    """Warm-up from nothing to the full rate, then decay."""

    warmup_steps: int = 0
    """Number of updates until the full rate is reached."""
    kind: Literal["linear", "cosine", "constant"] = "linear"
    """Way from the full rate, after the warm-up, to the lowest one at the end of the run."""
    min_ratio: float = 0.0
    """Lowest rate, as a fraction of the full one."""

    def __post_init__(self) -> None:
        """Looks at the values.

        Raises:
            ValueError: There is no such kind, or a number is out of its range.
        """
        if self.warmup_steps < 0:
            raise ValueError(f"warmup_steps is {self.warmup_steps}; give 0 or more")
        if self.kind not in {"linear", "cosine", "constant"}:
            raise ValueError(f"schedule kind is {self.kind!r}; give 'linear', 'cosine' or 'constant'")
        if not 0 <= self.min_ratio <= 1:
            raise ValueError(f"min_ratio is {self.min_ratio}; give a fraction from 0 to 1")


def lr_at(step: int, *, base_lr: float, max_steps: int, config: ScheduleConfig) -> float:
    """Learning rate of the update that follows `step` finished updates.

    No update is wasted on a rate of 0: the first of w warm-up updates has 1/w of the full rate, and the decay would
    reach its end at `max_steps`, one update after the last.
    """
    if step < config.warmup_steps:
        return base_lr * (step + 1) / config.warmup_steps
    if config.kind == "constant":
        return base_lr
    done = min(1.0, (step - config.warmup_steps) / max(1, max_steps - config.warmup_steps))
    remaining = 1 - done if config.kind == "linear" else (1 + math.cos(math.pi * done)) / 2
    return base_lr * (config.min_ratio + (1 - config.min_ratio) * remaining)
