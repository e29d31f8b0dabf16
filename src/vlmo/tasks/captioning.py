"""Captions: describe an image in a sentence, word by word (BEiT-3, "Image Captioning")."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from jaxtyping import Float
from PIL import Image
from rich.console import Console
from torch import Tensor, nn

from vlmo.data.decoding import decode_image
from vlmo.data.examples import Contents
from vlmo.data.listing import IMAGE_SUFFIXES, walk
from vlmo.data.masking import IGNORED, WordMaskConfig
from vlmo.data.rows import column, read_lines, to_lines
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
from vlmo.tasks.task import RunContext, Task
from vlmo.types import Batch

if TYPE_CHECKING:
    from vlmo.model import VLMoForImageCaptioning

_SNIPPET = """\
from vlmo import VLMoForImageCaptioning, VLMoProcessor

model = VLMoForImageCaptioning.from_pretrained("path/to/this/folder").eval()
processor = VLMoProcessor.from_pretrained("path/to/this/folder")
ids = model.generate(**processor(images="image.png", return_tensors="pt"), tokenizer=processor.tokenizer)
result = processor.batch_decode(ids, skip_special_tokens=True)[0]
"""


def describe(
    model: Any,
    processor: Any,
    images: Sequence[Image.Image | Float[Tensor, "3 size size"]],
    **options: Any,
) -> list[str]:
    """Return a caption of each image or its pixel values; `options`: of `VLMoForImageCaptioning.generate`."""
    transform = EvalTransform.of(processor)

    def of_one_shape(part: list[Tensor]) -> list[str]:
        ids = model.generate(
            torch.stack(part).to(model.device), tokenizer=processor.tokenizer, **options
        )
        return processor.batch_decode(ids, skip_special_tokens=True)

    return by_shape(
        [each if isinstance(each, Tensor) else transform(each) for each in images], of_one_shape
    )


@dataclass(frozen=True)
class CaptionSet(EvaluationSet):
    """Images of a split with true captions; an output is the prediction for an image."""

    task: ClassVar[str] = "captioning"
    hub_task: ClassVar[str] = "image-to-text"
    reads = Reads(caption=True)
    batch_size: ClassVar[int] = 32

    def __post_init__(self) -> None:
        """Raise ModuleNotFoundError without the package of the metrics, before captions are made."""
        need_package("pycocoevalcap", extra="captions", user="measuring captions")

    def predict(self, model: Any, rows: range) -> list[Prediction]:
        """Return a caption of each image, beside the true ones."""
        chosen: Any = self.rows[rows.start : rows.stop]
        texts = describe(model, self.processor, [decode_image(cell) for cell in chosen["image"]])
        found = zip(chosen["image_id"], texts, chosen["captions"], strict=True)
        return [{"image_id": name, "caption": text, "captions": true} for name, text, true in found]

    def metrics(self, outputs: list[Prediction]) -> list[Metric]:
        """Return CIDEr, BLEU-4 and the share of captions that are a true one."""
        return caption_metrics([row["caption"] for row in outputs], column(self.rows, "captions"))


class CaptioningObjective(nn.Module):
    """Masked words of captions, each predicted from the image and the words before it (BEiT-3, "Image Captioning")."""

    def __init__(self, model: VLMoForImageCaptioning, task: CaptioningTask) -> None:
        super().__init__()
        self.model = model
        self.task = task

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return `loss` (= `caption`) and `caption_accuracy`, the share of masked words that are predicted rightly."""
        masked = batch["mlm_labels"] != IGNORED
        task = self.task
        inputs = batch["pixel_values"], batch["mlm_input_ids"], batch["attention_mask"]
        logits = self.model.mlm_head(
            self.model.vlmo.encode(*inputs, wanted=masked, causal=True).tokens
        )
        labels = batch["mlm_labels"][masked]
        late = task.drop_worst > 0 and int(batch["step"]) > task.drop_worst_after
        options = {"label_smoothing": task.label_smoothing, "drop_worst": task.drop_worst * late}
        loss = masked_loss(logits, labels, **options)
        return {
            "loss": loss,
            "caption": loss.detach(),
            "caption_accuracy": accuracy(logits, labels),
        }


@dataclass(frozen=True)
class CaptioningTask(Task):
    """Fine-tuning for captions; the defaults are those of BEiT-3's published code."""

    name: ClassVar[str] = "captioning"
    title: ClassVar[str] = "fine-tuning for captions"
    reads = Reads(caption=True, masks_words=True, streams=True)
    evaluation: ClassVar[type[EvaluationSet] | None] = CaptionSet
    architectures = ("VLMoForImageCaptioning",)
    usage: ClassVar[Usage | None] = Usage("describes an image in a sentence", snippet=_SNIPPET)
    accepts = Accepts("images after --image", images=(1, math.inf), caption=True)
    mask_probability: float = 0.7
    """Share of the tokens of a caption that are masked."""
    label_smoothing: float = 0.1
    """Share of a word that is spread over all words."""
    drop_worst: float = 0.2
    """Share of the masked words, those with the largest losses, that is left out after `drop_worst_after` steps."""
    drop_worst_after: int = 12_000

    def __post_init__(self) -> None:
        """Raise ValueError if a share is not from 0 to below 1."""
        if not (0 <= self.label_smoothing < 1 and 0 <= self.drop_worst < 1):
            raise ValueError(
                f"label_smoothing {self.label_smoothing}, drop_worst {self.drop_worst}; give 0 to below 1"
            )

    def step(self, model: Any) -> nn.Module:
        """Return the loss of masked words."""
        return CaptioningObjective(model, self)

    def contents(self, run: RunContext) -> Contents:
        """Return image and caption, of which single tokens and the end are masked."""
        return replace(
            super().contents(run), words=WordMaskConfig(self.mask_probability, of_captions=True)
        )

    @classmethod
    def answer(
        cls, model: Any, processor: Any, images: Sequence[Image.Image], inputs: Inputs
    ) -> list[Prediction]:
        """Return a caption of each image."""
        found = zip(inputs.images, describe(model, processor, images), strict=True)
        return [{"image": str(file), "caption": text} for file, text in found]


def caption_files(
    folder: str | Path,
    images: Sequence[Path],
    out: Path,
    *,
    device: str | None = None,
    console: Console | None = None,
    **options: Any,
) -> tuple[int, list[str]]:
    """Write a line with `image` and `caption` for each image that `out` lacks; return their number, and the errors.

    The file is a table of captions for `open_source` and `build_index`, with paths from its own folder, below which all
    images lie; ValueError without such. Folders are read at any depth. `options` are those of `generate`.
    """
    out = out.expanduser().absolute()
    bad = list[str]()
    names = list[str]()
    batch = CaptionSet.batch_size
    for given in (image.expanduser().absolute() for image in images):
        files = [
            file
            for file in (walk(given) if given.is_dir() else [given])
            if file.suffix.lower() in IMAGE_SUFFIXES
        ]
        if not files or not given.is_relative_to(out.parent):
            raise ValueError(
                f"{given} has no image, or is not in {out.parent}, where {out.name} is to name images"
            )
        names += [file.relative_to(out.parent).as_posix() for file in files]
    model, processor = CaptioningTask.load(folder, device=device)
    known = {line.get("image") for line in read_lines(out)}
    left = [name for name in dict.fromkeys(names) if name not in known]
    with (
        Progress(console) as progress,
        naming_refusal(out),
        out.open("a", encoding="utf-8") as file,
    ):
        progress.update("captions", 0, len(left))
        for start in range(0, len(left), batch):
            read = {}
            for name in left[start : start + batch]:
                try:
                    read[name] = decode_image({"bytes": None, "path": str(out.parent / name)})
                except ValueError as error:
                    bad.append(str(error))
            texts = describe(model, processor, list(read.values()), **options) if read else []
            file.write(
                to_lines(
                    [
                        {"image": name, "caption": text}
                        for name, text in zip(read, texts, strict=True)
                    ]
                )
            )
            file.flush()
            progress.update("captions", min(start + batch, len(left)), len(left))
    return len(left) - len(bad), bad
