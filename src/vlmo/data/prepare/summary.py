"""The counts of a preparation, as a table and lines for people, and as `prepared.json`."""

from __future__ import annotations

import dataclasses
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MANY_BAD = 0.01
"""Share of quarantined rows above which the report warns; `filter_invalid_rows` stops a run at the same share."""


@dataclass(frozen=True)
class SplitSummary:
    """Counts of one split.

    Attributes:
        removed_captions: Empty captions that were taken out of rows that stayed.
        absent: Records that are left out, such as a link that could not be downloaded, by reason.
        expected: The published size, if there is one.
        shared_with_train: Rows whose unique column has a value that is in "train" too.
        licences: Rows by their terms.
    """

    rows: int = 0
    captions: int = 0
    quarantined: int = 0
    removed_captions: int = 0
    absent: dict[str, int] = field(default_factory=dict)
    expected: int | None = None
    shared_with_train: int = 0
    licences: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Summary:
    """The contents of a prepared folder: `layout` is its version, `sources` the folders that it was read from.

    `already`: the folder was there before, so that nothing was done.
    """

    name: str
    folder: Path
    layout: int
    licence: str
    sources: list[str]
    splits: dict[str, SplitSummary]
    labels: list[str] | None = None
    notes: list[str] = field(default_factory=list)
    already: bool = False

    HEADER = ("split", "rows", "captions", "quarantined", "known size")

    def rows(self) -> list[tuple[str, ...]]:
        """Return the table below `HEADER`: a line for each split."""
        table: list[tuple[str, ...]] = []
        for split, counts in self.splits.items():
            numbers = (counts.rows, counts.captions, counts.quarantined, counts.expected)
            table.append((split, *("" if number is None else f"{number:,}" for number in numbers)))
        return table

    def lines(self) -> list[str]:
        """Return warnings, notes, the terms, and where the folder is."""
        warnings, notes, terms = [], list(self.notes), Counter[str]()
        for split, counts in self.splits.items():
            bad, total = counts.quarantined, counts.rows + counts.quarantined
            if counts.expected is not None and counts.rows != counts.expected:
                known = f"{counts.rows:,} rows" + (f" ({bad:,} quarantined)" if bad else "")
                warnings.append(f"{split} has {known}; the whole set has {counts.expected:,}")
            if bad > MANY_BAD * total:
                warnings.append(f"{bad / total:.1%} of {split} cannot be used; quarantine.jsonl says why")
            if counts.shared_with_train:
                warnings.append(f"{counts.shared_with_train:,} rows of {split} are in train too")
            notes += [f"{split}: {count:,} records left out: {reason}" for reason, count in counts.absent.items()]
            if count := counts.removed_captions:
                notes.append(f"{split}: {count:,} empty captions removed; quarantine.jsonl lists them")
            terms.update(counts.licences)
        rows = ", ".join(f"{licence} {count:,}" for licence, count in terms.most_common())
        done = "was prepared before and is as it was; remove it to prepare it anew" if self.already else "is ready"
        return [
            *(f"warning: {warning}" for warning in warnings),
            *(f"note: {note}" for note in notes),
            *([f"labels: {len(self.labels):,}"] if self.labels else []),
            f"licence: {self.licence}" + (f" ({rows})" if len(terms) > 1 else ""),
            f"{self.folder} {done}",
        ]

    def to_json(self) -> dict[str, Any]:
        """Return the content of `prepared.json`."""
        facts = dataclasses.asdict(self) | {"quarantined": sum(each.quarantined for each in self.splits.values())}
        return {name: value for name, value in facts.items() if name not in ("folder", "already")}

    @classmethod
    def from_json(cls, facts: dict[str, Any], *, folder: Path) -> Summary:
        """Return the summary of a folder that was prepared before."""
        names = ("name", "layout", "licence", "labels", "sources", "notes")
        splits = {split: SplitSummary(**counts) for split, counts in facts["splits"].items()}
        return cls(folder=folder, splits=splits, already=True, **{name: facts[name] for name in names})
