"""Words beside vectors: how often an image is found first by its name, with and without names in its file's name.

    PYTHONPATH=. python benchmarks/word_search.py --data data/icons --split new_names --out word-search.json

Each image of a set is a file, and its first caption the query. Three indexes differ in the names of the files alone:
all have the caption (`achillesHeel_0000.png`), every other one has, or none (`IMG_0000.png`). Intervals are those of
2,000 bootstrap samples of the queries, 95 %; a difference is that of both ways on the same query.
"""

import re
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro

import worlds  # noqa: F401  (registers its sets)
from surroundings import surroundings, write_result
from vlmo.data.sources import open_source
from vlmo.retrieval import Encoder, Index, Searcher, build_index

_RESAMPLES = 2000


@dataclass(frozen=True)
class Options:
    """Searches a set by its captions."""

    data: str = "lucide-icons"
    """Set with captions."""
    split: str = "test"
    """Split of it."""
    model: str = "vlmo-small"
    """Model folder, or name."""
    rerank: int = 0
    """Candidates that the fusion encoder scores."""
    out: Path | None = None
    """JSON file for the result."""


def file_name(caption: str, number: int, *, is_named: bool) -> str:
    """Return a name as people give them: words in one, or what a camera writes."""
    words = re.findall(r"\w+", caption) if is_named else []
    return f"{''.join([*words[:1], *(word.capitalize() for word in words[1:])]) or 'IMG'}_{number:04d}.png"


def interval(values: np.ndarray) -> dict[str, float]:
    """Return mean and bounds in percent."""
    draw = np.random.default_rng(0)
    means = [100 * values[draw.integers(len(values), size=len(values))].mean() for _ in range(_RESAMPLES)]
    low, high = np.percentile(means, [2.5, 97.5])
    return {"mean": 100 * float(values.mean()), "low": float(low), "high": float(high)}


def first_hits(searcher: Searcher, captions: Sequence[str], mode: Any, *, rerank: int) -> np.ndarray:
    """Return which queries find an image of this caption first, and the ids of their ten best."""
    numbers = []
    for caption in captions:
        hits = searcher.search(caption, mode=mode, rerank=0 if mode == "words" else rerank).hits
        numbers.append([int(Path(hit.path).stem.rpartition("_")[2]) for hit in hits] + [-1] * (10 - len(hits)))
    return np.array(numbers)


def measure(encoder: Encoder, rows: Sequence[dict[str, Any]], named: str, options: Options) -> dict[str, Any]:
    """Return recall of an index in which `named` (all, half, none) of the files have names."""
    captions = [row["captions"][0] for row in rows]
    is_named = np.array([{"all": True, "half": number % 2 == 0, "none": False}[named] for number in range(len(rows))])
    with tempfile.TemporaryDirectory() as folder:
        images = Path(folder) / "images"
        images.mkdir()
        for number, (row, caption) in enumerate(zip(rows, captions, strict=True)):
            (images / file_name(caption, number, is_named=is_named[number])).write_bytes(row["image"]["bytes"])
        build_index(encoder, [images], out=Path(folder) / "index")
        searcher = Searcher(encoder, Index(Path(folder) / "index", in_memory=True))
        modes = ("vectors", "words", "auto")
        found = {mode: first_hits(searcher, captions, mode, rerank=options.rerank) for mode in modes}
    result: dict[str, Any] = {"same_as_vectors": int((found["vectors"] == found["auto"]).all(axis=1).sum())}
    numbered = np.array([*captions, ""])  # -1 is no image
    right = {mode: numbered[each] == numbered[:-1, None] for mode, each in found.items()}
    for group, chosen in (("named", is_named), ("not named", ~is_named)):
        if not chosen.any():
            continue
        for at in (1, 10):
            best = {mode: each[chosen, :at].any(axis=1).astype(float) for mode, each in right.items()}
            result[f"{group}, IR@{at}"] = {mode: interval(each) for mode, each in best.items()} | {
                "auto - vectors": interval(best["auto"] - best["vectors"])
            }
    return result


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Print recall, and write the result with `--out`."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    options = tyro.cli(Options, args=arguments, description=__doc__)
    result = surroundings("word_search.py", arguments, packages=("lancedb", "torch", "numpy"))
    rows = [row for row in open_source(options.data, split=options.split) if row["captions"]]
    encoder = Encoder(options.model)
    result |= {"queries": len(rows), "files_with_names": {}}
    for named in ("all", "half", "none"):
        result["files_with_names"][named] = found = measure(encoder, rows, named, options)
        print(named, found)
    write_result(result, options.out)
    return result


if __name__ == "__main__":
    main()
