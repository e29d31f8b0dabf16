"""Settings of the training loop, its engine, and adapters."""

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

ParamGroup = dict[str, Any]
"""Parameters of an optimizer that share their settings, as PyTorch has it."""
Precision = Literal["float32", "bf16"]

LORA_LAYERS = {"qkv": r"qkv\.\w+", "projection": r"projection\.\w+", "fc1": "fc1", "fc2": "fc2"}
"""Linear layers of a block, and their names in it; attention has one for all tokens, or one for each modality."""


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


@dataclass(frozen=True)
class TrainerConfig:
    """Length of the run, numerics, and how often to log, save and evaluate."""

    max_steps: int
    """Number of optimizer updates, skipped ones included."""
    precision: Literal["float32", "bf16", "auto"] = "float32"
    """Type of the activations (autocast); all else but Muon's steps is float32. "auto": bf16 where the main process's
    device has instructions for it, else float32; the same run may go on in the other one elsewhere."""
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
    eval_every: int | None = None
    """Steps between evaluations; None evaluates at the end only."""

    def __post_init__(self) -> None:
        """Raise ValueError for a count below 1, or a norm that is not above 0."""
        for name in ("max_steps", "log_every", "save_every", "keep_states", "eval_every"):
            value = asdict(self)[name]
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; give 1 or more")
        if self.clip_norm is not None and self.clip_norm <= 0:
            raise ValueError(
                f"clip_norm is {self.clip_norm}; give a number above 0, or None not to clip"
            )


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters of linear layers. The backbone is frozen; heads, pooler and types are trained whole."""

    rank: int | None = None
    """Rank of the adapters; None trains the whole model."""
    alpha: float | None = None
    """Adapters are scaled by alpha / rank; None is twice the rank."""
    dropout: float = 0.0
    """Dropout on the input of the adapters."""
    targets: tuple[str, ...] = tuple(LORA_LAYERS)
    """Linear layers of the blocks that get one: of attention (qkv, projection) and of the experts (fc1, fc2)."""

    def __post_init__(self) -> None:
        """Raise ValueError if a number is out of its range, or there is no such layer."""
        if (self.rank is not None and self.rank < 1) or (
            self.alpha is not None and self.alpha <= 0
        ):
            raise ValueError(
                f"lora.rank is {self.rank} and lora.alpha {self.alpha}; give a rank from 1 up, alpha > 0"
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"lora.dropout is {self.dropout}; give a share from 0 to below 1")
        if not self.targets or not set(self.targets) <= set(LORA_LAYERS):
            raise ValueError(
                f"lora.targets is {list(self.targets)}; give one or more of {', '.join(LORA_LAYERS)}"
            )
