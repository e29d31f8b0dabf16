"""What a search finds, as plain data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Hit:
    """One picture that was found.

    Attributes:
        id: Of the picture in its index; the same as long as the picture stays where it is.
        score: What the order is by: the mixed score in nats where the fusion encoder looked, else the similarity.
        similarity: Cosine of the vectors of query and picture.
        match: Log-odds that the text belongs to the picture; None where the fusion encoder did not look.
        path: Where the picture lies; None if the index holds it.
        captions: Its captions; of a search for captions, the one that was found.
        metadata: Every other column.
        width: In pixels.
        height: In pixels.
        place: Where the picture came from, for people: a file, or a shard and the record in it.
    """

    id: str
    score: float
    similarity: float
    match: float | None
    path: str | None
    captions: tuple[str, ...]
    metadata: Mapping[str, Any]
    width: int
    height: int
    place: str = ""


@dataclass(frozen=True)
class SearchResult:
    """What one search found, best first.

    Attributes:
        hits: Pictures; of a search for captions, a hit for each caption.
        num_reranked: How many candidates the fusion encoder judged.
        num_late: How many it did not, because the time was up.
        unreadable: Candidates that it did not judge, because their pictures are gone or damaged.
        seconds: Spent in "encode", "index" and "rerank".
    """

    hits: list[Hit]
    num_reranked: int = 0
    num_late: int = 0
    unreadable: tuple[Hit, ...] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        """False if the time ran out before all candidates were judged."""
        return not self.num_late

    @property
    def note(self) -> str | None:
        """What to know about the result, in words; None: nothing."""
        return self.noted(lambda hit: hit.place)

    def noted(self, named: Callable[[Hit], str]) -> str | None:
        """`note`, where `named` says what a picture is called: its place is not for everybody."""
        notes = []
        if self.num_late:
            total = self.num_late + self.num_reranked + len(self.unreadable)
            notes.append(
                f"the time was up after {self.num_reranked} of {total} candidates had been judged; the others follow "
                "in the order of their vectors"
            )
        if self.unreadable:
            notes.append(
                f"{len(self.unreadable)} pictures could not be read and were not judged, such as "
                f"{named(self.unreadable[0])}"
            )
        return "; ".join(notes) or None
