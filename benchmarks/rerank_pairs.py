"""Recall of searches that score only candidates that matter, beside those that score all 32, and the share of pairs.

    python benchmarks/rerank_pairs.py --sets vlmo-small:emoji-pairs:test MODEL:shapes:test --out result.json
    PYTHONPATH=. python benchmarks/rerank_pairs.py --imports worlds --sets vlmo-small:scenes:test

Every caption of a split is searched for among its images. The fusion encoder scores the 32 best candidates of each
once; from these numbers both kinds of searches are made, for results of 1, 5 and 10 images. Intervals are of the
difference, from a thousand samples of the queries.
"""

import importlib
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro

from surroundings import surroundings, write_result
from vlmo.evaluation.retrieval import rank_candidates
from vlmo.evaluation.scoring import embed, match_pairs
from vlmo.model.reranking import SEARCH_RERANK, num_wanted, rerank_score
from vlmo.released import find_model
from vlmo.retrieval.search import STEP
from vlmo.tasks.pair_sets import PairSet
from vlmo.tasks.retrieval import RetrievalTask

_SAMPLES = 1000


@dataclass(frozen=True)
class Options:
    """Counts the pairs that searches score, and what recall loses."""

    sets: tuple[str, ...]
    """MODEL:DATA:SPLIT each; a model is a folder or a name."""
    tops: tuple[int, ...] = (1, 5, 10)
    """Sizes of results."""
    imports: tuple[str, ...] = ()
    """Modules that register data."""
    limit: int | None = None
    """Rows of each split, at most."""
    out: Path | None = None
    """JSON file for the result."""


def scored(
    similarity: Sequence[float], match: Sequence[float], *, weight: float, scale: float, top: int
) -> int:
    """Number of candidates that a search scores."""
    count = min(max(STEP, top), len(match))
    while wanted := num_wanted(similarity, match[:count], weight=weight, scale=scale, top=top):
        count += min(wanted, STEP)
    return count


def figures(model: Any, pairs: Any, *, tops: Sequence[int]) -> dict[str, Any]:
    """Recall of the dual encoder and with all candidates scored, and the other search's, by size of the result."""
    own, weight = pairs.as_set(), model.config.rerank_weights[1]
    scale = float(model.contrast_head.logit_scale.detach().exp())
    images, texts = embed(model, own)
    ranking = rank_candidates(
        texts, images, own.text_to_image, torch.arange(own.num_images), k=SEARCH_RERANK
    )
    similarity, found = ranking.scores, ranking.indices
    numbers = torch.arange(own.num_texts)[:, None].expand_as(found)
    match = match_pairs(model, own, images=found.flatten(), texts=numbers.flatten()).view(
        found.shape
    )
    right = (found == own.text_to_image[:, None]).numpy()
    similarity, match = similarity.double().numpy(), match.double().numpy()
    mixed = rerank_score(similarity, match, weight=weight, scale=scale)
    result: dict[str, Any] = {"queries": len(match), "images": own.num_images, "weight": weight}
    random = np.random.default_rng(0)
    for top in tops:
        counts = [
            scored(*each, weight=weight, scale=scale, top=top)
            for each in zip(similarity.tolist(), match.tolist(), strict=True)
        ]
        some = np.where(np.arange(match.shape[1]) < np.array(counts)[:, None], mixed, -np.inf)
        full, fewer = (
            np.take_along_axis(right, np.argsort(-each, axis=1, kind="stable"), 1)[:, :top].any(1)
            for each in (mixed, some)
        )
        lost = 100.0 * (fewer.astype(float) - full)
        samples = [lost[random.integers(len(lost), size=len(lost))].mean() for _ in range(_SAMPLES)]
        result[f"top {top}"] = {
            "pairs": round(float(np.mean(counts)), 2),
            "share_of_pairs": round(float(np.mean(counts)) / match.shape[1], 3),
            "recall_dual": round(100 * float(right[:, :top].any(1).mean()), 2),
            "recall_all_scored": round(100 * float(full.mean()), 2),
            "difference": round(float(lost.mean()), 2),
            "interval_95": [round(float(each), 2) for each in np.percentile(samples, [2.5, 97.5])],
        }
    return result


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Prints the figures of each set, and writes them with `--out`."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    options = tyro.cli(Options, args=arguments, description=__doc__)
    for name in options.imports:
        importlib.import_module(name)
    result = surroundings("rerank_pairs.py", arguments, packages=("torch", "numpy")) | {"sets": {}}
    with tempfile.TemporaryDirectory() as notes:
        for number, (folder, data, split) in enumerate(each.split(":") for each in options.sets):
            model, processor = RetrievalTask.load(find_model(Path(folder)))
            how: dict[str, Any] = {
                "processor": processor,
                "notes": Path(notes),
                "limit": options.limit,
            }
            found = figures(model, PairSet.read(source=data, split=split, **how), tops=options.tops)
            shown = Path(folder).parent.name if Path(folder).is_absolute() else folder
            result["sets"][f"{number}: {shown}, {data} {split}"] = found
            print(data, split, found, file=sys.stderr)
            write_result(result, options.out)
    return result


if __name__ == "__main__":
    main()
