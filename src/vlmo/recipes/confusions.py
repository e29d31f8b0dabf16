"""What a model takes for what: its most frequent wrong first answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from vlmo.recipes.task_result import Prediction


class Confusion(NamedTuple):
    """Two names, in the order of the alphabet, and how often one was the first answer where the other was asked for."""

    first: str
    second: str
    times: int


def confusions(predictions: Sequence[Prediction], *, most: int = 10) -> list[Confusion]:
    """The pairs of names that are confused most often, in both directions of retrieval.

    Args:
        predictions: Of `evaluate_folder`. A picture is called by its first caption.
        most: Pairs that are given at most.
    """
    names: dict[str, str] = {}  # of pictures
    called: dict[str, str] = {}  # by any of their captions
    for row in predictions:
        if row["query"] == "caption":
            name = names.setdefault(row["image_id"], row["caption"])
            called.setdefault(row["caption"], name)
    pairs: Counter[tuple[str, str]] = Counter()
    for row in predictions:
        answer = row["found"][0]
        asked, given = (names[row["image_id"]], names[answer] if row["query"] == "caption" else called[answer])
        if row["rank"] > 1 and asked != given:
            pairs[min(asked, given), max(asked, given)] += 1
    ordered = sorted(pairs.items(), key=lambda pair: (-pair[1], pair[0]))
    return [Confusion(*pair, times) for pair, times in ordered[:most]]


def confusions_table(found: Sequence[Confusion]) -> str:
    """A table in Markdown, or a line if nothing was confused."""
    if not found:
        return "Every first answer was right."
    lines = ["| one | the other | times |", "| --- | --- | --- |"]
    cells = [[str(cell).replace("|", "\\|") for cell in pair] for pair in found]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in cells)])
