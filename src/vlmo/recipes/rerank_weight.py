"""Chooses how much the fusion encoder's judgement counts when a shortlist is reordered, and keeps it in the model."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from torch import nn

from vlmo.checkpoints.loading import load_retrieval_model
from vlmo.distributed import choose_device, is_main
from vlmo.evaluation import recall_by_weight
from vlmo.evaluation.scoring import BATCH
from vlmo.folder import write_file
from vlmo.recipes.retrieval import RERANK, progress_of_evaluation, read_rows
from vlmo.released import notes_folder

WEIGHTS = tuple(round(0.05 * step, 2) for step in range(21))
_KS = (1, 5, 10)
_TEST = "test"


@dataclass(frozen=True)
class WeightChoice:
    """Recalls with each weight, and the weight that was chosen.

    Attributes:
        weights: 0 (vectors alone) to 1 (the fusion encoder alone).
        metrics: `tr@K` and `ir@K` with each of them, fractions.
        chosen: The weight with the largest mean of all recalls; of several, the one next to the middle of them.
        before: What the model's configuration said.
    """

    weights: tuple[float, ...]
    metrics: tuple[dict[str, float], ...]
    chosen: float
    before: float

    def table(self) -> Table:
        """Recalls in percent, a row for each weight."""
        table = Table(title="Recall by rerank weight, percent")
        for name in ("weight", *(name.upper() for name in self.metrics[0]), "mean", ""):
            table.add_column(name, justify="right")
        for weight, metrics in zip(self.weights, self.metrics, strict=True):
            values = [*metrics.values(), _mean(metrics)]
            note = "chosen" if weight == self.chosen else "before" if weight == self.before else ""
            table.add_row(f"{weight:g}", *(f"{100 * value:.1f}" for value in values), note)
        return table


def choose_rerank_weight(
    folder: str | Path,
    *,
    source: str,
    split: str,
    rerank: int = RERANK,
    limit: int | None = None,
    batch_size: int = BATCH,
    device: str | None = None,
    console: Console | None = None,
) -> WeightChoice:
    """Measures recall with weights from 0 to 1 on a split, and writes the best one to the folder's `config.json`.

    Arguments as for `evaluate_folder`.

    Raises:
        ValueError: The split is the one to be measured on afterwards, the model has no matching head, or the data
            cannot be read.
    """
    if split == _TEST:
        raise ValueError(
            "the weight is chosen on data that nothing is measured on afterwards; give --split with another part of "
            "the data than test"
        )
    model, processor = load_retrieval_model(folder)
    module: nn.Module = model
    module.to(choose_device(device))
    if model.match_head is None:
        raise ValueError(f"{folder}: this model has no matching head, so that there is nothing to weigh")
    quarantine = notes_folder(folder) / f"{split}.quarantine.jsonl"
    rows = read_rows(source, split=split, processor=processor, quarantine=quarantine, limit=limit)
    with progress_of_evaluation(console) as advance:
        metrics = recall_by_weight(
            model, rows.as_set(), weights=WEIGHTS, rerank=rerank, ks=_KS, batch=batch_size, progress=advance
        )
    chosen = best_weight(WEIGHTS, [_mean(each) for each in metrics])
    choice = WeightChoice(WEIGHTS, tuple(metrics), chosen, before=model.config.rerank_weight)
    if is_main():
        write_rerank_weight(Path(folder), chosen)
    return choice


def best_weight(weights: tuple[float, ...], means: list[float]) -> float:
    """The weight with the largest mean; of several, the one next to the middle of them."""
    best = [weight for weight, mean in zip(weights, means, strict=True) if mean == max(means)]
    middle = (best[0] + best[-1]) / 2
    return min(best, key=lambda weight: abs(weight - middle))


def write_rerank_weight(folder: Path, weight: float) -> None:
    """Puts the weight into `config.json`; all else stays as it is."""
    path = folder / "config.json"
    config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    write_file(path, json.dumps({**config, "rerank_weight": weight}, indent=2, sort_keys=True) + "\n")


def _mean(metrics: dict[str, float]) -> float:
    return sum(metrics.values()) / len(metrics)
