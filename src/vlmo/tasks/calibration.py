"""Choice of the weights of reranking that a model folder keeps."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from vlmo.distributed import is_main
from vlmo.evaluation import Weights
from vlmo.evaluation.retrieval import KS
from vlmo.folder import read_config
from vlmo.folder.atomic import write_file
from vlmo.released import notes_folder
from vlmo.tasks.pair_sets import SHORTLIST, CompositionSet, PairSet
from vlmo.tasks.result import data_name
from vlmo.tasks.retrieval import RetrievalTask
from vlmo.terminal import escaped

WEIGHTS = tuple(round(0.05 * step, 2) for step in range(21))
"""Weights that are measured: 0 (dual encoder alone) to 1 (fusion encoder alone)."""


@dataclass(frozen=True)
class Choice:
    """Weights that were chosen and written to `config.json`, those before, and recalls (fractions) by weight."""

    settings: dict[str, float]
    before: dict[str, float]
    table: Table
    rates: dict[float, dict[str, float]]


def choose_rerank_weight(
    folder: str | Path,
    *,
    source: str,
    split: str,
    rerank: int = SHORTLIST,
    batch_size: int | None = None,
    limit: int | None = None,
    device: str | None = None,
    console: Console | None = None,
) -> Choice:
    """Measure recall with weights from 0 to 1 on a split, and write the best ones to the folder's `config.json`.

    For each direction that is the weight with the largest mean of its recalls; of several, the one next to the middle
    of them. Arguments as for `vlmo.tasks.evaluate`.

    Raises:
        ValueError: The split is the one to be measured on afterwards, the model has no matching head, or the data
            cannot be read.
    """
    if split == "test" or rerank < 1:
        raise ValueError(
            f"--split is {split} and --rerank {rerank}; weights are chosen on a part of the data that nothing is "
            "measured on afterwards, so another than test, with candidates from 1 up"
        )
    model, processor = RetrievalTask.load(folder, device=device)
    if model.match_head is None:
        raise ValueError(f"{folder}: this model has no matching head, so that it scores no pairs")
    given: dict[str, Any] = {"processor": processor, "notes": notes_folder(folder), "limit": limit}
    rows = PairSet.read(source=source, split=split, **given)
    if isinstance(rows, CompositionSet):
        raise ValueError(
            f"{source} has false captions, which nothing is searched among; give pairs"
        )
    result = replace(rows, rerank=rerank).outputs(model, batch_size=batch_size, console=console)
    assert result.rerank is not None  # as there is a shortlist
    rates = {weight: result.rerank(Weights(weight, weight)).metrics(KS) for weight in WEIGHTS}
    means = {
        name: [sum(each[f"{name}@{k}"] for k in KS) for each in rates.values()]
        for name in ("tr", "ir")
    }
    chosen = Weights(*(middle_best(WEIGHTS, each) for each in means.values()))
    before = model.config.rerank_weights
    table = Table(
        "weight", title=escaped(f"Recall by rerank weight on {data_name(source)} {split}, percent")
    )
    for name in (*map(str.upper, rates[0.0]), ""):
        table.add_column(name, justify="right")
    for weight, metrics in rates.items():
        of = [name for name, best in zip(("TR", "IR"), chosen, strict=True) if best == weight]
        note = f"chosen for {' and '.join(of)}" if of else "before" if weight in before else ""
        table.add_row(f"{weight:g}", *(f"{100 * value:.1f}" for value in metrics.values()), note)
    names = ("rerank_weight_image_to_text", "rerank_weight")
    settings, old = (dict(zip(names, each, strict=True)) for each in (chosen, before))
    write_settings(Path(folder), **settings)
    return Choice(settings, old, table, rates)


def middle_best(values: tuple[float, ...], scores: list[float]) -> float:
    """Return the value with the largest score; of several, the one next to the middle of them."""
    best = [value for value, score in zip(values, scores, strict=True) if score == max(scores)]
    middle = (best[0] + best[-1]) / 2
    return min(best, key=lambda value: abs(value - middle))


def write_settings(folder: Path, **settings: float) -> None:
    """Write settings into `config.json`, on the main process; all else stays as it is."""
    if is_main():
        write_file(
            folder / "config.json",
            json.dumps(read_config(folder) | settings, indent=2, sort_keys=True) + "\n",
        )
