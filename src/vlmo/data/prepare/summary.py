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
    """The contents of a prepared folder.

    Attributes:
        layout: Version of the folder's layout.
        sources: Folders that the set was read from.
        labels: Names of answers or classes, None where the task has none.
        notes: Remarks of the preparer.
        already: The folder was there before, so that nothing was done.
    """

    name: str
    folder: Path
    layout: int
    licence: str
    sources: tuple[str, ...]
    splits: dict[str, SplitSummary]
    labels: list[str] | None = None
    notes: tuple[str, ...] = ()
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
        notes = list(self.notes)
        for split, counts in self.splits.items():
            notes += [f"{split}: {count:,} records left out: {reason}" for reason, count in counts.absent.items()]
            if counts.removed_captions:
                notes.append(
                    f"{split}: {counts.removed_captions:,} empty captions removed; quarantine.jsonl lists them"
                )
        terms: Counter[str] = Counter()
        for counts in self.splits.values():
            terms.update(counts.licences)
        rows = ", ".join(f"{licence} {count:,}" for licence, count in terms.most_common())
        done = "was prepared before and is as it was; remove it to prepare it anew" if self.already else "is ready"
        return [
            *(f"warning: {warning}" for warning in self.warnings()),
            *(f"note: {note}" for note in notes),
            *([f"labels: {len(self.labels):,}"] if self.labels else []),
            f"licence: {self.licence}" + (f" ({rows})" if len(terms) > 1 else ""),
            f"{self.folder} {done}",
        ]

    def warnings(self) -> list[str]:
        """Return remarks about splits to look into before training."""
        found = []
        for split, counts in self.splits.items():
            if counts.expected is not None and counts.rows != counts.expected:
                bad = f" ({counts.quarantined:,} quarantined)" if counts.quarantined else ""
                found.append(f"{split} has {counts.rows:,} rows{bad}; the whole set has {counts.expected:,}")
            if counts.quarantined > MANY_BAD * (counts.rows + counts.quarantined):
                share = counts.quarantined / (counts.rows + counts.quarantined)
                found.append(f"{share:.1%} of {split} cannot be used; quarantine.jsonl says why")
            if counts.shared_with_train:
                found.append(f"{counts.shared_with_train:,} rows of {split} are in train too")
        return found

    def to_json(self) -> dict[str, Any]:
        """Return the content of `prepared.json`."""
        quarantined = sum(counts.quarantined for counts in self.splits.values())
        facts = dataclasses.asdict(self) | {"sources": list(self.sources), "notes": list(self.notes)}
        del facts["folder"], facts["already"]
        return facts | {"quarantined": quarantined}

    @classmethod
    def from_json(cls, facts: dict[str, Any], *, folder: Path) -> Summary:
        """Return the summary of a folder that was prepared before."""
        own = {name: facts[name] for name in ("name", "layout", "licence", "labels")}
        splits = {split: SplitSummary(**counts) for split, counts in facts["splits"].items()}
        sources, notes = tuple(facts["sources"]), tuple(facts["notes"])
        return cls(folder=folder, sources=sources, splits=splits, notes=notes, already=True, **own)
