"""Training of the visual tokenizer, the module that masked image modelling takes its targets from."""

from dataclasses import dataclass

from torch import Tensor, nn

from vlmo.model.visual_tokenizer import VQVisualTokenizer
from vlmo.types import Batch


@dataclass(frozen=True)
class VisualTokenizerObjectiveConfig:
    """Weights of the tokenizer's losses."""

    commitment_weight: float = 1.0
    """Weight of the distance between codes and codebook, against 1 for the error of the reconstruction."""

    def __post_init__(self) -> None:
        """Looks at the values.

        Raises:
            ValueError: A weight is below 0.
        """
        if self.commitment_weight < 0:
            raise ValueError(f"commitment_weight is {self.commitment_weight}; give a number from 0 up")


class VisualTokenizerObjective(nn.Module):
    """Reconstructs pictures from their tokens (VQ-VAE, "Learning")."""

    def __init__(self, model: VQVisualTokenizer, *, config: VisualTokenizerObjectiveConfig | None = None) -> None:
        super().__init__()
        self.model = model
        self.config = config or VisualTokenizerObjectiveConfig()

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """`loss` and its parts `reconstruction` and `commitment`, and `perplexity`; reads `pixel_values`."""
        output = self.model(batch["pixel_values"])
        loss = output.reconstruction_loss + self.config.commitment_weight * output.commitment_loss
        return {
            "loss": loss,
            "reconstruction": output.reconstruction_loss.detach(),
            "commitment": output.commitment_loss.detach(),
            "perplexity": output.perplexity,
        }
