"""The visual tokenizer, whose tokens stage 1 predicts."""

from __future__ import annotations

import dataclasses
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from torch import nn
from torch.nn import functional as F

from vlmo.folder.card import Usage
from vlmo.model.config import VQVisualTokenizerConfig
from vlmo.tasks.inputs import Reads
from vlmo.tasks.task import Losses, Objective, Settings, Task
from vlmo.types import Batch, normalize_pixels

if TYPE_CHECKING:
    from vlmo.model import VQVisualTokenizer

_SNIPPET = """\
from PIL import Image
from vlmo.model.visual_tokenizer import VQVisualTokenizer
from vlmo.processing import image_processor_for

model = VQVisualTokenizer.from_pretrained("path/to/this/folder").eval()
processor = image_processor_for(4 * model.config.patch_size)
inputs = processor(Image.open("image.png"), return_tensors="pt")
result = model.tokenize(inputs["pixel_values"], grid=(4, 4))  # a token for each patch
"""


def plain_fields(
    config_class: type, *, leave_out: tuple[str, ...] = ()
) -> list[tuple[str, Any, Any]]:
    """Return name, type and default of the fields that a Hugging Face configuration declares."""
    defaults = {field.name: field.default for field in dataclasses.fields(config_class)}
    return [
        (name, kind, dataclasses.field(default=defaults[name]))
        for name, kind in config_class.__annotations__.items()
        if name in defaults and name not in leave_out
    ]


# Hugging Face configurations cannot be frozen, nor shown as options; a plain dataclass with their
# fields can.
VisualTokenizerConfig: Any = dataclasses.make_dataclass(
    "VisualTokenizerConfig",
    plain_fields(VQVisualTokenizerConfig),
    frozen=True,
    namespace={"__module__": __name__},
)


class VisualTokenizerObjective(Objective):
    """Reconstruction of images from their visual tokens (VQ-VAE, "Learning")."""

    def forward(self, batch: Batch) -> Losses:
        """Return `loss` and its parts `reconstruction` and `commitment`, and `perplexity`."""
        output = self.model(batch["pixel_values"])
        return {
            "loss": output.reconstruction_loss + output.commitment_loss,
            "reconstruction": output.reconstruction_loss.detach(),
            "commitment": output.commitment_loss.detach(),
            "perplexity": output.perplexity,
        }


@dataclass(frozen=True)
class TokenizerTask(Task):
    """Trains the visual tokenizer whose tokens stage 1 predicts.

    Attributes:
        tokenizer: Sizes of the tokenizer.
    """

    name = "visual-tokenizer"
    title = "visual tokenizer"
    reads = Reads(text=False, streams=True, start=False)
    architectures = ("VQVisualTokenizer",)
    usage = Usage("turns an image into visual tokens, the targets of stage 1", snippet=_SNIPPET)
    tokenizer: VisualTokenizerConfig = VisualTokenizerConfig()

    def build_model(self, _settings: Settings) -> VQVisualTokenizer:
        """Return the tokenizer, which has sizes of its own."""
        return self.model_class()(VQVisualTokenizerConfig(**asdict(self.tokenizer)))

    def step(self, model: VQVisualTokenizer) -> nn.Module:
        """Return the tokenizer with its losses."""
        return VisualTokenizerObjective(model)

    def without_data(self) -> TokenizerTask:
        """Return the task without a codebook, whose upkeep goes by values."""
        return _WithoutCodebook(self.tokenizer)


class _WithoutCodebook(TokenizerTask):
    def step(self, model: VQVisualTokenizer) -> nn.Module:
        return _Autoencoder(model)


class _Autoencoder(Objective):
    def forward(self, batch: Batch) -> Losses:
        pixels = normalize_pixels(batch["pixel_values"])
        decoded = self.model._decode(self.model._encode(pixels))
        return {"loss": F.mse_loss(decoded, pixels)}
