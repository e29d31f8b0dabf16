"""Image classification: fine-tuning as BEiT on ImageNet, a linear probe, and zero-shot classes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

import torch
from jaxtyping import Float, Int
from PIL import Image
from rich.console import Console
from torch import Tensor, nn
from torch.nn import functional as F

from vlmo.checkpoints.loading import load_model
from vlmo.data.decoding import decode_image
from vlmo.data.examples import Examples, RowExamples
from vlmo.data.rows import column
from vlmo.evaluation.classification import PROMPTS, fit_linear_probe, zero_shot_classifier
from vlmo.evaluation.metrics import Metric, topk_accuracy
from vlmo.folder.card import Usage
from vlmo.processing import TransformConfig, eval_transform
from vlmo.released import notes_folder
from vlmo.tasks.evaluation_set import EvaluationSet
from vlmo.tasks.labels import best_labels, check_names, label_settings
from vlmo.tasks.result import Prediction, TaskResult
from vlmo.tasks.retrieval import RetrievalTask
from vlmo.tasks.run_context import RunContext
from vlmo.tasks.task import Inputs, Task
from vlmo.types import Batch, normalize_pixels

if TYPE_CHECKING:
    from datasets import Dataset

    from vlmo.model import VLMoForImageClassification, VLMoPreTrainedModel

Features = Literal["mean", "class"]
"""Feature of an image: the mean of its patches, or the class token; after the final norm."""
_GUESSES = 5


def class_names(dataset: Dataset) -> list[str]:
    """Return the names of the classes of images in the order of their numbers; ValueError for rows without classes."""
    from datasets import ClassLabel

    feature = dataset.features.get("label")
    if not isinstance(feature, ClassLabel):
        raise ValueError(
            f"these rows have no classes (a column label of type ClassLabel; their columns: "
            f"{', '.join(dataset.column_names)}); give a set for classification, such as imagenet (vlmo data prepare)"
        )
    return list(feature.names)


def checked_labels(dataset: Dataset) -> list[int]:
    """Return the class numbers of all rows; ValueError for rows without classes, or a number that is none."""
    num_classes = len(class_names(dataset))
    labels: list[int | None] = column(dataset, "label")
    checked = []
    for row, label in enumerate(labels):
        if label is None or not 0 <= label < num_classes:
            name = column(dataset, "image_id")[row]
            raise ValueError(
                f"sample {row} (image_id {name!r}) has label {label}; expected a class from 0 to {num_classes - 1}. "
                "Leave rows without a class out"
            )
        checked.append(label)
    return checked


@dataclass(frozen=True)
class ClassSet(EvaluationSet):
    """Images of a split with their classes; outputs are the logits of all rows, whichever classifier they are from."""

    task: ClassVar[str] = "classification"
    hub_task: ClassVar[str] = "image-classification"
    options: ClassVar[tuple[str, ...]] = ("method",)
    batch_size: ClassVar[int] = 128

    @classmethod
    def check_rows(cls, rows: Dataset, _source: str) -> None:
        """Raise ValueError for rows without classes, and for numbers that are no class."""
        checked_labels(rows)

    @property
    def names(self) -> list[str]:
        """Names of the column `label`."""
        return class_names(self.rows)

    @property
    def labels(self) -> Int[Tensor, " rows"]:
        """Class number of each row."""
        return torch.tensor(checked_labels(self.rows))

    def encode(
        self,
        model: Any,
        run: Callable[[Tensor], Tensor],
        *,
        batch_size: int | None = None,
        console: Console | None = None,
    ) -> Float[Tensor, "rows dim"]:
        """Return `run` of the pixel values of all rows, on the CPU; the processes share the rows."""
        transform = eval_transform(TransformConfig(image_size=model.config.image_size))

        def of_batch(rows: range) -> Tensor:
            cells: Any = self.rows[rows.start : rows.stop]
            pixels = torch.stack([transform(decode_image(cell)) for cell in cells["image"]])
            return run(pixels.to(model.device)).float().cpu()

        return torch.cat(self.map(of_batch, model, batch=batch_size or self.batch_size, console=console))

    def outputs(
        self, model: Any, *, batch_size: int | None = None, console: Console | None = None
    ) -> Float[Tensor, "rows classes"]:
        """Return the logits of a classifier."""
        return self.encode(model, lambda pixels: model(pixels).logits, batch_size=batch_size, console=console)

    def metrics(self, outputs: Float[Tensor, "rows classes"]) -> list[Metric]:
        """Return top-1 and top-5 accuracy."""
        return topk_accuracy(outputs, self.labels)

    def predictions(self, outputs: Float[Tensor, "rows classes"]) -> list[Prediction]:
        """Return the first guess of each row with its share, and the next ones in their order."""
        names, best = self.names, outputs.softmax(dim=-1).topk(min(_GUESSES, outputs.shape[1]))
        rows = zip(
            column(self.rows, "image_id"), best.values[:, 0].tolist(), best.indices.tolist(), self.labels.tolist(),
            strict=True,
        )  # fmt: skip
        return [
            {
                "image_id": image_id,
                "prediction": names[guesses[0]],
                "confidence": round(share, 4),
                "guesses": [names[number] for number in guesses],
                "label": names[label],
            }
            for image_id, share, guesses, label in rows
        ]


@dataclass(frozen=True)
class ClassificationConfig:
    """Mixup and cutmix; the defaults are those of BEiT's recipe for ImageNet."""

    mixup: float = 0.8
    """Alpha of mixup, which adds images; 0 leaves it out."""
    cutmix: float = 1.0
    """Alpha of cutmix, which puts a part of one image into another; 0 leaves it out."""
    mix_probability: float = 1.0
    """Share of the micro-batches that are mixed."""
    cutmix_share: float = 0.5
    """Share of cutmix among them, where mixup is on too."""
    label_smoothing: float = 0.1
    """Share of a label that is spread over all classes."""

    def __post_init__(self) -> None:
        """Raise ValueError if mixing is below 0, or a share is not from 0 to 1."""
        if self.mixup < 0 or self.cutmix < 0:
            raise ValueError(f"mixup is {self.mixup} and cutmix {self.cutmix}; give numbers from 0 up")
        shares = (self.mix_probability, self.cutmix_share, self.label_smoothing)
        if not all(0 <= share <= 1 for share in shares) or self.label_smoothing == 1:
            raise ValueError(f"mix_probability, cutmix_share, label_smoothing are {shares}; give 0 to 1 (last below)")


class ClassificationObjective(nn.Module):
    """Cross-entropy of classes, with mixup and cutmix while training (BEiT's recipe)."""

    def __init__(self, model: VLMoForImageClassification, *, config: ClassificationConfig | None = None) -> None:
        super().__init__()
        from torchvision.transforms import v2  # takes seconds

        self.model = model
        self.config = config = config or ClassificationConfig()
        share = config.cutmix_share if config.mixup and config.cutmix else float(config.cutmix > 0)
        # An alpha of 0 is refused even where it is never used.
        kinds = (v2.CutMix, config.cutmix), (v2.MixUp, config.mixup)
        mixes = [kind(alpha=alpha or 1.0, num_classes=model.config.num_labels) for kind, alpha in kinds]
        self._mix = v2.RandomChoice(mixes, p=[share, 1 - share])

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return `loss` and `accuracy` (of mixed images, the share whose larger part is recognised); reads `labels`.

        Every process has equally many rows, so the mean over processes of each value is that of the global batch.
        Mixed are rows of one micro-batch of one process, each with the one before it.
        """
        pixels, labels = normalize_pixels(batch["pixel_values"]), batch["labels"]
        config = self.config
        share, classes = config.label_smoothing, cast("int", self.model.config.num_labels)
        targets = F.one_hot(labels, classes).float()
        mixes = self.training and (config.mixup > 0 or config.cutmix > 0)
        if mixes and float(torch.rand(())) < config.mix_probability:
            pixels, targets = self._mix(pixels, labels)
        targets = targets * (1 - share) + share / classes
        output = self.model(pixel_values=pixels, labels=targets)
        right = output.logits.detach().argmax(dim=-1) == targets.argmax(dim=-1)
        return {"loss": output.loss, "accuracy": right.float().mean()}


@dataclass(frozen=True)
class ClassificationTask(Task):
    """Fine-tuning on classes of images, as BEiT on ImageNet."""

    name: ClassVar[str] = "classification"
    title: ClassVar[str] = "fine-tuning on classes of images"
    reads_text: ClassVar[bool] = False
    evaluation: ClassVar[type[EvaluationSet] | None] = ClassSet
    num_classes: ClassVar[int | None] = 1000
    architectures = ("VLMoForImageClassification",)
    usage: ClassVar[Usage | None] = Usage("names the class of an image", "image-classification", '"image.png"')
    inputs: ClassVar[str] = "images after --image"
    losses: ClassificationConfig = ClassificationConfig()
    """Mixing of images and classes."""
    layer_decay: float = 0.65
    """Factor on the learning rate from each layer to the one below it; 1 for equal rates."""

    def objective(self, run: RunContext) -> nn.Module:
        """Return the loss over the classes of the data."""
        model = self.build_model(run.model | label_settings(class_names(run.rows)))
        run.start(model)
        return ClassificationObjective(model, config=self.losses)

    def examples(self, run: RunContext) -> Examples:
        """Return images with their class."""
        labels = torch.tensor(checked_labels(run.rows))
        return RowExamples(
            run.rows, labels=labels.__getitem__, cache_images=run.recipe.data.cache_images, **self.contents(run)
        )

    def lr_scale(self, model: nn.Module) -> dict[str, float]:
        """Return factors that fall from the head to the embeddings."""
        from vlmo.model.stages import layer_decay_factors

        return layer_decay_factors(cast("VLMoPreTrainedModel", model), decay=self.layer_decay)

    @classmethod
    def evaluate(cls, folder: str | Path, *, options: dict[str, Any], **arguments: Any) -> TaskResult:
        """Return the accuracies of a model folder on a split; arguments and errors as in `Task.evaluate`.

        The option `method` is "head" (the model's own classifier), "linear-probe" or "zero-shot" (see the functions
        below), else ValueError.
        """
        methods = {"linear-probe": evaluate_linear_probe, "zero-shot": evaluate_zero_shot}
        method = options.get("method", "head")
        if method == "head":
            return super().evaluate(folder, options={}, **arguments)
        if method not in methods:
            raise ValueError(f"method is {method!r}; give one of head, {', '.join(methods)}")
        del arguments["loaded"]
        return methods[method](folder, **arguments)

    @classmethod
    def accepts(cls, inputs: Inputs) -> bool:
        """Return True for images alone."""
        return bool(inputs.images) and not inputs.texts and inputs.question is None

    @classmethod
    def answer(cls, model: Any, processor: Any, images: Sequence[Image.Image], inputs: Inputs) -> list[Prediction]:
        """Return the likeliest classes of each image, each with its share."""
        del processor
        transform = eval_transform(TransformConfig(image_size=model.config.image_size))
        rows: list[Prediction] = []
        for file, image in zip(inputs.images, images, strict=True):
            shares = model(transform(image)[None].to(model.device)).logits[0].float().softmax(dim=-1)
            whose = {"image": str(file)} if len(images) > 1 else {}
            rows += [whose | row for row in best_labels(model, shares, top=inputs.top, kind="class")]
        return rows


def evaluate_linear_probe(
    folder: str | Path,
    *,
    split: str,
    features: Features = "mean",
    l2: float | None = None,
    device: str | None = None,
    how: dict[str, Any] | None = None,
    **read: Any,
) -> TaskResult:
    """Return the accuracies of a linear classifier on the image encoder of any model folder, which stays as it is.

    The classifier is fitted on the split "train" without augmentation; see `fit_linear_probe`.

    Args:
        features: The mean of the patches, or the class token, after the final norm.
        how: `batch_size` and `console`, as in `Task.evaluate`.
        read: Other arguments of `EvaluationSet.read`, for both splits.

    Raises:
        ValueError: The folder holds no VLMo model, or the splits have other classes.
    """
    given: dict[str, Any] = {"notes": notes_folder(folder)} | read
    how = how or {}
    model = load_model(folder, device=device, hint="A linear probe needs its image encoder.").backbone
    train, test = (ClassSet.read(split=part, **given) for part in ("train", split))
    check_names(train.names, test.names, owner=f"{train.source}, train", source=f"{test.source}, {split}")

    def encode(pixels: Tensor) -> Tensor:
        states = cast(Tensor, model(pixel_values=pixels).image_hidden_state)
        return states[:, 1:].mean(dim=1) if features == "mean" else states[:, 0]

    probe = fit_linear_probe(train.encode(model, encode, **how), train.labels, num_classes=len(train.names), l2=l2)
    settings = {"method": "linear probe", "train_split": "train", "features": features, "l2": probe.l2}
    return replace(test, settings=settings).result(probe(test.encode(model, encode, **how)))


def evaluate_zero_shot(
    folder: str | Path,
    *,
    prompts: Sequence[str] = PROMPTS,
    device: str | None = None,
    how: dict[str, Any] | None = None,
    **read: Any,
) -> TaskResult:
    """Return the accuracies of a dual encoder that never saw the classes: the class whose sentences fit best.

    Args:
        prompts: Sentences with `{}` for the name of the class; a class is the mean of its sentences' vectors.
        how: `batch_size` and `console`, as in `Task.evaluate`.
        read: Arguments of `EvaluationSet.read`.

    Raises:
        ValueError: The folder holds no model that retrieves, or a prompt has no place for the name.
    """
    model, processor = RetrievalTask.load(folder, device=device)
    given: dict[str, Any] = {"notes": notes_folder(folder)} | read
    rows = ClassSet.read(**given)

    def embed_texts(texts: list[str]) -> Tensor:
        with torch.inference_mode():
            encoded: Any = processor(text=texts, return_tensors="pt").to(model.device)
            return model.get_text_features(**encoded).float().cpu()

    classes = zero_shot_classifier(embed_texts, rows.names, prompts=prompts)
    vectors = rows.encode(model, lambda pixels: model.get_image_features(pixel_values=pixels), **(how or {}))
    scale = model.contrast_head.logit_scale.detach().float().exp().item()
    return replace(rows, settings={"method": "zero-shot", "prompts": list(prompts)}).result(scale * vectors @ classes.T)
