"""Search by words or by picture: a shortlist by vectors, then the fusion encoder's judgement on it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float32
from PIL import Image

from vlmo.data.decoding import decode_image
from vlmo.drawing.pictures import heat_map
from vlmo.retrieval.encoder import Encoder
from vlmo.retrieval.hits import Hit, SearchResult
from vlmo.retrieval.index import MAX_TOP, Index

JUDGED_AT_ONCE = 8
"""Pairs that go through the fusion encoder between two looks at the clock."""
_HEAT_PIXELS = 288

Pairs = Callable[[Sequence[Hit]], tuple[list[Image.Image], list[str]]]
"""The pictures and texts of which candidates are judged."""


class Searcher:
    """A model and an index of its vectors. Threads may share one.

    Args:
        model: Model folder, or what `Encoder` made of one.
        index: Index folder, or an open one.
        device: Where the model runs, if a folder is given; None takes a GPU if there is one.

    Raises:
        ValueError: One of them cannot be opened, or the index was made with another model.
    """

    def __init__(self, model: str | Path | Encoder, index: str | Path | Index, *, device: str | None = None) -> None:
        self.index = index if isinstance(index, Index) else Index.open(index)
        self.encoder = model if isinstance(model, Encoder) else Encoder(model, device=device)
        if self.encoder.fingerprint != self.index.fingerprint:
            raise ValueError(
                f"{self.index.folder} was made with another model ({self.index.model_folder}, fingerprint "
                f"{self.index.fingerprint[:8]}) than {self.encoder.folder} ({self.encoder.fingerprint[:8]}): their "
                "vectors cannot be compared. Use that model, or build an index with this one"
            )
        self._speed = _Speed()

    encoder: Encoder
    index: Index

    def search(
        self,
        query: str | Path | Image.Image,
        *,
        top: int = 10,
        rerank: int = 0,
        weight: float | None = None,
        where: str | None = None,
        budget: float | None = None,
    ) -> SearchResult:
        """Pictures for a text, or like a picture.

        The fusion encoder judges the `rerank` best candidates of a text, and only these change places:

            score = (1 - weight) * similarity / temperature + weight * log-odds of a match

        It judges from the best candidate down, a few at a time, and stops before the budget would be overrun. Those it
        has judged stand first, in the order of their scores; the others follow as the vectors put them. So a search
        that ran out of time gives what a smaller `rerank` would have given.

        Args:
            query: A text, a picture, or the path of a picture's file.
            top: How many pictures, at most.
            rerank: How many candidates the fusion encoder judges; 0: none. For texts only.
            weight: Share of its judgement, 0 to 1; None: what the model's configuration says.
            where: A filter in SQL over the columns of metadata.
            budget: Seconds for the whole search; None: no limit. Vectors are always compared.

        Raises:
            ValueError: An argument is wrong; the message says what is right.
        """
        start = time.perf_counter()
        text = _text(query) if isinstance(query, str) else None
        weight = self._checked(text, top=top, rerank=rerank, weight=weight, budget=budget)
        vector = self._encoded(query)
        encoded = time.perf_counter()
        deadline = None if budget is None else start + budget
        found = self._find(vector, text, top=top, rerank=rerank, weight=weight, where=where, deadline=deadline)
        return replace(found, seconds={"encode": encoded - start, **found.seconds})

    def search_vector(
        self,
        vector: Float32[np.ndarray, " dim"],
        *,
        text: str | None = None,
        top: int = 10,
        rerank: int = 0,
        weight: float | None = None,
        where: str | None = None,
        budget: float | None = None,
    ) -> SearchResult:
        """`search` with a vector that the encoder gave before.

        Args:
            text: The text of the vector, which the fusion encoder reads; None with `rerank` 0.
            budget: Seconds from now.
        """
        deadline = None if budget is None else time.perf_counter() + budget
        weight = self._checked(text, top=top, rerank=rerank, weight=weight, budget=budget)
        found = self._find(vector, text, top=top, rerank=rerank, weight=weight, where=where, deadline=deadline)
        return replace(found, seconds={"encode": 0.0, **found.seconds})

    def captions(
        self,
        picture: Path | Image.Image,
        *,
        top: int = 10,
        rerank: int = 0,
        weight: float | None = None,
        budget: float | None = None,
    ) -> SearchResult:
        """Captions of the index that describe a picture; each hit has one, and is the picture that it was written for.

        Arguments as for `search`.
        """
        start = time.perf_counter()
        weight = self._checked("", top=top, rerank=rerank, weight=weight, budget=budget)
        opened = _opened(picture)
        vector = self.encoder.embed_images([opened])[0]
        encoded = time.perf_counter()
        shortlist = self.index.nearest_captions(vector, top=max(top, rerank))
        found = time.perf_counter()
        seconds = {"encode": encoded - start, "index": found - encoded}
        if not rerank:
            return SearchResult(shortlist[:top], seconds=seconds)

        def pairs(hits: Sequence[Hit]) -> tuple[list[Image.Image], list[str]]:
            return [opened] * len(hits), [hit.captions[0] for hit in hits]

        deadline = None if budget is None else start + budget
        judged = self._judge(shortlist, pairs, rerank=rerank, weight=weight, deadline=deadline)
        return judged.result(top=top, seconds={**seconds, "rerank": time.perf_counter() - found})

    def similar(self, id: str, *, top: int = 10, where: str | None = None) -> SearchResult:  # noqa: A002
        """Pictures like one of the index, without itself.

        Raises:
            ValueError: There is no such picture, or an argument is wrong.
        """
        start = time.perf_counter()
        if not 1 <= top < MAX_TOP:
            raise ValueError(f"top is {top}; give a number from 1 to {MAX_TOP - 1}")
        hits = self.index.nearest(self.index.vector(id), top=top + 1, where=where)
        hits = [hit for hit in hits if hit.id != id][:top]
        return SearchResult(hits, seconds={"encode": 0.0, "index": time.perf_counter() - start})

    def explain(self, query: str, id: str) -> list[tuple[str, Image.Image]]:  # noqa: A002
        """For each word of a text, the picture with a heat where the fusion encoder looks from that word.

        Raises:
            ValueError: There is no such picture, or no word in the text.
        """
        picture = self.index.picture(id)
        words, maps = self.encoder.attention(picture, _text(query))
        heats = [heat_map(picture, torch.from_numpy(weights), size=_HEAT_PIXELS) for weights in maps]
        return list(zip(words, heats, strict=True))

    def warm_up(self) -> None:
        """Learns how long the fusion encoder takes for a pair, so that the first search keeps its budget too."""
        if self.encoder.can_match:
            blank = Image.new("RGB", (256, 256), "white")
            for count in (1, JUDGED_AT_ONCE):  # the first call of a model takes longer than those that follow
                start = time.perf_counter()
                self.encoder.match([blank] * count, ["a picture"] * count)
            self._speed.tell((time.perf_counter() - start) / JUDGED_AT_ONCE)

    # ------------------------------------------------------------------------------------------------------- the parts

    def _encoded(self, query: str | Path | Image.Image) -> Float32[np.ndarray, " dim"]:
        if isinstance(query, str):
            return self.encoder.embed_texts([query])[0]
        return self.encoder.embed_images([_opened(query)])[0]

    def _find(
        self,
        vector: Float32[np.ndarray, " dim"],
        text: str | None,
        *,
        top: int,
        rerank: int,
        weight: float,
        where: str | None,
        deadline: float | None,
    ) -> SearchResult:
        start = time.perf_counter()
        shortlist = self.index.nearest(vector, top=max(top, rerank), where=where)
        found = time.perf_counter()
        seconds = {"index": found - start}
        if not rerank:
            return SearchResult(shortlist[:top], seconds=seconds)

        def pairs(hits: Sequence[Hit]) -> tuple[list[Image.Image], list[str]]:
            return self.index.pictures([hit.id for hit in hits]), [text or ""] * len(hits)

        judged = self._judge(shortlist, pairs, rerank=rerank, weight=weight, deadline=deadline)
        return judged.result(top=top, seconds={**seconds, "rerank": time.perf_counter() - found})

    def _checked(self, text: str | None, *, top: int, rerank: int, weight: float | None, budget: float | None) -> float:
        """The weight, when all is well.

        Raises:
            ValueError: It is not.
        """
        if not 1 <= top <= MAX_TOP or not 0 <= rerank <= MAX_TOP:
            raise ValueError(f"top is {top} and rerank {rerank}; give a top from 1 and a rerank from 0, to {MAX_TOP}")
        if weight is not None and not 0 <= weight <= 1:
            raise ValueError(f"weight is {weight}; give the share of the fusion encoder's judgement, from 0 to 1")
        if budget is not None and not budget > 0:
            raise ValueError(f"budget is {budget}; give a number of seconds above 0, or none for no limit")
        if rerank and text is None:
            raise ValueError("the query is a picture, and the fusion encoder judges texts; leave rerank at 0")
        if rerank and not self.encoder.can_match:
            raise ValueError(f"{self.encoder.folder}: this model has no matching head; leave rerank at 0")
        return self.encoder.rerank_weight if weight is None else weight

    def _judge(
        self, shortlist: list[Hit], pairs: Pairs, *, rerank: int, weight: float, deadline: float | None
    ) -> _Judged:
        """Judges the best `rerank` of a shortlist while there is time."""
        candidates, rest = shortlist[:rerank], shortlist[rerank:]
        scale = self.encoder.inverse_temperature
        done = _Judged()
        while candidates:
            # Nobody knows how long a pair takes before the first one has been judged.
            count = JUDGED_AT_ONCE if deadline is None or self._speed.known else 1
            if deadline is not None:
                count = min(count, self._speed.number_until(deadline))
            if count < 1:
                break
            part = candidates[:count]
            start = time.perf_counter()
            readable, missing = self._readable(part, pairs)
            try:
                odds = self.encoder.match([pair[1] for pair in readable], [pair[2] for pair in readable])
            except TimeoutError:  # of an encoder that knows when the time is up, and waits no longer
                break
            finally:
                self._speed.tell((time.perf_counter() - start) / len(part))
            for (hit, _, _), match in zip(readable, odds.tolist(), strict=True):
                score = (1 - weight) * scale * hit.similarity + weight * match
                done.judged.append(replace(hit, score=score, match=match))
            done.lost += missing
            candidates = candidates[count:]
        done.unjudged = [*candidates, *rest]
        done.num_late = len(candidates)
        return done

    def _readable(self, hits: Sequence[Hit], pairs: Pairs) -> tuple[list[tuple[Hit, Image.Image, str]], list[Hit]]:
        """Candidates with what is judged of them, and those whose picture is gone."""
        try:
            return list(zip(hits, *pairs(hits), strict=True)), []
        except ValueError:
            if len(hits) == 1:
                return [], list(hits)
        parts = [self._readable([hit], pairs) for hit in hits]
        return [pair for readable, _ in parts for pair in readable], [hit for _, lost in parts for hit in lost]


@dataclass
class _Judged:
    """How far the fusion encoder came."""

    judged: list[Hit] = field(default_factory=list)
    lost: list[Hit] = field(default_factory=list)
    unjudged: list[Hit] = field(default_factory=list)
    num_late: int = 0

    def result(self, *, top: int, seconds: dict[str, float]) -> SearchResult:
        """Judged ones by their scores (equal ones as the vectors put them), then all others by the vectors."""
        judged = sorted(self.judged, key=lambda hit: -hit.score)
        others = sorted([*self.lost, *self.unjudged], key=lambda hit: -hit.similarity)
        return SearchResult(
            hits=[*judged, *others][:top],
            num_reranked=len(self.judged),
            num_late=self.num_late,
            unreadable=tuple(self.lost),
            seconds=seconds,
        )


class _Speed:
    """Seconds that a pair took lately, the slowest of them, to tell what can still be done in time."""

    _REMEMBERED = 16

    def __init__(self) -> None:
        self._lately: list[float] = []
        self._lock = threading.Lock()

    @property
    def known(self) -> bool:
        """Whether a pair has been timed."""
        return bool(self._lately)

    def tell(self, seconds: float) -> None:
        """How long a pair took."""
        with self._lock:
            self._lately = [*self._lately[1 - self._REMEMBERED :], seconds]

    def number_until(self, deadline: float) -> int:
        """How many pairs end before the deadline, if they are as slow as the slowest lately.

        Where that is none, the slowest is forgotten, but for the last: a busy moment shall not end judging for good.
        """
        left = deadline - time.perf_counter()
        if left <= 0:
            return 0
        with self._lock:
            slowest = max(self._lately, default=0.0)
            if slowest > left and len(self._lately) > 1:
                self._lately.remove(slowest)
        return JUDGED_AT_ONCE if slowest * JUDGED_AT_ONCE <= left else int(left / slowest)


def _text(query: str) -> str:
    if not query.strip():
        raise ValueError("the query is empty; give some words")
    return query


def _opened(picture: str | Path | Image.Image) -> Image.Image:
    if isinstance(picture, Image.Image):
        return picture
    return decode_image({"bytes": None, "path": str(Path(picture).expanduser())})
