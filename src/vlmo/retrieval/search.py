"""Search by words or by image: a shortlist by vectors, reranked by the fusion encoder."""

from __future__ import annotations

import functools
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vlmo.data.decoding import decode_image
from vlmo.data.listing import image_named
from vlmo.export.sessions import Pixels
from vlmo.model.reranking import rerank_score
from vlmo.retrieval.encoder import Encoder
from vlmo.retrieval.index import MAX_TOP, Hit, Index
from vlmo.retrieval.memory import PixelMemory

SEARCH_RERANK = 32
"""Candidates that a search by words or for captions reranks unless another number is given: from Python, on the command
line, over HTTP and on the web page. As many are read and scored at a time without a deadline."""
RERANK_BATCH = 8
"""Pairs that go through the fusion encoder between two looks at the clock."""
_HEAT_PIXELS = 288


@dataclass(frozen=True)
class SearchResult:
    """Result of one search, best first.

    Attributes:
        hits: Images; of a search for captions, a hit for each caption.
        num_reranked: Number of candidates that the fusion encoder scored.
        num_late: Number of candidates that it did not score, because the time was up.
        unreadable: Candidates that it did not score, because their images are gone or damaged.
        seconds: Durations of "encode", "index" and "rerank".
        probability: Largest probability of a match among the scored candidates; None: none was scored.
        cutoff: Probability below which no candidate is a match; None: not known.
        unknown: True if the model reads the query in pieces, as it does nonsense.
    """

    hits: list[Hit]
    num_reranked: int = 0
    num_late: int = 0
    unreadable: tuple[Hit, ...] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)
    probability: float | None = None
    cutoff: float | None = None
    unknown: bool = False

    @property
    def complete(self) -> bool:
        """False if the time ran out before all candidates were reranked."""
        return not self.num_late

    @property
    def no_match(self) -> bool:
        """True if the query is unknown, or all candidates were scored and none reaches the cut-off.

        The hits are the nearest images even so.
        """
        if self.unknown or self.probability is None or self.cutoff is None:
            return self.unknown
        return self.complete and not self.unreadable and self.probability < self.cutoff

    @property
    def note(self) -> str | None:
        """Remarks on the result, in words; None if there are none."""
        return self.noted(lambda hit: hit.place)

    def noted(self, named: Callable[[Hit], str]) -> str | None:
        """`note` with other names of images than their places, which are not for everybody."""
        notes = []
        if self.unknown:
            notes.append("no match: the model does not know these words and reads them in pieces, as it does nonsense")
        elif self.no_match:
            best = f"{self.probability:.4g}"
            notes.append(f"no match: the best candidate has a probability of {best}, the cut-off is {self.cutoff:.4g}")
        if self.num_late:
            total = self.num_late + self.num_reranked + len(self.unreadable)
            notes.append(
                f"the time was up after {self.num_reranked} of {total} candidates had been reranked; the others follow "
                "in the order of their vectors"
            )
        if self.unreadable:
            first = named(self.unreadable[0])
            notes.append(f"{len(self.unreadable)} images could not be read and were not reranked, such as {first}")
        return "; ".join(notes) or None


class Speed:
    """Seconds a pair of the last calls of the fusion encoder, to tell how many can still be scored in time."""

    _REMEMBERED = 16

    def __init__(self) -> None:
        self._lately: list[float] = []
        self._lock = threading.Lock()

    def add(self, seconds: float) -> None:
        """Remember the seconds that a pair took."""
        with self._lock:
            self._lately = [*self._lately[1 - self._REMEMBERED :], seconds]

    def number_until(self, deadline: float) -> int:
        """Return how many pairs end before the deadline, up to a batch, if they are as slow as the slowest lately.

        One if no pair has been timed. Where it is none, the slowest is forgotten, but for the last: a busy moment shall
        not end reranking for good.
        """
        left = deadline - time.perf_counter()
        if left <= 0:
            return 0
        with self._lock:
            if not self._lately:
                return 1
            slowest = max(self._lately)
            if slowest > left and len(self._lately) > 1:
                self._lately.remove(slowest)
        return RERANK_BATCH if slowest * RERANK_BATCH <= left else int(left / slowest)


def sigmoid(odds: float) -> float:
    """Return the probability of log-odds."""
    return 1 / (1 + math.exp(-odds)) if odds > -700 else 0.0


class Reranking:
    """Order of a shortlist while its candidates are scored, a few at a time, from the best down.

    The caller scores the candidates of `next_batch` and hands their scores to `add` until there are none left, or the
    time is up.

    Args:
        shortlist: Hits in the order of their similarity.
        rerank: Number of candidates that are scored.
        weight: Share of the match score in the order.
        scale: Inverse temperature of the similarity.
        deadline: Time by `time.perf_counter` at which scoring must have ended; None: no limit.
        speed: Remembers how long a pair takes.
        cutoff: Probability below which no candidate is a match; None: not known.
        unknown: As in `SearchResult`.
    """

    def __init__(
        self,
        shortlist: Sequence[Hit],
        *,
        rerank: int,
        weight: float,
        scale: float,
        deadline: float | None,
        speed: Speed,
        cutoff: float | None = None,
        unknown: bool = False,
    ) -> None:
        self._left, self._rest = list(shortlist[:rerank]), list(shortlist[rerank:])
        self._weight, self._scale, self._speed = weight, scale, speed
        self.deadline, self._cutoff, self._unknown = deadline, cutoff, unknown
        self._batch: list[Hit] = []
        self._started = self._began = time.perf_counter()
        self._scored: list[Hit] = []
        self._unreadable: list[Hit] = []
        self._used = rerank > 0

    def next_batch(self) -> list[Hit]:
        """Candidates to score now; none if all are scored or no more can be scored in time."""
        count = SEARCH_RERANK if self.deadline is None else self._speed.number_until(self.deadline)
        self._batch, self._started = self._left[:count], time.perf_counter()
        return self._batch

    def add(self, log_odds: Sequence[float | None], *, timed: bool = True) -> None:
        """Take the match scores of the batch: None for an unreadable image. Not `timed` if some were in memory."""
        if timed:
            self._speed.add((time.perf_counter() - self._started) / len(self._batch))
        for hit, match in zip(self._batch, log_odds, strict=True):
            if match is None:
                self._unreadable.append(hit)
            else:
                score = rerank_score(hit.similarity, match, weight=self._weight, scale=self._scale)
                self._scored.append(replace(hit, score=score, match=match))
        self._left, self._batch = self._left[len(self._batch) :], []

    def result(self, *, top: int, seconds: Mapping[str, float]) -> SearchResult:
        """Scored hits by their scores (equal ones in the order of the vectors), then all others by the vectors."""
        now = time.perf_counter()
        if self._batch:  # given up
            self._speed.add((now - self._started) / len(self._batch))
        scored = sorted(self._scored, key=lambda hit: -hit.score)
        others = sorted([*self._unreadable, *self._left, *self._rest], key=lambda hit: -hit.similarity)
        odds = max((hit.match for hit in scored if hit.match is not None), default=None)
        return SearchResult(
            hits=[*scored, *others][:top],
            probability=None if odds is None else sigmoid(odds),
            cutoff=self._cutoff,
            unknown=self._unknown,
            num_reranked=len(scored),
            num_late=len(self._left),
            unreadable=tuple(self._unreadable),
            seconds={**seconds, "rerank": now - self._began} if self._used else seconds,
        )


class Searcher:
    """A model and an index of its vectors. Threads may share one.

    Args:
        model: Model folder, or an `Encoder` of one.
        index: Index folder, or an open one.
        options: Of the `Encoder`, if a folder is given: engine, precision, device. Its `dim` is that of the index.

    Raises:
        ValueError: One of them cannot be opened, or the index was made with another model or size of vectors.
    """

    def __init__(self, model: str | Path | Encoder, index: str | Path | Index, **options: Any) -> None:
        self.index = index if isinstance(index, Index) else Index(index)
        self.encoder = model if isinstance(model, Encoder) else Encoder(model, dim=self.index.dim, **options)
        if (self.encoder.fingerprint, self.encoder.dim) != (self.index.fingerprint, self.index.dim):
            raise ValueError(
                f"{self.index.folder} was made with another model or size of vectors ({self.index.model_folder}, "
                f"fingerprint {self.index.fingerprint[:8]}, {self.index.dim} dimensions) than {self.encoder.folder} "
                f"({self.encoder.fingerprint[:8]}, {self.encoder.dim}): their vectors cannot be compared. Use that "
                "model with that dim, or build an index with this one"
            )
        self._speed, self._memory = Speed(), PixelMemory()

    encoder: Encoder
    index: Index

    def search(
        self,
        query: str | Path | Image.Image,
        *,
        image: Path | Image.Image | None = None,
        top: int = 10,
        rerank: int | None = None,
        weight: float | None = None,
        where: str | None = None,
        budget: float | None = None,
        cutoff: float | None = None,
    ) -> SearchResult:
        """Search images by a text or by an image.

        The fusion encoder scores the `rerank` best candidates of a text, and only these change places:

            score = (1 - weight) * similarity / temperature + weight * log-odds of a match

        It scores from the best candidate down, a few at a time, and stops before the budget would be overrun. Those it
        has scored stand first, in the order of their scores; the others follow in the order of the vectors. So a search
        that ran out of time gives the result of a smaller `rerank`.

        Args:
            query: A text; an image, or the `Path` of an image file. A text that names a file is refused.
            image: An image that joins a text: the query is the direction of the sum of both vectors, without reranking.
            top: Number of images, at most.
            rerank: Number of candidates that the fusion encoder scores, for texts only; 0: none. None: `SEARCH_RERANK`,
                but none for other queries and models without a matching head.
            weight: Share of the match score, 0 to 1; None: the share in the model's configuration.
            where: A filter in SQL over the columns of metadata.
            budget: Seconds for the whole search; None: no limit. Vectors are always compared.
            cutoff: Probability of a match, 0 to 1, below which `no_match` is true of the result, if the fusion encoder
                scores candidates; None: the one in the model's configuration, if one was chosen.

        Raises:
            ValueError: An argument is wrong; the message says what is right.
        """
        start = time.perf_counter()
        text = query if isinstance(query, str) and image is None else None
        if isinstance(query, str):
            # Programs search for texts of strangers, who must not search by the program's files.
            if image_named(_filled(query)) is not None:
                raise ValueError(f"{query} is an image file; give a Path or an image to search by it, or words")
        elif image is not None:
            raise ValueError("the query and image are both images; give a text with the image")
        rerank = self.candidates(rerank, text=text)
        weight = self.check(text, top=top, rerank=rerank, weight=weight, budget=budget, cutoff=cutoff)
        cutoff = self.encoder.match_cutoff if cutoff is None else cutoff
        if isinstance(query, str):
            vector = self.encoder.embed_texts([query])[0]
            if image is not None:
                vector = vector + self.encoder.embed_images([_opened(image)])[0]
                vector /= np.linalg.norm(vector)
        else:
            vector = self.encoder.embed_images([_opened(query)])[0]
        encoded = time.perf_counter()
        shortlist = self.index.nearest(vector, top=max(top, rerank), where=where)
        seconds = {"encode": encoded - start, "index": time.perf_counter() - encoded}
        deadline = None if budget is None else start + budget
        unknown = text is not None and cutoff != 0
        unknown = unknown and self.encoder.is_unknown(text, tokens=self.encoder.count_tokens([text])[0])
        options = {"rerank": rerank, "weight": weight, "cutoff": cutoff, "unknown": unknown}
        ranking = self.reranking(shortlist, deadline=deadline, **options)
        while batch := ranking.next_batch():
            known = self.pixels_of(batch)
            pixels = list(self.encoder.pool.map(lambda each: each() if callable(each) else each, known))
            readable = [each for each in pixels if each is not None]
            odds = iter(self.encoder.match_pixels(readable, [text or ""] * len(readable)).tolist())
            ranking.add([None if each is None else next(odds) for each in pixels], timed=all(map(callable, known)))
        return ranking.result(top=top, seconds=seconds)

    def captions(
        self,
        image: Path | Image.Image,
        *,
        top: int = 10,
        rerank: int | None = None,
        weight: float | None = None,
        budget: float | None = None,
    ) -> SearchResult:
        """Search captions that describe an image; each hit has one, and is the image that it was written for.

        Arguments as for `search`.
        """
        start = time.perf_counter()
        weight = self.encoder.rerank_weight_image_to_text if weight is None else weight
        rerank = self.candidates(rerank, text="captions")
        weight = self.check("captions", top=top, rerank=rerank, weight=weight, budget=budget)
        pixels = self.encoder.pixels(_opened(image))
        vector = self.encoder.embed_pixels([pixels])[0]
        encoded = time.perf_counter()
        shortlist = self.index.nearest_captions(vector, top=max(top, rerank))
        seconds = {"encode": encoded - start, "index": time.perf_counter() - encoded}
        deadline = None if budget is None else start + budget
        ranking = self.reranking(shortlist, rerank=rerank, weight=weight, deadline=deadline)
        while batch := ranking.next_batch():
            texts = [hit.captions[0] for hit in batch]
            ranking.add(self.encoder.match_pixels([pixels] * len(batch), texts).tolist())
        return ranking.result(top=top, seconds=seconds)

    def similar(self, id: str, *, top: int = 10, where: str | None = None) -> SearchResult:  # noqa: A002
        """Search images like one of the index, without itself.

        Raises:
            ValueError: There is no such image, or an argument is wrong.
        """
        start = time.perf_counter()
        if not 1 <= top < MAX_TOP:
            raise ValueError(f"top is {top}; give a number from 1 to {MAX_TOP - 1}")
        hits = self.index.nearest(self.index.vector(id), top=top + 1, where=where)
        hits = [hit for hit in hits if hit.id != id][:top]
        return SearchResult(hits, seconds={"encode": 0.0, "index": time.perf_counter() - start})

    def explain(self, query: str, id: str) -> list[tuple[str, Image.Image]]:  # noqa: A002
        """For each word of a text, the image with a heat map of the fusion encoder's attention from that word.

        Raises:
            ValueError: There is no such image, or no word in the text.
        """
        from vlmo.visualization import heat_map

        image = self.index.image(id)
        words, maps = self.encoder.attention(image, _filled(query))
        heats = [heat_map(image, weights, size=_HEAT_PIXELS) for weights in maps]
        return list(zip(words, heats, strict=True))

    def warm_up(self) -> None:
        """Measure how long the fusion encoder takes for a pair, so that the first search keeps its budget too."""
        if self.encoder.can_match:
            blank = Image.new("RGB", (256, 256), "white")
            for count in (1, RERANK_BATCH):  # the first call of a model takes longer than those that follow
                start = time.perf_counter()
                self.encoder.match([blank] * count, ["an image"] * count)
            self._speed.add((time.perf_counter() - start) / RERANK_BATCH)

    # ----------------------------------------------------------------------- parts, for callers that share the model

    def candidates(self, rerank: int | None, *, text: str | None) -> int:
        """Return the number of candidates to rerank, given or by default."""
        if rerank is None:
            return SEARCH_RERANK if text is not None and self.encoder.can_match else 0
        return rerank

    def check(
        self,
        text: str | None,
        *,
        top: int,
        rerank: int,
        weight: float | None,
        budget: float | None,
        cutoff: float | None = None,
    ) -> float:
        """Validate the arguments of a search; return the weight.

        Raises:
            ValueError: One of them is wrong.
        """
        if text is not None:
            _filled(text)
        for name, value, least in (("top", top, 1), ("rerank", rerank, 0)):
            if not least <= value <= MAX_TOP:
                raise ValueError(f"{name} is {value}; give a number from {least} to {MAX_TOP}")
        if weight is not None and not 0 <= weight <= 1:
            raise ValueError(f"weight is {weight}; give the share of the match score, from 0 to 1")
        if budget is not None and not budget > 0:
            raise ValueError(f"budget is {budget}; give a number of seconds above 0, or none for no limit")
        if cutoff and not (0 < cutoff <= 1 and rerank):
            raise ValueError(
                f"cutoff is {cutoff} and rerank {rerank}; give a probability from 0 to 1, with a rerank from 1: the "
                "fusion encoder's probability is compared with it"
            )
        if rerank and text is None:
            raise ValueError("the query is or has an image, and the fusion encoder scores texts; leave rerank at 0")
        if rerank and not self.encoder.can_match:
            raise ValueError(f"{self.encoder.folder}: this model has no matching head; leave rerank at 0")
        return self.encoder.rerank_weight if weight is None else weight

    def reranking(self, shortlist: Sequence[Hit], **options: Any) -> Reranking:
        """Begin to rerank a shortlist; options are those of `Reranking`."""
        return Reranking(shortlist, scale=self.encoder.inverse_temperature, speed=self._speed, **options)

    def pixels_of(self, hits: Sequence[Hit]) -> list[Pixels | Callable[[], Pixels | None]]:
        """Pixels of the images that were reranked lately; of others, functions to be called on any thread.

        A function returns the image as the model takes it, or None if it cannot be read.
        """
        keys = [_pixel_key(hit) for hit in hits]
        found: list[Any] = [self._memory.get(key) for key in keys]
        missing = [place for place, pixels in enumerate(found) if pixels is None]
        for place, load in zip(missing, self.index.loaders([hits[place] for place in missing]), strict=True):
            found[place] = functools.partial(self._load_pixels, keys[place], load)
        return found

    def _load_pixels(self, key: tuple[Any, ...] | None, load: Callable[[], Image.Image]) -> Pixels | None:
        try:
            pixels = self.encoder.pixels(load())
        except ValueError:
            return None
        self._memory.add(key, pixels)
        return pixels


def _pixel_key(hit: Hit) -> tuple[Any, ...] | None:
    """Return what an image's pixels are known by: its content when it was indexed, and the state of its file.

    None for a file that is gone or lies elsewhere: it is read anew.
    """
    if hit.path is None:
        return hit.id, hit.stored.hash
    try:
        status = Path(hit.path).stat()
    except OSError:
        return None
    return hit.id, hit.stored.hash, status.st_mtime_ns, status.st_ctime_ns, status.st_ino, status.st_size


def _filled(query: str) -> str:
    if not query.strip():
        raise ValueError("the query is empty; give some words")
    return query


def _opened(image: str | Path | Image.Image) -> Image.Image:
    if isinstance(image, Image.Image):
        return image
    return decode_image({"bytes": None, "path": str(Path(image).expanduser())})
