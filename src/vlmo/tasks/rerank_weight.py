"""Choice of the fusion encoder's weights in reranking, kept in the model folder."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from vlmo.distributed import is_main
from vlmo.evaluation import Weights
from vlmo.evaluation.inference import BATCH
from vlmo.evaluation.retrieval import KS
from vlmo.folder import read_config
from vlmo.folder.atomic import write_file
from vlmo.tasks.base import quarantine_of
from vlmo.tasks.pair_sets import CompositionSet, PairSet
from vlmo.tasks.result import data_name
from vlmo.tasks.retrieval import SHORTLIST, RetrievalTask
from vlmo.terminal import escaped

if TYPE_CHECKING:
    from vlmo.model import VLMoForImageTextRetrieval

WEIGHTS = tuple(round(0.05 * step, 2) for step in range(21))
"""Weights that are measured: 0 (dual encoder alone) to 1 (fusion encoder alone)."""
_TEST = "test"


@dataclass(frozen=True)
class WeightChoice:
    """Recalls by weight, and the weights that were chosen.

    Attributes:
        metrics: `tr@K` and `ir@K` with each of `WEIGHTS`, fractions.
        chosen: For each direction the weight with the largest mean of its recalls; of several, the one next to the
            middle of them.
        before: The weights in the model's configuration before.
        data: Name and split of the pairs.
    """

    metrics: tuple[dict[str, float], ...]
    chosen: Weights
    before: Weights
    data: str = ""

    def table(self) -> Table:
        """Return recalls in percent, a row for each weight."""
        names = ("weight", *(name.upper() for name in self.metrics[0]), "")
        table = Table(title=escaped(f"Recall by rerank weight on {self.data}, percent"))
        for name in names:
            table.add_column(name, justify="right")
        for weight, metrics in zip(WEIGHTS, self.metrics, strict=True):
            chosen = [name for name, best in zip(("TR", "IR"), self.chosen, strict=True) if best == weight]
            note = f"chosen for {' and '.join(chosen)}" if chosen else "before" if weight in self.before else ""
            table.add_row(f"{weight:g}", *(f"{100 * value:.1f}" for value in metrics.values()), note)
        return table

    def summary(self) -> str:
        """Return the settings that were chosen, with those before."""
        (text, image), before = self.chosen, self.before
        return (
            f"rerank_weight {image:g} (before: {before.text_to_image:g}) and rerank_weight_image_to_text {text:g} "
            f"(before: {before.image_to_text:g})"
        )


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
    """Measure recall with weights from 0 to 1 on a split, and write the best ones to the folder's `config.json`.

    Arguments as for `RetrievalTask.evaluate`.

    Raises:
        ValueError: The split is the one to be measured on afterwards, the model has no matching head, or the data
            cannot be read.
    """
    model, rows = read_to_choose(folder, source=source, split=split, limit=limit, device=device)
    result = replace(rows, rerank=rerank).outputs(model, batch_size=batch_size, console=console)
    if result.rerank is None:
        raise ValueError(f"rerank is {rerank}; give the number of candidates to weigh, from 1 up")
    metrics = tuple(result.rerank(Weights(weight, weight)).metrics(KS) for weight in WEIGHTS)
    chosen = Weights(*(best_weight(WEIGHTS, [_mean(each, of) for each in metrics]) for of in ("tr", "ir")))
    if is_main():
        settings = {"rerank_weight": chosen.text_to_image, "rerank_weight_image_to_text": chosen.image_to_text}
        write_settings(Path(folder), **settings)
    return WeightChoice(
        metrics, chosen, before=Weights(*model.config.rerank_weights), data=f"{data_name(source)} {split}"
    )


def read_to_choose(
    folder: str | Path, *, source: str, split: str, limit: int | None, device: str | None
) -> tuple[VLMoForImageTextRetrieval, PairSet]:
    """Return model and pairs to choose a setting of reranking on.

    Raises:
        ValueError: As `choose_rerank_weight`.
    """
    if split == _TEST:
        raise ValueError(
            "settings are chosen on data that nothing is measured on afterwards; give --split with another part of "
            "the data than test"
        )
    model, processor = RetrievalTask.load(folder, device=device)
    if model.match_head is None:
        raise ValueError(f"{folder}: this model has no matching head, so that it scores no pairs")
    quarantine = quarantine_of(folder, split)
    rows = PairSet.read(source, split=split, processor=processor, quarantine=quarantine, limit=limit)
    if isinstance(rows, CompositionSet):
        raise ValueError(f"{source} has false captions, which nothing is searched among; give pairs")
    return model, rows


def best_weight(weights: tuple[float, ...], means: list[float]) -> float:
    """Return the weight with the largest mean; of several, the one next to the middle of them."""
    best = [weight for weight, mean in zip(weights, means, strict=True) if mean == max(means)]
    middle = (best[0] + best[-1]) / 2
    return min(best, key=lambda weight: abs(weight - middle))


def write_settings(folder: Path, **settings: float) -> None:
    """Write settings into `config.json`; all else stays as it is."""
    config = read_config(folder) | settings
    write_file(folder / "config.json", json.dumps(config, indent=2, sort_keys=True) + "\n")


def _mean(metrics: dict[str, float], direction: str) -> float:
    values = [value for name, value in metrics.items() if name.startswith(direction)]
    return sum(values) / len(values)
