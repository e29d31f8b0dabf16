"""Retrieval figures of a model folder: where data, processor, model and evaluation meet."""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from datasets import Dataset
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from torch import Tensor, nn

from vlmo.data.quarantine import keep_good
from vlmo.data.sources import decode_image, open_source
from vlmo.evaluation import RetrievalModel, RetrievalResult, RetrievalSet, chance_metrics, evaluate_retrieval
from vlmo.folder import Measurement, add_figures
from vlmo.interop.retrieval_model import load_retrieval_model
from vlmo.processing import TransformConfig, VLMoProcessor, eval_transform
from vlmo.recipes.card import data_name

_BATCH = 256
_RERANK = 16
_RERANKED = "rerank_"
_MEANINGS = {
    "ir": "share of captions whose own image has rank {k} or better among all images of the split",
    "tr": "share of images with one of their captions at rank {k} or better among all captions of the split",
}


@dataclass(frozen=True)
class RetrievalRows:
    """Pictures and captions to search among, kept by row number."""

    rows: Dataset
    processor: VLMoProcessor

    @property
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
            image_batches=self._images,
            text_batches=self._texts,
            text_to_image=torch.repeat_interleave(torch.arange(len(counts)), counts),
        )

    def _images(self) -> Iterator[Tensor]:
        transform = eval_transform(TransformConfig(image_size=self.processor.image_size))
        for start in range(0, len(self.rows), _BATCH):
            numbers = range(start, min(start + _BATCH, len(self.rows)))
            yield torch.stack([transform(self.picture(number)) for number in numbers])

    def _texts(self) -> Iterator[tuple[Tensor, Tensor]]:
        captions = self.captions
        for start in range(0, len(captions), _BATCH):
            encoded = self.processor(text=captions[start : start + _BATCH], return_tensors="pt")
            yield encoded["input_ids"], encoded["attention_mask"]


def read_rows(source: str, *, split: str, processor: VLMoProcessor, quarantine: Path) -> RetrievalRows:
    """Pairs of a source that can be used; the others are named in `quarantine`."""
    rows = keep_good(open_source(source, split=split), quarantine=quarantine)
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
    measurements = []
    for metric, value in metrics.items():
        plain = metric.removeprefix(_RERANKED)
        direction, _, k = plain.partition("@")
        reranked = metric.startswith(_RERANKED)
        measurements.append(
            Measurement(
                metric=metric,
                name=f"{plain.upper()}, {'reranked' if reranked else 'dual encoder'}",
                value=value,
                chance=chance[plain],
                meaning=_MEANINGS[direction].format(k=k) + (", reordered by the fusion encoder" if reranked else ""),
                data=data_name(source),
                split=split,
                measured_by=measured_by,
                date=datetime.date.today().isoformat(),
            )
        )
    return measurements


def write_card_figures(
    folder: str | Path, result: RetrievalResult, *, source: str, split: str, measured_by: str
) -> Path:
    """Puts the figures of an evaluation into the card of a model folder; the rest of the card stays."""
    return add_figures(
        folder,
        retrieval_measurements(result.metrics, result.chance, source=source, split=split, measured_by=measured_by),
    )


def evaluate_folder(
    folder: str | Path,
    *,
    source: str,
    split: str,
    rerank: int | None = None,
    rerank_weight: float | None = None,
    console: Console | None = None,
) -> RetrievalResult:
    """Recalls of a model folder on the pairs of a source, with a reranked shortlist if `rerank` is above 0.

    Args:
        rerank: Candidates of each query that the fusion encoder reorders; by default 16, and none for a model without
            a matching head.

    Raises:
        ValueError: The folder holds no model that retrieves, or the source cannot be read.
    """
    model, processor = load_retrieval_model(folder)
    if rerank is None:
        rerank = 0 if model.match_head is None else _RERANK
    if rerank and model.match_head is None:
        raise ValueError(f"{folder} has no matching head, so nothing can be reranked; leave rerank out, or give 0")
    rows = read_rows(source, split=split, processor=processor, quarantine=Path(folder) / f"{split}.quarantine.jsonl")
    weight = model.config.rerank_weight if rerank_weight is None else rerank_weight
    return evaluate_with_progress(model, rows, rerank=rerank, rerank_weight=weight, console=console)


def evaluate_with_progress(
    model: RetrievalModel,
    rows: RetrievalRows,
    *,
    rerank: int,
    rerank_weight: float = 0.5,
    console: Console | None = None,
) -> RetrievalResult:
    """`evaluate_retrieval` with a progress bar."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=console is None, transient=True) as bar:
        tasks: dict[str, Any] = {}

        def advance(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(f"evaluating {what}", total=total)
            bar.update(tasks[what], completed=done)

        return evaluate_retrieval(model, rows.as_set(), rerank=rerank, rerank_weight=rerank_weight, progress=advance)


def figures_table(result: RetrievalResult, *, stageless: dict[str, float] | None = None) -> Table:
    """Figures in percent, chance beside each."""
    table = Table(title="Retrieval, recall in percent")
    columns = ["", "dual encoder"] + (["reranked"] if result.reranked else []) + (["stage-less"] if stageless else [])
    for name in [*columns, "chance"]:
        table.add_column(name, justify="left" if not name else "right")
    for name, chance in result.chance.items():
        values = [result.metrics[name]]
        values += [result.metrics[f"rerank_{name}"]] if result.reranked else []
        values += [stageless[name]] if stageless else []
        table.add_row(name.upper(), *(f"{100 * value:.1f}" for value in values), f"{100 * chance:.1f}")
    return table


def write_figures(result: RetrievalResult, file: Path) -> None:
    """Figures and chance levels as JSON (fractions)."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"metrics": result.metrics, "chance": result.chance}, indent=2) + "\n")
