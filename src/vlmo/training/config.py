"""Settings of the training loop and its engine."""

from dataclasses import asdict, dataclass, field
from typing import Literal

Precision = Literal["float32", "bf16"]


@dataclass(frozen=True)
class EngineConfig:
    """Distribution over processes, and what is traded for memory and time; results do not depend on it.

    On one process `data_parallel` means nothing. The other two act on each Multiway block.
    """

    data_parallel: Literal["ddp", "fsdp"] = "ddp"
    """"ddp" keeps all weights on every process; "fsdp" (FSDP2) a share of weights, gradients and optimizer."""
    activation_checkpointing: bool = False
    """Keep only the input of each block, and run the block once more in the backward pass."""
    compile: bool = False
    """torch.compile each block: minutes at the start, then faster steps."""

    def __post_init__(self) -> None:
        """Validate the kind of data parallelism; ValueError if there is no such one."""
        if self.data_parallel not in {"ddp", "fsdp"}:
            raise ValueError(f"data_parallel is {self.data_parallel!r}; give 'ddp' or 'fsdp'")


@dataclass(frozen=True)
class TrainerConfig:
    """Length of the run, numerics, and how often to log, save and evaluate."""

    max_steps: int
    """Number of optimizer updates, skipped ones included."""
    precision: Literal["float32", "bf16", "auto"] = "float32"
    """Type of the activations (autocast); weights, losses and the optimizer are float32. "auto": bf16 where the main
    process's device has instructions for it, else float32; the same run may go on in the other one elsewhere."""
    engine: EngineConfig = field(default_factory=EngineConfig)
    """Distribution over processes, and what is traded for memory and time."""
    clip_norm: float | None = None
    """Largest norm of the gradient of all parameters; None leaves it alone."""
    log_every: int = 10
    """Steps between lines of metrics.jsonl."""
    save_every: int = 500
    """Steps between training states; there is always one at the end."""
    keep_states: int = 2
    """Number of training states that are kept."""
    async_save: bool = True
    """Write training states in the background, from a copy in the memory of the CPU."""
    eval_every: int | None = None
    """Steps between evaluations; None evaluates at the end only."""
    max_bad_steps: int = 10
    """Skipped updates in a row that end the run."""
    report_to: tuple[Literal["wandb", "trackio"], ...] = ()
    """Services that get the metrics too, beside metrics.jsonl and TensorBoard; their packages must be installed."""

    def __post_init__(self) -> None:
        """Raise ValueError for an unknown precision or service, a count below 1, or a norm that is not above 0."""
        if self.precision not in {"float32", "bf16", "auto"}:
            raise ValueError(f"precision is {self.precision!r}; give 'float32', 'bf16' or 'auto'")
        if unknown := sorted(set(self.report_to) - {"wandb", "trackio"}):
            raise ValueError(f"report_to names {', '.join(unknown)}; give 'wandb', 'trackio' or both")
        for name in ("max_steps", "log_every", "save_every", "keep_states", "eval_every", "max_bad_steps"):
            value = asdict(self)[name]
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; give 1 or more")
        if self.clip_norm is not None and self.clip_norm <= 0:
            raise ValueError(f"clip_norm is {self.clip_norm}; give a number above 0, or None not to clip")
