"""A task of your own on one screen: how bright is an image?

In this folder: `vlmo train brightness --data photos --import add_task`, then `vlmo evaluate` and `vlmo predict` with
the same `--import`.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.modeling_outputs import ImageClassifierOutput

from vlmo import recipes
from vlmo.data.decoding import decode_image
from vlmo.data.examples import Contents, RowExamples
from vlmo.folder.card import Usage
from vlmo.model import VLMoConfig, VLMoModel, VLMoPreTrainedModel
from vlmo.processing import EvalTransform, TransformConfig
from vlmo.tasks import Accepts, EvaluationSet, Inputs, Metric, Reads, RunContext, Task, register


class VLMoForBrightness(VLMoPreTrainedModel):
    """Image encoder with one number, from 0 (black) to 1 (white)."""

    def __init__(self, config: VLMoConfig) -> None:
        super().__init__(config)
        self.vlmo = VLMoModel(config, add_pooling_layer=False)
        self.brightness = nn.Linear(config.hidden_size, 1)
        self.post_init()

    def forward(self, pixel_values: Tensor) -> ImageClassifierOutput:
        """Return a number for each image as `logits`."""
        states = self.vlmo(pixel_values=pixel_values).last_hidden_state
        return ImageClassifierOutput(logits=self.brightness(states[:, 0])[:, 0])


class BrightnessObjective(nn.Module):
    """Squared error."""

    def __init__(self, model: VLMoForBrightness) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return `loss`."""
        return {"loss": F.mse_loss(self.model(batch["pixel_values"]).logits, batch["labels"])}


def labelled(rows: Any, *, size: int) -> RowExamples:
    """Return images with their brightness."""
    labels = [np.asarray(decode_image(cell).convert("L")).mean() / 255 for cell in rows["image"]]
    contents = Contents(seed=0, transform=EvalTransform(TransformConfig(image_size=size)))
    return RowExamples(rows, contents, labels=torch.tensor(labels).float().__getitem__)


@dataclass(frozen=True)
class BrightnessSet(EvaluationSet):
    """Images of a split, to measure a model on."""

    task = "brightness"
    hub_task = "image-regression"

    def predict(self, model: Any, rows: range) -> list[dict[str, Any]]:
        """Return a prediction for each image."""
        chosen = self.rows.select(rows)
        examples = labelled(chosen, size=model.config.image_size)
        batch = examples.collate([examples[0, row] for row in range(len(rows))])
        values = model(batch["pixel_values"].to(model.device)).logits.tolist()
        found = zip(chosen["image_id"], values, batch["labels"].tolist(), strict=True)
        return [
            {"image_id": name, "brightness": value, "label": label} for name, value, label in found
        ]

    def metrics(self, outputs: list[dict[str, Any]]) -> list[Metric]:
        """Return the share of images that are nearly right."""
        close = [abs(row["brightness"] - row["label"]) < 0.2 for row in outputs]
        meaning = "share of images whose brightness is less than 0.2 off"
        return [Metric("close", sum(close) / len(close), chance=0.4, n=len(close), meaning=meaning)]


@register
@dataclass(frozen=True)
class BrightnessTask(Task):
    """Fine-tuning on the brightness of images."""

    name = "brightness"
    title = "fine-tuning on brightness"
    architectures = ("VLMoForBrightness",)
    usage = Usage("tells how bright an image is", "image-feature-extraction", '"image.png"')
    reads = Reads(text=False)
    evaluation = BrightnessSet
    accepts = Accepts("one --image")
    weight: float = 1.0
    """A setting of the training: `--task.weight`."""

    @classmethod
    def model_class(cls) -> type[VLMoForBrightness]:
        """Return the model that is trained and loaded."""
        return VLMoForBrightness

    def step(self, model: VLMoForBrightness) -> nn.Module:
        """Return the loss that a training step calls with a batch."""
        return BrightnessObjective(model)

    def examples(self, run: RunContext) -> RowExamples:
        """Return the training examples."""
        return labelled(run.rows, size=run.model["image_size"])

    @classmethod
    def answer(
        cls, model: Any, processor: Any, images: list[Image.Image], inputs: Inputs
    ) -> list[dict[str, Any]]:
        """Return the brightness of an image."""
        del processor, inputs
        pixels = EvalTransform(TransformConfig(image_size=model.config.image_size))(images[0])
        return [{"brightness": model(pixels[None].to(model.device)).logits.item()}]


recipes.register("brightness", replace(recipes.find_recipe("shapes-stage1"), task=BrightnessTask()))
