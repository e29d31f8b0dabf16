"""A task in one file: declared, registered, estimated, trained, measured and asked through public entry points."""

import dataclasses
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import huggingface_hub
import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode
from transformers.modeling_outputs import ImageClassifierOutput

from vlmo.data.decoding import decode_image
from vlmo.data.examples import RowExamples
from vlmo.data.rows import column
from vlmo.evaluation.inference import BATCH
from vlmo.folder.card import Usage
from vlmo.model import VLMoConfig, VLMoModel, VLMoPreTrainedModel
from vlmo.processing import TransformConfig, eval_transform
from vlmo.recipes import Recipe, find_recipe
from vlmo.recipes.schema import DataConfig, model_config
from vlmo.run import build
from vlmo.run.estimate import estimate
from vlmo.tasks import TASKS, EvaluationSet, Inputs, Metric, Task, TaskResult, evaluate, predict, register, task_of
from vlmo.training import OptimizerConfig, TrainerConfig, read_metrics

STEPS = 20


class VLMoForBrightness(VLMoPreTrainedModel):
    """Regression of the mean brightness of an image, 0 to 1."""

    def __init__(self, config: VLMoConfig) -> None:
        super().__init__(config)
        self.vlmo = VLMoModel(config, add_pooling_layer=False)
        self.brightness = nn.Linear(config.hidden_size, 1)
        self.post_init()

    def forward(self, pixel_values: Tensor) -> ImageClassifierOutput:
        states = self.vlmo(pixel_values=pixel_values).last_hidden_state
        return ImageClassifierOutput(logits=self.brightness(states[:, 0])[:, 0])


class BrightnessObjective(nn.Module):
    def __init__(self, model: VLMoForBrightness) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"loss": F.mse_loss(self.model(batch["pixel_values"]).logits, batch["labels"])}


def brightness_of(image: Image.Image) -> float:
    return float(np.asarray(image.convert("L")).mean()) / 255


@dataclass(frozen=True)
class BrightnessSet(EvaluationSet):
    task: ClassVar[str] = "brightness"
    hub_task: ClassVar[str] = "image-regression"
    batch_size: ClassVar[int] = BATCH

    def predict(self, model: Any, rows: range) -> list[dict[str, Any]]:
        examples = BrightnessTask.examples_of(self.rows.select(rows))
        pixels = torch.stack([examples[0, row]["pixel_values"] for row in range(len(rows))])
        values = model(pixels.to(model.device)).logits.tolist()
        names = column(self.rows, "image_id")
        return [
            {"image_id": names[row], "brightness": value, "label": float(examples[0, place]["labels"])}
            for place, (row, value) in enumerate(zip(rows, values, strict=True))
        ]

    def metrics(self, outputs: list[dict[str, Any]]) -> list[Metric]:
        close = float(np.mean([abs(row["brightness"] - row["label"]) < 0.2 for row in outputs]))
        meaning = "share of images whose brightness is less than 0.2 off"
        return [Metric("close", close, chance=0.4, n=len(outputs), meaning=meaning)]


@dataclass(frozen=True)
class BrightnessTask(Task):
    """Fine-tuning on the brightness of images."""

    name: ClassVar[str] = "brightness"
    title: ClassVar[str] = "fine-tuning on brightness"
    reads_text: ClassVar[bool] = False
    evaluation: ClassVar[type[EvaluationSet] | None] = BrightnessSet
    architectures = ("VLMoForBrightness",)
    usage: ClassVar[Usage | None] = Usage("tells how bright an image is", "image-feature-extraction", '"image.png"')
    inputs: ClassVar[str] = "one --image"
    weight: float = 1.0
    """A setting of its own."""

    @classmethod
    def model_class(cls) -> type[VLMoForBrightness]:
        return VLMoForBrightness

    def objective(self, run: Any) -> nn.Module:
        model = self.build_model(run.model)
        run.start(model)
        return BrightnessObjective(model)

    def examples(self, run: Any) -> RowExamples:
        return self.examples_of(run.rows)

    @staticmethod
    def examples_of(rows: Any) -> RowExamples:
        labels = torch.tensor([brightness_of(decode_image(cell)) for cell in rows["image"]])
        return RowExamples(
            rows, seed=0, transform=eval_transform(TransformConfig(image_size=48)), labels=labels.__getitem__
        )

    @classmethod
    def answer(cls, model: Any, processor: Any, images: Any, inputs: Inputs) -> list[dict[str, Any]]:
        del processor, inputs
        pixels = eval_transform(TransformConfig(image_size=48))(images[0])[None]
        return [{"brightness": model(pixels.to(model.device)).logits.item()}]


@pytest.fixture(scope="module", autouse=True)
def registered():
    register(BrightnessTask)  # by a decorator, where it is not for one test alone
    yield
    TASKS.pop("brightness")


def test_one_file_is_all_that_a_task_needs(pictures, tmp_path):
    base = find_recipe("shapes-stage1")
    recipe: Recipe = dataclasses.replace(
        base,
        task=BrightnessTask(),
        model=model_config(VLMoConfig.tiny(num_fusion_layers=0, initializer_range=0.2, layer_scale_init=None)),
        data=DataConfig(source=str(pictures)),
        loader=dataclasses.replace(base.loader, global_batch_size=8),
        optimizer=OptimizerConfig(lr=3e-3),
        trainer=TrainerConfig(max_steps=STEPS, log_every=1),
        init=None,
        evaluate_on=str(pictures),
        evaluate_split="train",
    )
    assert '"task_name": "BrightnessTask"' in recipe.to_json()
    needs = estimate(recipe)
    with FlopCounterMode(display=False) as counter:
        model = BrightnessTask().build_model(asdict(recipe.model)).train()
        model.set_attn_implementation("eager")
        model(torch.zeros(8, 3, 64, 64)).logits.sum().backward()
    assert needs.flops_per_step == pytest.approx(counter.get_total_flops(), rel=0.01)
    assert needs.parameters == sum(parameter.numel() for parameter in model.parameters())
    result = build(recipe, run_dir=tmp_path, title="brightness").fit()
    losses = [line["loss"] for line in read_metrics(tmp_path) if "loss" in line]
    assert sum(losses[-3:]) < sum(losses[:3])
    folder = result.model_dir
    assert task_of(folder) is BrightnessTask
    assert "fine-tuning on brightness" in (folder / "README.md").read_text()
    card = huggingface_hub.ModelCard.load(folder / "README.md")
    assert card.data.pipeline_tag == "image-feature-extraction"
    for part in ("`VLMoForBrightness`, which tells how bright", 'run("image.png")', "less than 0.2 off"):
        assert part in card.text

    measured: TaskResult = evaluate(folder, source=str(pictures), split="train", device="cpu")
    assert measured.task == "brightness"
    assert measured.metrics["close"] == result.metrics["train/close"]
    assert len(measured.predictions) == 32

    found = predict(folder, Inputs((pictures / "0.png",)), device="cpu")
    expected = next(row["brightness"] for row in measured.predictions if row["image_id"].startswith("0."))
    assert found.rows[0]["brightness"] == pytest.approx(expected, abs=1e-4)
    with (console := Console(width=80)).capture() as shown:
        console.print(found.table())
    assert "brightness" in shown.get()
