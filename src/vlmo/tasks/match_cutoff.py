"""Choice of the probability of a match below which a search says "no match", kept in the model folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float
from rich.console import Console
from rich.table import Table
from torch import Tensor

from vlmo.distributed import is_main
from vlmo.evaluation.inference import BATCH
from vlmo.evaluation.recall import chunked_topk
from vlmo.evaluation.scoring import embed_images, embed_texts, match_pairs
from vlmo.progress import Progress
from vlmo.retrieval.search import SEARCH_RERANK
from vlmo.tasks.rerank_weight import best_weight, read_to_choose, write_settings
from vlmo.tasks.result import data_name
from vlmo.terminal import escaped


@dataclass(frozen=True)
class Cutoff:
    """A cut-off on a score of the best candidate; rates are those of cut-offs that were chosen on other queries.

    Attributes:
        value: The cut-off, chosen on all queries.
        found: Share of the queries with a match that reach the cut-off.
        refused: Share of the queries without a match that stay below it.
    """

    value: float
    found: float
    refused: float

    @property
    def accuracy(self) -> float:
        """Balanced accuracy; chance is 0.5."""
        return (self.found + self.refused) / 2


@dataclass(frozen=True)
class CutoffChoice:
    """The cut-off on the largest probability of a match among the candidates, and one on the cosine for comparison.

    Attributes:
        before: The cut-off in the model's configuration before.
        num_queries: Number of queries with and without a match.
        data: Name and split of the pairs.
    """

    match: Cutoff
    cosine: Cutoff
    before: float | None
    num_queries: tuple[int, int]
    data: str = ""

    def table(self) -> Table:
        """Return cut-offs with their rates in percent."""
        there, gone = self.num_queries
        title = f'"No match" on {self.data}, {there} texts with their image in the gallery and {gone} without, percent'
        table = Table("best candidate's", title=escaped(title))
        for name in ("cut-off", "match found", "no match said", "balanced accuracy", "chance"):
            table.add_column(name, justify="right")
        for name, cutoff in (("probability of a match", self.match), ("cosine similarity", self.cosine)):
            rates = (f"{100 * rate:.1f}" for rate in (cutoff.found, cutoff.refused, cutoff.accuracy, 0.5))
            table.add_row(name, f"{cutoff.value:.4g}", *rates)
        return table

    def summary(self) -> str:
        """Return the cut-off that was chosen, with the one before."""
        return f"match_cutoff {self.match.value:.4g} (before: {self.before})"


def choose_cutoff(
    folder: str | Path,
    *,
    source: str,
    split: str,
    rerank: int = SEARCH_RERANK,
    limit: int | None = None,
    batch_size: int = BATCH,
    device: str | None = None,
    console: Console | None = None,
) -> CutoffChoice:
    """Choose the cut-off that best separates texts whose image is in a gallery from others; write it to `config.json`.

    The gallery is a random half of the images, always the same; the captions of the other half have no match there,
    unless an image of the gallery has the same caption: such texts are left out. The fusion encoder scores the `rerank`
    nearest images of each text, and the cut-off is on the largest probability among them. Arguments as for
    `RetrievalTask.evaluate`.

    Raises:
        ValueError: The split is the one to be measured on afterwards, the model has no matching head, the data cannot
            be read or are too few, or `rerank` is below 1.
    """
    if rerank < 1:
        raise ValueError(f"rerank is {rerank}; give the number of candidates that the fusion encoder scores, from 1 up")
    model, rows = read_to_choose(folder, source=source, split=split, limit=limit, device=device)
    pairs = rows.as_set()
    place = torch.randperm(pairs.num_images, generator=torch.Generator().manual_seed(0))
    gallery = (place % 2 == 0).nonzero().flatten()
    present = (place % 2 == 0)[pairs.text_to_image]
    known = {caption for caption, there in zip(rows.captions, present.tolist(), strict=True) if there}
    queries = (present | torch.tensor([caption not in known for caption in rows.captions])).nonzero().flatten()
    present, fold = present[queries], (place // 2 % 2 == 0)[pairs.text_to_image[queries]]
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
    best = odds.view_as(found).amax(dim=1).double().sigmoid()
    choice = CutoffChoice(
        match=cross_fitted(best, present=present, fold=fold),
        cosine=cross_fitted(cosine[:, 0].cpu().double(), present=present, fold=fold),
        before=getattr(model.config, "match_cutoff", None),
        num_queries=(int(present.sum()), int((~present).sum())),
        data=f"{data_name(source)} {split}",
    )
    if is_main():
        write_settings(Path(folder), match_cutoff=choice.match.value)
    return choice


def cross_fitted(
    scores: Float[Tensor, " query"], *, present: Bool[Tensor, " query"], fold: Bool[Tensor, " query"]
) -> Cutoff:
    """Return the best cut-off, with the rates of each fold's queries under the best cut-off of the other fold.

    Args:
        scores: Score of each query's best candidate.
        present: True for queries with a match; each fold has both kinds.
        fold: True for the queries of one fold.
    """
    accepted = torch.empty_like(present)
    for part in (fold, ~fold):
        accepted[part] = scores[part] >= best_cutoff(scores[~part], present=present[~part])
    rates = (accepted[present].double().mean().item(), (~accepted[~present]).double().mean().item())
    return Cutoff(best_cutoff(scores, present=present), *rates)


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
    return best_weight(tuple(middles.tolist()), (below[1] - below[0]).tolist())
