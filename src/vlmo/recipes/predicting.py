"""What a model folder says about own pictures and texts: finds the task, and asks for what it needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from rich.markup import escape
from rich.table import Table
from torch import Tensor, nn

from vlmo.checkpoints.loading import load_retrieval_model
from vlmo.data.decoding import decode_image
from vlmo.model import VLMoForImageTextRetrieval
from vlmo.recipes.answering import predict_nlvr2, predict_vqa
from vlmo.recipes.evaluating import Task, task_of
from vlmo.recipes.task_result import Prediction
from vlmo.recipes.vision_tasks import predict_classification, predict_segmentation
from vlmo.training import choose_device

_NEEDS: dict[Task, str] = {
    "vqa": "one --image and a --question",
    "nlvr2": "two pictures after --image and one --text",
    "classification": "one --image",
    "segmentation": "one --image",
    "retrieval": "pictures after --image and texts after --text",
}
_DRAWS: tuple[Task, ...] = ("vqa", "segmentation")
_PERCENT = ("confidence", "share", "match")


@dataclass(frozen=True)
class Inputs:
    """What is asked about."""

    images: Sequence[Path] = ()
    """Files."""
    texts: Sequence[str] = ()
    """Sentences about the pictures."""
    question: str | None = None
    """About the one picture."""


@dataclass(frozen=True)
class Predicted:
    """An answer.

    Attributes:
        task: What the model is for.
        rows: What it said, the best first.
        picture: Where a picture of it lies; None without one.
    """

    task: Task
    rows: list[Prediction] = field(default_factory=list)
    picture: Path | None = None

    def table(self) -> Table:
        """The rows for people; shares in percent."""
        table = Table(title=self.task)
        names = list(self.rows[0]) if self.rows else []
        for name in names:
            numbers = all(isinstance(row[name], float) for row in self.rows)
            table.add_column(f"{name}, %" if name in _PERCENT else name, justify="right" if numbers else "left")
        for row in self.rows:
            table.add_row(*(_shown(name, row[name]) for name in names))
        return table


def predict(
    folder: str | Path,
    inputs: Inputs,
    *,
    top: int = 5,
    save: str | Path | None = None,
    device: str | None = None,
) -> Predicted:
    """What the model of a folder says about own pictures and texts.

    Args:
        top: Answers, classes, or texts of a picture that are given.
        save: PNG file for a picture of the result: what a question looked at, or the classes of the pixels.

    Raises:
        ValueError: The folder is for no task, or for one that needs other inputs; a picture cannot be read.
    """
    task = task_of(folder)
    _check(inputs, task=task, folder=folder, save=save)
    if top < 1:
        raise ValueError(f"top is {top}; give a number from 1 up")
    images, texts = inputs.images, inputs.texts
    picture = None if save is None else Path(save)
    if task == "vqa":
        question = inputs.question or ""
        rows = predict_vqa(folder, image=images[0], question=question, top=top, picture=picture, device=device)
    elif task == "nlvr2":
        rows = [predict_nlvr2(folder, left=images[0], right=images[1], sentence=texts[0], device=device)]
    elif task == "classification":
        rows = predict_classification(folder, image=images[0], top=top, device=device)
    elif task == "segmentation":
        rows = predict_segmentation(folder, image=images[0], picture=picture, device=device)
    else:
        rows = predict_retrieval(folder, images=images, texts=texts, top=top, device=device)
    return Predicted(task, rows=rows, picture=picture)


def predict_retrieval(
    folder: str | Path,
    *,
    images: Sequence[str | Path],
    texts: Sequence[str],
    top: int = 5,
    device: str | None = None,
) -> list[Prediction]:
    """The best `top` texts of each picture, by the dual encoder's cosine similarity; of one text, the best pictures.

    With a matching head, each pair also has the fusion encoder's probability that the text describes the picture.

    Raises:
        ValueError: The folder holds no model that retrieves, a text is empty, or a picture cannot be read.
    """
    if not images or not texts or not all(text.strip() for text in texts):
        raise ValueError(f"given are {len(images)} pictures and the texts {list(texts)}; give at least one of each")
    pictures = [_open(image) for image in images]
    model, processor = load_retrieval_model(folder)
    module: nn.Module = model
    module.to(choose_device(device))
    inputs: Any = processor(images=pictures, text=list(texts), return_tensors="pt").to(model.device)
    with torch.inference_mode():
        output: Any = model(**inputs)
        similarity = output.image_embeds @ output.text_embeds.T
        pairs = _best_pairs(similarity, top=top)
        matches = None if model.match_head is None else _matches(model, inputs, pairs)
    rows: list[Prediction] = []
    for number, (image, text) in enumerate(pairs):
        row = {"image": str(images[image]), "text": texts[text], "similarity": round(similarity[image, text].item(), 4)}
        rows.append(row if matches is None else row | {"match": round(matches[number].item(), 4)})
    return rows


def _best_pairs(similarity: Float[Tensor, "images texts"], *, top: int) -> list[tuple[int, int]]:
    """The best texts of each picture in turn; of a single text, the best pictures."""
    if similarity.shape[1] == 1:
        best = similarity[:, 0].topk(min(top, len(similarity))).indices.tolist()
        return [(image, 0) for image in best]
    best = similarity.topk(min(top, similarity.shape[1]), dim=1).indices.tolist()
    return [(image, text) for image, found in enumerate(best) for text in found]


def _matches(model: VLMoForImageTextRetrieval, inputs: Any, pairs: list[tuple[int, int]]) -> Float[Tensor, "pairs"]:
    images, texts = (list(column) for column in zip(*pairs, strict=True))
    logits = model.match(inputs["pixel_values"][images], inputs["input_ids"][texts], inputs["attention_mask"][texts])
    return logits.float().softmax(dim=-1)[:, 1]


def _check(inputs: Inputs, *, task: Task, folder: str | Path, save: str | Path | None) -> None:
    """Whether the inputs are what the task reads.

    Raises:
        ValueError: They are not; the message says what is.
    """
    num_images, num_texts = len(inputs.images), len(inputs.texts)
    asks = inputs.question is not None
    fits = {
        "vqa": num_images == 1 and asks and not num_texts,
        "nlvr2": num_images == 2 and num_texts == 1 and not asks,
        "classification": num_images == 1 and not num_texts and not asks,
        "segmentation": num_images == 1 and not num_texts and not asks,
        "retrieval": num_images > 0 and num_texts > 0 and not asks,
    }
    if asks and task != "vqa":
        raise ValueError(
            f"a question was given, but the model of {folder} is for {task} and has no head for answers. Give it "
            f"{_NEEDS[task]}, or fine-tune one on questions: vlmo train base-vqa --init {folder}"
        )
    if not fits[task]:
        given = f"{num_images} pictures, {num_texts} texts and {'a' if asks else 'no'} question"
        raise ValueError(f"the model of {folder} is for {task} and needs {_NEEDS[task]}; given were {given}")
    if save is not None and task not in _DRAWS:
        raise ValueError(f"--save draws for {' and '.join(_DRAWS)}; the model of {folder} is for {task}")
    if save is not None and Path(save).suffix.lower() != ".png":
        raise ValueError(f"--save {save}: the picture is a PNG file; give a name that ends with .png")


def _open(file: str | Path) -> Image.Image:
    return decode_image({"bytes": None, "path": str(Path(file).expanduser())})


def _shown(name: str, value: Any) -> str:
    if name == "image":
        return escape(Path(value).name)
    if name in _PERCENT:
        return f"{100 * value:.1f}"
    return f"{value:.3f}" if isinstance(value, float) else escape(str(value))
