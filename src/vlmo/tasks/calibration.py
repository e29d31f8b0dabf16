"""Choice of the weights of reranking that a model folder keeps."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from vlmo.distributed import is_main
from vlmo.evaluation import Weights
from vlmo.evaluation.retrieval import KS
from vlmo.folder import read_config
from vlmo.folder.atomic import write_file
from vlmo.tasks.pair_sets import SHORTLIST, CompositionSet, PairSet
from vlmo.tasks.registry import load_evaluation
from vlmo.tasks.result import data_name
from vlmo.tasks.retrieval import RetrievalTask
from vlmo.terminal import escaped

if TYPE_CHECKING:
    from vlmo.model import VLMoForImageTextRetrieval

# Measured weights: 0 is the dual encoder alone, 1 the fusion encoder alone.
WEIGHTS = tuple(round(0.05 * step, 2) for step in range(21))


@dataclass(frozen=True)
class Choice:
    """Weights that were written, those before, and recalls (fractions) by weight."""

    settings: dict[str, float]
    before: dict[str, float]
    table: Table
    rates: dict[float, dict[str, float]]


def choose_rerank_weight(
    folder: str | Path,
    *,
    source: str | None = None,
    split: str,
    rerank: int | None = None,
    batch_size: int | None = None,
    limit: int | None = None,
    device: str | None = None,
    console: Console | None = None,
) -> Choice:
    """Measure recall with weights from 0 to 1 on a split, and keep the best in `config.json`.

    Arguments as for `vlmo.tasks.evaluate`. ValueError for the split that is measured on afterwards,
    a model without a matching head, or data that cannot be read.
    """
    rerank = SHORTLIST if rerank is None else rerank
    # Weights must not be fitted to the rows that they are judged by.
    if split == "test" or rerank < 1:
        raise ValueError(
            f"--split is {split} and --rerank {rerank}; weights are chosen on a part of the data "
            "that nothing is measured on afterwards, so another than test, with candidates from 1 "
            "up"
        )
    model, pairs = _load_pairs(folder, source=source, split=split, limit=limit, device=device)
    result = replace(pairs, rerank=rerank).outputs(model, batch_size=batch_size, console=console)
    # As there is a shortlist.
    assert result.rerank is not None
    # The pairs were scored once; weights only mix the scores.
    rates = {weight: result.rerank(Weights(weight, weight)).metrics(KS) for weight in WEIGHTS}
    chosen = {direction: _best_weight(rates, direction=direction) for direction in ("tr", "ir")}
    # As `VLMoConfig` names them.
    settings = {"rerank_weight_image_to_text": chosen["tr"], "rerank_weight": chosen["ir"]}
    before = dict(zip(settings, model.config.rerank_weights, strict=True))
    table = _recall_table(rates, chosen=chosen, before=list(before.values()))
    table.title = escaped(f"Recall by rerank weight on {data_name(pairs.source)} {split}, percent")
    write_settings(Path(folder), **settings)
    return Choice(settings, before, table, rates)


def _load_pairs(
    folder: str | Path, *, source: str | None, split: str, limit: int | None, device: str | None
) -> tuple[VLMoForImageTextRetrieval, PairSet]:
    """Return a model that can rerank, and pairs to search among; ValueError for others."""
    model, pairs = load_evaluation(
        folder, RetrievalTask, source=source, split=split, limit=limit, device=device, options={}
    )
    if model.match_head is None:
        raise ValueError(f"{folder}: this model has no matching head, so that it scores no pairs")
    assert isinstance(pairs, PairSet)  # the task's
    if isinstance(pairs, CompositionSet):
        raise ValueError(
            f"{pairs.source} has false captions, which nothing is searched among; give pairs"
        )
    return model, pairs


def _best_weight(rates: dict[float, dict[str, float]], *, direction: str) -> float:
    """Return the weight with the largest mean of its recalls at all K; of several, the middle."""
    sums = [sum(recalls[f"{direction}@{k}"] for k in KS) for recalls in rates.values()]
    return middle_best(tuple(rates), sums)


def _recall_table(
    rates: dict[float, dict[str, float]], *, chosen: dict[str, float], before: list[float]
) -> Table:
    table = Table("weight", *map(str.upper, rates[0.0]), "")
    for column in table.columns[1:]:
        column.justify = "right"
    for weight, recalls in rates.items():
        directions = [name.upper() for name, best in chosen.items() if best == weight]
        note = "before" if weight in before else ""
        if directions:
            note = f"chosen for {' and '.join(directions)}"
        cells = [f"{100 * value:.1f}" for value in recalls.values()]
        table.add_row(f"{weight:g}", *cells, note)
    return table


def middle_best(values: tuple[float, ...], scores: list[float]) -> float:
    """Return the value with the largest score; of several, the one next to their middle."""
    best = [value for value, score in zip(values, scores, strict=True) if score == max(scores)]
    # The middle of equals is farthest from weights that are worse.
    middle = (best[0] + best[-1]) / 2
    return min(best, key=lambda value: abs(value - middle))


def write_settings(folder: Path, **settings: float) -> None:
    """Write settings into `config.json`, on the main process; all else stays as it is."""
    if is_main():
        config = read_config(folder) | settings
        write_file(folder / "config.json", json.dumps(config, indent=2, sort_keys=True) + "\n")
