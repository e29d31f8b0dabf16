"""Choice of the settings of reranking that a model folder keeps: weights of the fusion encoder, and a cut-off."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from rich.table import Table
from torch import Tensor

from vlmo.distributed import is_main
from vlmo.evaluation import Weights
from vlmo.evaluation.inference import BATCH
from vlmo.evaluation.recall import chunked_topk
from vlmo.evaluation.retrieval import KS
from vlmo.evaluation.scoring import embed_images, embed_texts, match_pairs
from vlmo.folder import read_config
from vlmo.folder.atomic import write_file
from vlmo.model.reranking import SEARCH_RERANK
from vlmo.progress import Progress
from vlmo.released import notes_folder
from vlmo.tasks.pair_sets import SHORTLIST, CompositionSet, PairSet
from vlmo.tasks.result import data_name
from vlmo.tasks.retrieval import RetrievalTask
from vlmo.terminal import escaped

if TYPE_CHECKING:
    from vlmo.model import VLMoForImageTextRetrieval

WEIGHTS = tuple(round(0.05 * step, 2) for step in range(21))
"""Weights that are measured: 0 (dual encoder alone) to 1 (fusion encoder alone)."""


@dataclass(frozen=True)
class Choice:
    """Settings that were chosen and written to `config.json`, with what they were chosen by.

    Attributes:
        settings: By their names there.
        before: The same before.
        table: Rates that led to the choice, in percent.
        rates: The same as fractions, by weight or by score.
    """

    settings: dict[str, float]
    before: dict[str, Any]
    table: Table
    rates: dict[Any, Any]

    def summary(self) -> str:
        """Return the settings that were chosen, with those before."""
        return " and ".join(
            f"{name} {value:.4g} (before: {self.before[name]})" for name, value in self.settings.items()
        )


def choose_rerank_weight(
    folder: str | Path, *, source: str, split: str, rerank: int = SHORTLIST, batch_size: int = BATCH, **how: Any
) -> Choice:
    """Measure recall with weights from 0 to 1 on a split, and write the best ones to the folder's `config.json`.

    For each direction that is the weight with the largest mean of its recalls; of several, the one next to the middle
    of them. `how` are `limit`, `device` and `console`, as for `vlmo.tasks.evaluate`.

    Raises:
        ValueError: The split is the one to be measured on afterwards, the model has no matching head, or the data
            cannot be read.
    """
    console = how.pop("console", None)
    model, rows = _read(folder, source=source, split=split, **how)
    result = replace(rows, rerank=rerank).outputs(model, batch_size=batch_size, console=console)
    if result.rerank is None:
        raise ValueError(f"rerank is {rerank}; give the number of candidates to weigh, from 1 up")
    rates = {weight: result.rerank(Weights(weight, weight)).metrics(KS) for weight in WEIGHTS}

    def best(direction: str) -> float:
        names = [name for name in rates[0.0] if name.startswith(direction)]
        return middle_best(WEIGHTS, [sum(each[name] for name in names) / len(names) for each in rates.values()])

    chosen, before = Weights(best("tr"), best("ir")), Weights(*model.config.rerank_weights)
    table = _table(
        "weight",
        (*map(str.upper, rates[0.0]), ""),
        title=f"Recall by rerank weight on {data_name(source)} {split}, percent",
    )
    for weight, metrics in rates.items():
        of = [name for name, best in zip(("TR", "IR"), chosen, strict=True) if best == weight]
        note = f"chosen for {' and '.join(of)}" if of else "before" if weight in before else ""
        table.add_row(f"{weight:g}", *(f"{100 * value:.1f}" for value in metrics.values()), note)
    settings, old = (
        {"rerank_weight": each.text_to_image, "rerank_weight_image_to_text": each.image_to_text}
        for each in (chosen, before)
    )
    write_settings(Path(folder), **settings)
    return Choice(settings, old, table, rates)


class Rates(NamedTuple):
    """A cut-off, and the shares of the queries with a match that reach it, and of those without that stay below it.

    The rates are those of cut-offs that were chosen on other queries.
    """

    cutoff: float
    found: float
    refused: float

    @property
    def accuracy(self) -> float:
        """Balanced accuracy; chance is 0.5."""
        return (self.found + self.refused) / 2


def choose_cutoff(
    folder: str | Path, *, source: str, split: str, rerank: int = SEARCH_RERANK, batch_size: int = BATCH, **how: Any
) -> Choice:
    """Choose the cut-off that best separates texts whose image is in a gallery from others; write it to `config.json`.

    The gallery is a random half of the images, always the same; the captions of the other half have no match there,
    unless an image of the gallery has the same caption: such texts are left out. The fusion encoder scores the `rerank`
    nearest images of each text, and the cut-off is on the largest probability among them; one on the cosine similarity
    is shown beside it. `how` as for `choose_rerank_weight`.

    Raises:
        ValueError: The split is the one to be measured on afterwards, the model has no matching head, the data cannot
            be read or are too few, or `rerank` is below 1.
    """
    if rerank < 1:
        raise ValueError(f"rerank is {rerank}; give the number of candidates that the fusion encoder scores, from 1 up")
    console = how.pop("console", None)
    model, rows = _read(folder, source=source, split=split, **how)
    pairs = rows.as_set()
    order = torch.randperm(pairs.num_images, generator=torch.Generator().manual_seed(0))
    gallery = (order % 2 == 0).nonzero().flatten()
    present = (order % 2 == 0)[pairs.text_to_image]
    known = {caption for caption, there in zip(rows.captions, present.tolist(), strict=True) if there}
    queries = (present | torch.tensor([caption not in known for caption in rows.captions])).nonzero().flatten()
    present, fold = present[queries], (order // 2 % 2 == 0)[pairs.text_to_image[queries]]
    if any(not (present[fold == part] == there).any() for part in (True, False) for there in (True, False)):
        raise ValueError(f"{source}, {split}: {pairs.num_images} images are too few; give at least four")
    with Progress(console) as progress:
        options: dict[str, Any] = {"batch": batch_size, "progress": progress.update}
        images, texts = embed_images(model, pairs, **options), embed_texts(model, pairs, **options)
        cosine, found = chunked_topk(texts[queries.to(texts.device)], images[gallery.to(images.device)], k=rerank)
        found = gallery[found.cpu()]
        odds = match_pairs(
            model, pairs, images=found.flatten(), texts=queries.repeat_interleave(found.shape[1]), **options
        )
    match = odds.view_as(found).amax(dim=1).double().sigmoid()
    rates = {
        "probability of a match": cross_fitted(match, present=present, fold=fold),
        "cosine similarity": cross_fitted(cosine[:, 0].cpu().double(), present=present, fold=fold),
    }
    there, gone = int(present.sum()), int((~present).sum())
    where = f"{data_name(source)} {split}, {there} texts with their image in the gallery and {gone} without, percent"
    headers = ("cut-off", "match found", "no match said", "balanced accuracy", "chance")
    table = _table("best candidate's", headers, title=f'"No match" on {where}')
    for name, each in rates.items():
        shares = (f"{100 * rate:.1f}" for rate in (each.found, each.refused, each.accuracy, 0.5))
        table.add_row(name, f"{each.cutoff:.4g}", *shares)
    settings = {"match_cutoff": rates["probability of a match"].cutoff}
    write_settings(Path(folder), **settings)
    return Choice(settings, {"match_cutoff": getattr(model.config, "match_cutoff", None)}, table, rates)


def cross_fitted(
    scores: Float[Tensor, " query"], *, present: Bool[Tensor, " query"], fold: Bool[Tensor, " query"]
) -> Rates:
    """Return the best cut-off, with the rates of each fold's queries under the best cut-off of the other fold.

    Args:
        scores: Score of each query's best candidate.
        present: True for queries with a match; each fold has both kinds.
        fold: True for the queries of one fold.
    """
    accepted = torch.empty_like(present)
    for part in (fold, ~fold):
        accepted[part] = scores[part] >= best_cutoff(scores[~part], present=present[~part])
    found, refused = accepted[present].double().mean().item(), (~accepted[~present]).double().mean().item()
    return Rates(best_cutoff(scores, present=present), found, refused)


def best_cutoff(scores: Float[Tensor, " query"], *, present: Bool[Tensor, " query"]) -> float:
    """Return the middle one of the cut-offs with the best balanced accuracy; ValueError if all scores are equal.

    A cut-off lies halfway between two scores.
    """
    values = scores.unique()
    if len(values) < 2:
        raise ValueError(f"the best candidates of all queries have the score {values.item():g}: nothing separates them")
    middles = (values[1:] + values[:-1]) / 2
    ordered = [scores[present == there].sort().values for there in (True, False)]
    below = [torch.searchsorted(part, middles).double() / len(part) for part in ordered]
    return middle_best(tuple(middles.tolist()), (below[1] - below[0]).tolist())


def middle_best(values: tuple[float, ...], scores: list[float]) -> float:
    """Return the value with the largest score; of several, the one next to the middle of them."""
    best = [value for value, score in zip(values, scores, strict=True) if score == max(scores)]
    middle = (best[0] + best[-1]) / 2
    return min(best, key=lambda value: abs(value - middle))


def write_settings(folder: Path, **settings: float) -> None:
    """Write settings into `config.json`, on the main process; all else stays as it is."""
    if is_main():
        write_file(folder / "config.json", json.dumps(read_config(folder) | settings, indent=2, sort_keys=True) + "\n")


def _read(
    folder: str | Path, *, source: str, split: str, limit: int | None = None, device: str | None = None
) -> tuple[VLMoForImageTextRetrieval, PairSet]:
    if split == "test":
        raise ValueError(
            "settings are chosen on data that nothing is measured on afterwards; give --split with another part of "
            "the data than test"
        )
    model, processor = RetrievalTask.load(folder, device=device)
    if model.match_head is None:
        raise ValueError(f"{folder}: this model has no matching head, so that it scores no pairs")
    notes = notes_folder(folder)
    rows = PairSet.read(source=source, split=split, processor=processor, notes=notes, limit=limit)
    if isinstance(rows, CompositionSet):
        raise ValueError(f"{source} has false captions, which nothing is searched among; give pairs")
    return model, rows


def _table(first: str, headers: tuple[str, ...], *, title: str) -> Table:
    table = Table(first, title=escaped(title))
    for name in headers:
        table.add_column(name, justify="right")
    return table
