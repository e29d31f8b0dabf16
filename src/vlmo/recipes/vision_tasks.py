"""Classes of pictures and of pixels with a model folder: figures, predictions, and pictures of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from vlmo import model as models
from vlmo.checkpoints.loading import load_retrieval_model
from vlmo.data.decoding import decode_image
from vlmo.evaluation.classification import (
    PROMPTS,
    Features,
    embed_pictures,
    encode_pictures,
    fit_linear_probe,
    zero_shot_classifier,
)
from vlmo.evaluation.inference import Advance
from vlmo.evaluation.masks import overlay
from vlmo.evaluation.segmentation import Inference, segment
from vlmo.folder import architectures
from vlmo.model import VLMoForImageClassification, VLMoForSemanticSegmentation, VLMoModel
from vlmo.model.backbone import VLMoPreTrainedModel
from vlmo.processing import TransformConfig, eval_transform
from vlmo.processing.segmentation import eval_pixel_values
from vlmo.recipes.task_model import load_task_model
from vlmo.recipes.task_result import Prediction, TaskResult
from vlmo.recipes.vision_sets import (
    BATCH_SIZE,
    CLASSIFICATION,
    SEGMENTATION,
    WINDOWS,
    read_classes,
    read_segments,
)
from vlmo.released import notes_folder
from vlmo.training import choose_device

_CLASS_RECIPE, _SEGMENT_RECIPE = "digits", "scenes"


def evaluate_classification(
    folder: str | Path,
    *,
    source: str,
    split: str,
    limit: int | None = None,
    batch_size: int = BATCH_SIZE,
    device: str | None = None,
    console: Console | None = None,
) -> TaskResult:
    """Top-1 and top-5 accuracy of a classifier's folder on a split.

    Args:
        limit: Read the first rows only.
        console: Where the progress bar goes; None shows nothing.

    Raises:
        ValueError: The folder holds no classifier, or one with other classes than the data.
    """
    model = load_task_model(
        folder, VLMoForImageClassification, task=CLASSIFICATION, recipe=_CLASS_RECIPE, device=device
    )
    rows = read_classes(source, split=split, quarantine=_quarantine(folder, split), limit=limit)
    rows.check_classes(model)
    with _bar("classifying", total=len(rows.rows), console=console) as advance:
        return rows.score(rows.predict(model, batch_size=batch_size, advance=advance))


def evaluate_linear_probe(
    folder: str | Path,
    *,
    source: str,
    split: str,
    train_split: str = "train",
    features: Features = "mean",
    l2: float | None = None,
    limit: int | None = None,
    batch_size: int = BATCH_SIZE,
    device: str | None = None,
    console: Console | None = None,
) -> TaskResult:
    """Accuracies of a linear classifier on the image encoder of any model folder, which stays as it is.

    The classifier is fitted on `train_split` without augmentation; see `fit_linear_probe`.

    Args:
        features: The mean of the patches, or the class token, after the final norm.
        limit: Read the first rows of each split only.

    Raises:
        ValueError: The folder holds no VLMo model, or the splits have other classes.
    """
    model = _load_backbone(folder, device=device)
    train, test = (
        read_classes(source, split=part, quarantine=_quarantine(folder, part), limit=limit)
        for part in (train_split, split)
    )
    if train.names != test.names:
        raise ValueError(f"{source}: {train_split} and {split} have other classes; a probe needs the same")
    vectors = []
    for rows in (train, test):
        with _bar(f"encoding {rows.split}", total=len(rows.rows), console=console) as advance:
            pixels = rows.pixels(image_size=model.config.image_size, batch_size=batch_size)
            vectors.append(encode_pictures(model, pixels, features=features, advance=advance))
    probe = fit_linear_probe(vectors[0], train.labels, num_classes=len(train.names), l2=l2)
    settings = {"method": "linear probe", "train_split": train_split, "features": features, "l2": probe.l2}
    return test.score(probe(vectors[1]), settings=settings)


def evaluate_zero_shot(
    folder: str | Path,
    *,
    source: str,
    split: str,
    prompts: Sequence[str] = PROMPTS,
    limit: int | None = None,
    batch_size: int = BATCH_SIZE,
    device: str | None = None,
    console: Console | None = None,
) -> TaskResult:
    """Accuracies of a dual encoder that never saw the classes: each picture gets the class whose sentences fit best.

    Args:
        prompts: Sentences with `{}` where the name of the class goes; a class is the mean of its sentences' vectors.

    Raises:
        ValueError: The folder holds no model that retrieves, or a prompt has no place for the name.
    """
    model, processor = load_retrieval_model(folder)
    module: nn.Module = model
    module.to(choose_device(device))
    rows = read_classes(source, split=split, quarantine=_quarantine(folder, split), limit=limit)

    def embed_texts(texts: list[str]) -> Tensor:
        with torch.inference_mode():
            encoded: Any = processor(text=texts, return_tensors="pt").to(model.device)
            return model.get_text_features(**encoded).float().cpu()

    classes = zero_shot_classifier(embed_texts, rows.names, prompts=prompts)
    with _bar("embedding", total=len(rows.rows), console=console) as advance:
        pixels = rows.pixels(image_size=processor.image_size, batch_size=batch_size)
        vectors = embed_pictures(model, pixels, advance=advance)
    scale = model.contrast_head.logit_scale.detach().float().exp().item()
    return rows.score(scale * vectors @ classes.T, settings={"method": "zero-shot", "prompts": list(prompts)})


def evaluate_segmentation(
    folder: str | Path,
    *,
    source: str,
    split: str,
    inference: Inference = "slide",
    stride: int | None = None,
    short_side: int | None = None,
    limit: int | None = None,
    batch_size: int = WINDOWS,
    device: str | None = None,
    console: Console | None = None,
) -> TaskResult:
    """mIoU, aAcc and mAcc of a segmentation folder on a split, counted at each mask's own size.

    Args:
        inference: Windows of the training crop's size, or whole pictures.
        stride: Pixels between windows; by default two thirds of a window.
        short_side: Pixels of a picture's short side; by default that of a window.
        batch_size: Windows that go through the model at a time.

    Raises:
        ValueError: The folder holds no such model, one with other classes than the data, or a mask cannot be used.
    """
    model = load_task_model(
        folder, VLMoForSemanticSegmentation, task=SEGMENTATION, recipe=_SEGMENT_RECIPE, device=device
    )
    rows = read_segments(source, split=split, quarantine=_quarantine(folder, split), limit=limit)
    how: dict[str, Any] = {"inference": inference, "stride": stride, "short_side": short_side}
    with _bar("segmenting", total=len(rows.rows), console=console) as advance:
        predictions = rows.predict(model, **how, batch_size=batch_size, advance=advance)
    return rows.score(predictions, settings=how)


def predict_classification(
    folder: str | Path, *, image: str | Path, top: int = 5, device: str | None = None
) -> list[Prediction]:
    """The likeliest `top` classes of a picture, each with its share.

    Raises:
        ValueError: The folder holds no classifier, or the picture cannot be read.
    """
    if top < 1:
        raise ValueError(f"top is {top}; give the number of classes, from 1 up")
    picture = _open(image)
    model = load_task_model(
        folder, VLMoForImageClassification, task=CLASSIFICATION, recipe=_CLASS_RECIPE, device=device
    )
    pixels = eval_transform(TransformConfig(image_size=model.config.image_size))(picture)
    with torch.inference_mode():
        shares = model(pixels[None].to(model.device)).logits[0].float().softmax(dim=-1)
    names: Any = model.config.id2label
    best = shares.topk(min(top, len(shares)))
    return [
        {"class": names[number], "confidence": round(share, 4)}
        for share, number in zip(best.values.tolist(), best.indices.tolist(), strict=True)
    ]


def predict_segmentation(
    folder: str | Path,
    *,
    image: str | Path,
    picture: str | Path | None = None,
    mask: str | Path | None = None,
    inference: Inference = "slide",
    short_side: int | None = None,
    device: str | None = None,
) -> list[Prediction]:
    """The classes of a picture's pixels and the share of each, the largest first.

    Args:
        picture: PNG file for the picture with its classes in colour, and their names below it.
        mask: PNG file for the numbers of the classes, one channel of the picture's size.

    Raises:
        ValueError: The folder holds no such model, or the picture cannot be read.
    """
    opened = _open(image)
    model = load_task_model(
        folder, VLMoForSemanticSegmentation, task=SEGMENTATION, recipe=_SEGMENT_RECIPE, device=device
    )
    pixels = eval_pixel_values(
        opened,
        short_side=short_side or model.config.image_size,
        multiple=model.config.patch_size if inference == "whole" else 1,
    )
    logits = segment(model, pixels, inference=inference, size=(opened.height, opened.width))
    classes = logits.argmax(dim=0).cpu().numpy().astype(np.uint8)
    known: Any = model.config.id2label
    names = [known[number] for number in range(len(known))]
    if picture is not None:
        overlay(opened, classes, names=names).save(_parent_of(picture), format="PNG")
    if mask is not None:
        Image.fromarray(classes).save(_parent_of(mask), format="PNG")
    counts = np.bincount(classes.ravel(), minlength=len(names))
    order = [number for number in np.argsort(-counts, kind="stable").tolist() if counts[number]]
    return [{"class": names[number], "share": round(float(counts[number] / counts.sum()), 4)} for number in order]


def _load_backbone(folder: str | Path, *, device: str | None) -> VLMoModel:
    """The encoder of any model folder."""
    kinds = architectures(folder)
    kind = vars(models).get(kinds[0]) if kinds else None
    if not isinstance(kind, type) or not issubclass(kind, VLMoPreTrainedModel):
        raise ValueError(f"{folder} holds {', '.join(kinds) or 'no named class'}; a linear probe needs a VLMo model")
    return load_task_model(folder, kind, task=CLASSIFICATION, recipe=_CLASS_RECIPE, device=device).backbone


def _quarantine(folder: str | Path, split: str) -> Path:
    return notes_folder(folder) / f"{split}.quarantine.jsonl"


@contextmanager
def _bar(title: str, *, total: int, console: Console | None) -> Iterator[Advance]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=console is None, transient=True) as bar:
        task = bar.add_task(title, total=total)
        yield lambda done: bar.update(task, completed=done)


def _open(file: str | Path) -> Image.Image:
    return decode_image({"bytes": None, "path": str(Path(file).expanduser())})


def _parent_of(file: str | Path) -> Path:
    """The file's path; its folder is there from now on."""
    file = Path(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    return file
