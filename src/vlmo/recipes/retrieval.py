"""Retrieval figures of a model folder: where data, processor, model and evaluation meet."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
from datasets import Dataset
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from vlmo.checkpoints.loading import load_retrieval_model
from vlmo.data.schema import column, select_rows
from vlmo.data.sources import ImageCell, decode_image, open_source
from vlmo.data.validation import filter_invalid_rows
from vlmo.evaluation import RetrievalModel, RetrievalResult, RetrievalSet, chance_metrics, evaluate_retrieval
from vlmo.evaluation.scoring import BATCH
from vlmo.folder import Measurement
from vlmo.processing import TransformConfig, VLMoProcessor, eval_transform
from vlmo.recipes.task_result import Prediction, TaskResult, task_measurements
from vlmo.released import notes_folder
from vlmo.training import choose_device

_RERANK = 16
RETRIEVAL = "retrieval"
RERANK = 16
_RERANKED = "rerank_"
_SHOWN = 10
_MEANINGS = {
    "ir": "share of captions whose own image has rank {k} or better among all images of the split",
    "tr": "share of images with one of their captions at rank {k} or better among all captions of the split",
}


@dataclass(frozen=True)
class RetrievalRows:
    """Pictures and captions to search among, kept by row number."""

    rows: Dataset
    processor: VLMoProcessor

    @cached_property
    def captions(self) -> list[str]:
        """All captions, picture by picture."""
        return [caption for captions in self.rows["captions"] for caption in captions]

    def picture(self, number: int) -> Image.Image:
        """One decoded picture."""
        return decode_image(self.rows[number]["image"])

    def as_set(self) -> RetrievalSet:
        """What `evaluate_retrieval` reads."""
        counts = torch.tensor([len(captions) for captions in self.rows["captions"]])
        return RetrievalSet(
            read_images=self._images,
            read_texts=self._texts,
            text_to_image=torch.repeat_interleave(torch.arange(len(counts)), counts),
        )

    def _images(self, numbers: range) -> Tensor:
        transform = eval_transform(TransformConfig(image_size=self.processor.image_size))
        cells: list[ImageCell] = self.rows[numbers.start : numbers.stop]["image"]
        with ThreadPoolExecutor(os.cpu_count()) as pool:  # decoding and resizing run beside each other
            return torch.stack(list(pool.map(lambda cell: transform(decode_image(cell)), cells)))

    def _texts(self, numbers: range) -> tuple[Tensor, Tensor]:
        encoded = self.processor(text=self.captions[numbers.start : numbers.stop], return_tensors="pt")
        return encoded["input_ids"], encoded["attention_mask"]


def read_rows(
    source: str, *, split: str, processor: VLMoProcessor, quarantine: Path, limit: int | None = None
) -> RetrievalRows:
    """Pairs of a source that can be used; the others are named in `quarantine`.

    Args:
        limit: Read the first rows only.

    Raises:
        ValueError: No row can be used.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit is {limit}; give the number of rows to read, from 1 up, or none for all")
    rows = open_source(source, split=split)
    rows = rows if limit is None else select_rows(rows, range(min(limit, len(rows))))
    rows = filter_invalid_rows(rows, quarantine=quarantine)
    if not len(rows):
        raise ValueError(f"{source}, {split}: no picture with a caption is there to search among")
    return RetrievalRows(rows=rows, processor=processor)


@dataclass(frozen=True)
class RetrievalEvaluator:
    """What a run calls to measure the dual encoder on the pairs of a source."""

    rows: RetrievalRows
    source: str
    split: str

    def __call__(self, model: nn.Module) -> dict[str, float]:
        """Recalls, fractions."""
        return evaluate_retrieval(cast(RetrievalModel, model), self.rows.as_set()).metrics

    def measurements(self, metrics: Mapping[str, float], *, measured_by: str) -> list[Measurement]:
        """Recalls that this evaluator gave, as the model's card shows them."""
        ks = sorted({int(name.partition("@")[2]) for name in metrics})
        chance = chance_metrics(self.rows.as_set().text_to_image, ks=ks)
        return retrieval_measurements(metrics, chance, source=self.source, split=self.split, measured_by=measured_by)


def retrieval_measurements(
    metrics: Mapping[str, float], chance: Mapping[str, float], *, source: str, split: str, measured_by: str
) -> list[Measurement]:
    """Recalls as a model's card shows them, dated today."""
    return task_measurements(
        metrics,
        task=RETRIEVAL,
        chance={metric: chance[metric.removeprefix(_RERANKED)] for metric in metrics},
        meanings={metric: _meaning(metric) for metric in metrics},
        names={metric: _name(metric) for metric in metrics},
        source=source,
        split=split,
        measured_by=measured_by,
    )


def evaluate_folder(
    folder: str | Path,
    *,
    source: str,
    split: str,
    rerank: int | None = None,
    rerank_weight: float | None = None,
    limit: int | None = None,
    batch_size: int = BATCH,
    device: str | None = None,
    console: Console | None = None,
) -> TaskResult:
    """Recalls of a model folder on the pairs of a source. Several processes, if there are, share the work.

    Args:
        rerank: Length of the shortlist that the fusion encoder reorders; None: 16 where it has a matching head.
        rerank_weight: Share of the matching score; None: the model's.
        limit: Read the first rows only.
        device: "cpu", "cuda" or "cuda:1"; None takes a GPU if there is one.
        console: Where the progress bar goes; None shows nothing.

    Raises:
        ValueError: The folder holds no model that retrieves, or the source cannot be read.
    """
    model, processor = load_retrieval_model(folder)
    module: nn.Module = model
    module.to(choose_device(device))
    if rerank is None:
        rerank = 0 if model.match_head is None else RERANK
    if rerank and model.match_head is None:
        raise ValueError(
            f"{folder}: this model has no matching head, so that nothing can be reordered; give --rerank 0"
        )
    if rerank < 0 or (rerank_weight is not None and not 0 <= rerank_weight <= 1):
        raise ValueError(
            f"rerank is {rerank} and rerank_weight {rerank_weight}; give a number of candidates from 0 up, and a share "
            "from 0 to 1"
        )
    if not rerank and rerank_weight is not None:
        raise ValueError(f"rerank_weight is {rerank_weight}, but nothing is reordered (rerank is 0); leave one out")
    quarantine = notes_folder(folder) / f"{split}.quarantine.jsonl"
    rows = read_rows(source, split=split, processor=processor, quarantine=quarantine, limit=limit)
    weight = model.config.rerank_weight if rerank_weight is None else rerank_weight
    result = evaluate_with_progress(
        model, rows, rerank=rerank, rerank_weight=weight, batch_size=batch_size, console=console
    )
    settings = {"rerank": rerank, "rerank_weight": weight} if rerank else {"rerank": 0}
    return task_result(result, rows, source=source, split=split, settings=settings)


def task_result(
    result: RetrievalResult, rows: RetrievalRows, *, source: str, split: str, settings: Mapping[str, Any]
) -> TaskResult:
    """An evaluation in the form of every task: a row for each caption that is looked for, then for each picture."""
    metrics = result.metrics
    return TaskResult(
        task=RETRIEVAL,
        source=source,
        split=split,
        metrics=metrics,
        chance={metric: result.chance[metric.removeprefix(_RERANKED)] for metric in metrics},
        meanings={metric: _meaning(metric) for metric in metrics},
        names={metric: _name(metric) for metric in metrics},
        predictions=_predictions(result, rows),
        settings=dict(settings),
    )


def _predictions(result: RetrievalResult, rows: RetrievalRows) -> list[Prediction]:
    image_ids = column(rows.rows, "image_id")
    own = rows.as_set().text_to_image.tolist()
    captions = [
        {"query": "caption", "caption": text, "image_id": image_ids[own[n]]} for n, text in enumerate(rows.captions)
    ]
    pictures: list[Prediction] = [{"query": "image", "image_id": image_id} for image_id in image_ids]
    for prefix, rankings in (("", result.dual), (_RERANKED, result.reranked)):
        if rankings is None:
            continue
        for queries, ranking, names in (
            (captions, rankings.text_to_image, image_ids),
            (pictures, rankings.image_to_text, rows.captions),
        ):
            found = ranking.indices[:, :_SHOWN].tolist()
            for row, rank, best in zip(queries, ranking.ranks.tolist(), found, strict=True):
                row[f"{prefix}rank"] = rank
                row[f"{prefix}found"] = [names[number] for number in best]
    return [*captions, *pictures]


def _name(metric: str) -> str:
    reranked = metric.startswith(_RERANKED)
    return f"{metric.removeprefix(_RERANKED).upper()}, {'reranked' if reranked else 'dual encoder'}"


def _meaning(metric: str) -> str:
    direction, _, k = metric.removeprefix(_RERANKED).partition("@")
    reordered = ", reordered by the fusion encoder" if metric.startswith(_RERANKED) else ""
    return _MEANINGS[direction].format(k=k) + reordered


def evaluate_with_progress(
    model: RetrievalModel,
    rows: RetrievalRows,
    *,
    rerank: int,
    rerank_weight: float = 0.5,
    batch_size: int = BATCH,
    console: Console | None = None,
) -> RetrievalResult:
    """`evaluate_retrieval` with a progress bar."""
    with progress_of_evaluation(console) as advance:
        return evaluate_retrieval(
            model, rows.as_set(), rerank=rerank, rerank_weight=rerank_weight, batch=batch_size, progress=advance
        )


@contextmanager
def progress_of_evaluation(console: Console | None) -> Iterator[Callable[[str, int, int], None]]:
    """A bar for each kind of work, moved by the function that is given."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=console is None, transient=True) as bar:
        tasks: dict[str, Any] = {}

        def advance(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(f"evaluating {what}", total=total)
            bar.update(tasks[what], completed=done)

        yield advance
