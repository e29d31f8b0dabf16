"""Captions: describe an image in a sentence, word by word (BEiT-3, "Image Captioning")."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from PIL import Image
from rich.console import Console
from torch import Tensor, nn

from vlmo.data.decoding import decode_image, image_at
from vlmo.data.examples import Contents
from vlmo.data.listing import IMAGE_SUFFIXES, walk
from vlmo.data.masking import IGNORED, WordMaskConfig
from vlmo.data.rows import arrow_table, column, read_lines, select_rows, to_lines
from vlmo.evaluation.metrics import Metric, caption_metrics
from vlmo.folder.atomic import naming_refusal
from vlmo.folder.card import Usage
from vlmo.lazy import need_package
from vlmo.losses.masked import accuracy, masked_loss
from vlmo.processing import EvalTransform
from vlmo.processing.transforms import by_shape
from vlmo.progress import Progress
from vlmo.tasks.evaluation_set import EvaluationSet
from vlmo.tasks.inputs import Accepts, Inputs, Reads
from vlmo.tasks.result import Prediction
from vlmo.tasks.task import Losses, Objective, RunContext, Task
from vlmo.types import Batch

if TYPE_CHECKING:
    from vlmo.model import VLMoForImageCaptioning
    from vlmo.processing import VLMoProcessor

_SNIPPET = """\
from vlmo import VLMoForImageCaptioning, VLMoProcessor

model = VLMoForImageCaptioning.from_pretrained("path/to/this/folder").eval()
processor = VLMoProcessor.from_pretrained("path/to/this/folder")
inputs = processor(images="image.png", return_tensors="pt")
ids = model.generate(**inputs, tokenizer=processor.tokenizer)
result = processor.batch_decode(ids, skip_special_tokens=True)[0]
"""


def describe(
    model: VLMoForImageCaptioning,
    processor: VLMoProcessor,
    images: Sequence[Image.Image | Float[Tensor, "3 size size"]],
    **options: int,
) -> list[str]:
    """Return captions of images or their pixel values.

    `options` are those of `VLMoForImageCaptioning.generate`.
    """
    transform = EvalTransform.of(processor)

    def describe_shape(pixels: list[Tensor]) -> list[str]:
        batch = torch.stack(pixels).to(model.device)
        ids = model.generate(batch, tokenizer=processor.tokenizer, **options)
        return processor.batch_decode(ids, skip_special_tokens=True)

    # One batch for every shape, as images may keep their aspect.
    pixels = [image if isinstance(image, Tensor) else transform(image) for image in images]
    return by_shape(pixels, describe_shape)


class CaptionSet(EvaluationSet):
    """Images of a split with true captions; an output is the prediction for an image."""

    task = "captioning"
    hub_task = "image-to-text"
    reads = Reads(caption=True)
    batch_size = 32

    def __post_init__(self) -> None:
        """Raise ModuleNotFoundError without the metrics' package, before captions are made."""
        need_package("pycocoevalcap", extra="captions", user="measuring captions")

    def predict(self, model: VLMoForImageCaptioning, rows: range) -> list[Prediction]:
        """Return captions of images, beside the true ones."""
        dataset = select_rows(self.rows, rows)
        predictions: list[Prediction] = arrow_table(dataset, ["image_id", "captions"]).to_pylist()
        images = [decode_image(cell) for cell in column(dataset, "image")]
        captions = describe(model, self.processor, images)
        for row, caption in zip(predictions, captions, strict=True):
            row["caption"] = caption
        return predictions

    def metrics(self, outputs: list[Prediction]) -> list[Metric]:
        """Return CIDEr, BLEU-4 and the share of captions that are a true one."""
        return caption_metrics([row["caption"] for row in outputs], column(self.rows, "captions"))


class CaptioningObjective(Objective):
    """Masked words of captions, predicted from the image and the words before them.

    BEiT-3, "Image Captioning".
    """

    def __init__(self, model: VLMoForImageCaptioning, task: CaptioningTask) -> None:
        super().__init__(model)
        self.task = task

    def forward(self, batch: Batch) -> Losses:
        """Return `loss` (= `caption`) and `caption_accuracy`, the share of masked words hit."""
        task = self.task
        masked = batch["mlm_labels"] != IGNORED
        # Causal: a word sees the image and the words before it.
        encoded = self.model.vlmo.encode(
            batch["pixel_values"],
            batch["mlm_input_ids"],
            batch["attention_mask"],
            wanted=masked,
            causal=True,
        )
        logits = self.model.mlm_head(encoded.tokens)
        labels = batch["mlm_labels"].flatten().index_select(0, encoded.positions)
        # As BEiT-3's published code, which counts all words in the first steps.
        drop_worst = task.drop_worst
        if drop_worst and int(batch["step"]) <= task.drop_worst_after:
            drop_worst = 0.0
        loss = masked_loss(
            logits, labels, label_smoothing=task.label_smoothing, drop_worst=drop_worst
        )
        return {
            "loss": loss,
            "caption": loss.detach(),
            "caption_accuracy": accuracy(logits, labels),
        }


@dataclass(frozen=True)
class CaptioningTask(Task):
    """Fine-tuning for captions; the defaults are those of BEiT-3's published code.

    Attributes:
        mask_probability: Share of the tokens of a caption that are masked.
        label_smoothing: Share of a word that is spread over all words.
        drop_worst: Share of the masked words, those with the largest losses, that is left out
            later.
        drop_worst_after: Steps after which `drop_worst` begins.
    """

    name = "captioning"
    title = "fine-tuning for captions"
    reads = Reads(caption=True, masks_words=True, streams=True)
    evaluation = CaptionSet
    architectures = ("VLMoForImageCaptioning",)
    usage = Usage("describes an image in a sentence", snippet=_SNIPPET)
    accepts = Accepts("images after --image", images=(1, math.inf), caption=True)
    mask_probability: float = 0.7
    label_smoothing: float = 0.1
    drop_worst: float = 0.2
    drop_worst_after: int = 12_000

    def __post_init__(self) -> None:
        """Raise ValueError if a share is not from 0 to below 1."""
        if not (0 <= self.label_smoothing < 1 and 0 <= self.drop_worst < 1):
            raise ValueError(
                f"label_smoothing {self.label_smoothing}, drop_worst {self.drop_worst}; give 0 to "
                "below 1"
            )

    def step(self, model: VLMoForImageCaptioning) -> nn.Module:
        """Return the loss of masked words."""
        return CaptioningObjective(model, self)

    def contents(self, run: RunContext) -> Contents:
        """Return image and caption, of which single tokens and the end are masked."""
        # As at generation, where the next token is predicted from a mask and may be the end.
        words = WordMaskConfig(self.mask_probability, of_captions=True)
        return replace(super().contents(run), words=words)

    @classmethod
    def answer(
        cls,
        model: VLMoForImageCaptioning,
        processor: VLMoProcessor,
        images: Sequence[Image.Image],
        inputs: Inputs,
    ) -> list[Prediction]:
        """Return captions of the images."""
        captions = describe(model, processor, images)
        return _caption_rows(map(str, inputs.images), captions)


def _caption_rows(names: Iterable[str], captions: Sequence[str]) -> list[Prediction]:
    return [
        {"image": name, "caption": caption} for name, caption in zip(names, captions, strict=True)
    ]


def _image_names(paths: Sequence[Path], table: Path) -> list[str]:
    """Return the images of files and folders by their paths from the folder of the table."""
    names: list[str] = []
    for path in paths:
        path = path.expanduser().absolute()
        files = walk(path) if path.is_dir() else [path]
        files = [file for file in files if file.suffix.lower() in IMAGE_SUFFIXES]
        if not files or not path.is_relative_to(table.parent):
            raise ValueError(
                f"{path} has no image, or is not in {table.parent}, where {table.name} is to name "
                "images"
            )
        names += [file.relative_to(table.parent).as_posix() for file in files]
    return names


def _decoded(names: Sequence[str], folder: Path, *, errors: list[str]) -> dict[str, Image.Image]:
    """Return the images of a folder by name; those that cannot be read are added to `errors`."""
    images = {}
    for name in names:
        try:
            images[name] = decode_image(image_at(folder / name))
        except ValueError as error:
            errors.append(str(error))
    return images


def caption_files(
    folder: str | Path,
    images: Sequence[Path],
    out: Path,
    *,
    device: str | None = None,
    console: Console | None = None,
    **options: int,
) -> tuple[int, list[str]]:
    """Write a line with `image` and `caption` for images that `out` lacks.

    The file is a table of captions for `open_source` and `build_index`, with paths from its own
    folder, below which all images lie; ValueError without such. Folders are read at any depth.
    `options` are those of `generate`.

    Returns:
        The number of new captions, and the errors of images that cannot be read.
    """
    out = out.expanduser().absolute()
    names = _image_names(images, out)
    model, processor = CaptioningTask.load(folder, device=device)
    written = {line.get("image") for line in read_lines(out)}
    # Folders and files may name an image twice.
    names = [name for name in dict.fromkeys(names) if name not in written]
    errors: list[str] = []
    with (
        Progress(console) as progress,
        naming_refusal(out),
        out.open("a", encoding="utf-8") as file,
    ):
        progress.update("captions", 0, len(names))
        for start in range(0, len(names), CaptionSet.batch_size):
            batch = names[start : start + CaptionSet.batch_size]
            decoded = _decoded(batch, out.parent, errors=errors)
            captions = describe(model, processor, list(decoded.values()), **options)
            file.write(to_lines(_caption_rows(decoded, captions)))
            # A command that is stopped keeps what it has written.
            file.flush()
            progress.update("captions", start + len(batch), len(names))
    return len(names) - len(errors), errors
