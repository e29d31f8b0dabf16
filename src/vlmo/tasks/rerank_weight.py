"""Choice of the fusion encoder's weight in reranking, kept in the model folder."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from vlmo.distributed import is_main
from vlmo.evaluation.inference import BATCH
from vlmo.evaluation.retrieval import KS
from vlmo.folder import write_file
from vlmo.tasks.base import quarantine_of
from vlmo.tasks.retrieval import SHORTLIST, PairSet, RetrievalStage

WEIGHTS = tuple(round(0.05 * step, 2) for step in range(21))
_TEST = "test"


@dataclass(frozen=True)
class WeightChoice:
    """Recalls by weight, and the weight that was chosen.

    Attributes:
        weights: 0 (dual encoder alone) to 1 (fusion encoder alone).
        metrics: `tr@K` and `ir@K` with each weight, fractions.
        chosen: The weight with the largest mean of all recalls; of several, the one next to the middle of them.
        before: The weight in the model's configuration before.
    """

    weights: tuple[float, ...]
    metrics: tuple[dict[str, float], ...]
    chosen: float
    before: float

    def table(self) -> Table:
        """Return recalls in percent, a row for each weight."""
        names = ("weight", *(name.upper() for name in self.metrics[0]), "mean", "")
        table = Table(title="Recall by rerank weight, percent")
        for name in names:
            table.add_column(name, justify="right")
        for weight, metrics in zip(self.weights, self.metrics, strict=True):
            note = "chosen" if weight == self.chosen else "before" if weight == self.before else ""
            values = [*metrics.values(), _mean(metrics)]
            table.add_row(f"{weight:g}", *(f"{100 * value:.1f}" for value in values), note)
        return table


def choose_rerank_weight(
    folder: str | Path,
    *,
    source: str,
    split: str,
    rerank: int = SHORTLIST,
    limit: int | None = None,
    batch_size: int = BATCH,
    device: str | None = None,
    console: Console | None = None,
) -> WeightChoice:
    """Measure recall with weights from 0 to 1 on a split, and write the best one to the folder's `config.json`.

    Arguments as for `RetrievalStage.evaluate`.

    Raises:
        ValueError: The split is the one to be measured on afterwards, the model has no matching head, or the data
            cannot be read.
    """
    if split == _TEST:
        raise ValueError(
            "the weight is chosen on data that nothing is measured on afterwards; give --split with another part of "
            "the data than test"
        )
    model, processor = RetrievalStage.load(folder, device=device)
    if model.match_head is None:
        raise ValueError(f"{folder}: this model has no matching head, so that there is nothing to weigh")
    quarantine = quarantine_of(folder, split)
    rows = PairSet.read(source, split=split, processor=processor, quarantine=quarantine, limit=limit)
    result = replace(rows, rerank=rerank).outputs(model, batch_size=batch_size, console=console)
    if result.rerank is None:
        raise ValueError(f"rerank is {rerank}; give the number of candidates to weigh, from 1 up")
    metrics = tuple(result.rerank(weight).metrics(KS) for weight in WEIGHTS)
    chosen = best_weight(WEIGHTS, [_mean(each) for each in metrics])
    choice = WeightChoice(WEIGHTS, metrics, chosen, before=model.config.rerank_weight)
    if is_main():
        write_rerank_weight(Path(folder), chosen)
    return choice


def best_weight(weights: tuple[float, ...], means: list[float]) -> float:
    """Return the weight with the largest mean; of several, the one next to the middle of them."""
    best = [weight for weight, mean in zip(weights, means, strict=True) if mean == max(means)]
    middle = (best[0] + best[-1]) / 2
    return min(best, key=lambda weight: abs(weight - middle))


def write_rerank_weight(folder: Path, weight: float) -> None:
    """Write the weight into `config.json`; all else stays as it is."""
    path = folder / "config.json"
    config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    write_file(path, json.dumps({**config, "rerank_weight": weight}, indent=2, sort_keys=True) + "\n")


def _mean(metrics: dict[str, float]) -> float:
    return sum(metrics.values()) / len(metrics)
