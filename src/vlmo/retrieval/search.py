"""Search by words or by image: a shortlist by vectors, reranked by the fusion encoder."""

from __future__ import annotations

import functools
import math
import threading
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from jaxtyping import Float32
from PIL import Image

from vlmo.data.decoding import EncodedImage
from vlmo.data.listing import image_named
from vlmo.export.sessions import Pixels
from vlmo.model.reranking import SEARCH_RERANK, num_wanted, rerank_score
from vlmo.retrieval.encoder import Encoder
from vlmo.retrieval.filters import PhotoFilter
from vlmo.retrieval.hits import NO_RANKING, Hit, Ranking
from vlmo.retrieval.index import MAX_TOP, Index, Query
from vlmo.retrieval.words import Mode, OwnWords, query_words, singular

TEXTS, IMAGES, TOKENS, PAIRS, INDEX, LOAD, STORED = "texts", "images", "tokens", "pairs", "index", "load", "stored"
STEP = 8
"""Candidates that are reranked first, and then at a time, at most."""
_FUSED, _RANK = 100, 60
"""Images of each order, at least, that are fused; the constant of Cormack et al., "Reciprocal Rank Fusion outperforms
Condorcet and Individual Rank Learning Methods", 2009."""
_LIKE, _UNLIKE = 0.75, 0.15
"""Weights of the mean of images to be like, and of each not to be like (Manning et al., "The Rocchio algorithm")."""
_NO_DIRECTION = 1e-4  # length of a sum of vectors below which its direction is rounding
_PIXEL_BYTES = 2**28
"""Limit of the images that are kept as the model takes them, those that were reranked last."""


@dataclass(frozen=True)
class SearchResult:
    """Result of one search.

    Attributes:
        hits: Images, best first.
        num_reranked: Candidates that the fusion encoder scored.
        num_unreadable: Candidates that it did not score, because their images are gone or damaged.
        seconds: Durations of "encode", "index" and "rerank".
        no_match: True if the model reads the query in pieces, as it does nonsense, and its words find nothing.
        num_undated: Hits that pass a filter of dates by the time of their files alone.
    """

    hits: list[Hit]
    num_reranked: int = 0
    num_unreadable: int = 0
    seconds: Mapping[str, float] = field(default_factory=dict)
    no_match: bool = False
    num_undated: int = 0

    @property
    def num_matched(self) -> int:
        """Hits whose texts have a word of the query."""
        return sum(hit.words is not None for hit in self.hits)

    def facts(self) -> dict[str, Any]:
        """Return all but the hits, ready for JSON."""
        names = ("num_reranked", "num_matched", "no_match", "note")
        seconds = {part: round(value, 6) for part, value in self.seconds.items()}
        return {name: getattr(self, name) for name in names} | {"seconds": seconds}

    @property
    def note(self) -> str | None:
        """Remarks on the result, in words; None if there are none."""
        notes = []
        if self.no_match:
            notes.append("no match: the model does not know these words and reads them in pieces, as it does nonsense")
        if self.num_unreadable:
            notes.append(f"{self.num_unreadable} images could not be read and were not reranked")
        if self.num_undated:
            notes.append(f"{self.num_undated} of {len(self.hits)} have no date of their own: that of the file counts")
        return "; ".join(notes) or None


Asked: TypeAlias = dict[str, list[Any]]
"""Rows for the encoder's functions by kind: `TEXTS`, `IMAGES` (as pixels), `TOKENS`, `PAIRS` (of pixels and text); ids
of images whose vectors are in the index (`STORED`); or functions to call, which ask the index (`INDEX`), or read and
resize an image (`LOAD`)."""
Steps: TypeAlias = Generator[Asked, dict[str, Sequence[Any]], SearchResult]
"""A search, which takes the results of what it asks for by kind, in the order of the rows."""


class Searcher:
    """A model and an index of its vectors. Threads may share one.

    Raises:
        ValueError: One of them cannot be opened, or the index was made with another model.
    """

    def __init__(self, model: str | Path | Encoder, index: str | Path | Index) -> None:
        self.index = index if isinstance(index, Index) else Index(index)
        self.encoder = model if isinstance(model, Encoder) else Encoder(model)
        if self.encoder.fingerprint != self.index.fingerprint:
            raise ValueError(
                f"{self.index.folder} was made with another model ({self.index.model_folder}, fingerprint "
                f"{self.index.fingerprint[:8]}) than {self.encoder.folder} ({self.encoder.fingerprint[:8]}): their "
                "vectors cannot be compared. Use that model, or build an index with this one"
            )
        self._lock, self._pixels = threading.Lock(), dict[Any, Pixels]()  # of images that were reranked last

    def search(
        self,
        query: str | Path | Image.Image | None = None,
        *,
        parts: Sequence[tuple[str | Path | Image.Image, float]] = (),
        top: int = 10,
        rerank: int | None = None,
        weight: float | None = None,
        where: str | None = None,
        photos: PhotoFilter | None = None,
        sort: Literal["date"] | None = None,
        mode: Mode = "auto",
    ) -> SearchResult:
        """Search images by a text or by an image.

        The fusion encoder scores the best candidates of a text, and only these change places:

            score = (1 - weight) * similarity / temperature + weight * log-odds of a match

        It scores `top` of them, and more, `rerank` at most, until the others hardly matter (`num_wanted`).

        Args:
            query: A text; an image, or the `Path` of an image file. A text that names a file is refused. None: with the
                order by date, all images that pass the filters.
            parts: More texts and images with their weights, such as ("people", -1.0): the query is the direction of the
                weighted sum of all vectors, without reranking, and with "auto" without words if one is subtracted.
            rerank: Most candidates that the fusion encoder scores, for texts only; 0: none. None: `SEARCH_RERANK`,
                but none for other queries, texts of fewer words than `rerank_min_words`, and models without a matching
                head.
            weight: Share of the match score, 0 to 1; None: the share in the model's configuration.
            where: A filter in SQL over the columns of metadata.
            sort: "date": the best are sorted by date, the newest first.
            mode: "vectors"; "words": only images whose captions, file names, albums or texts in them have a word of the
                text; "hybrid": the order by the model and that by words, fused by reciprocal ranks. "auto": the same,
                where only images that have all words are found by words.

        Raises:
            ValueError: An argument is wrong; the message says what is right.
        """
        began = time.perf_counter()
        text = query if isinstance(query, str) else None
        # Programs search for texts of strangers, who must not search by the program's files.
        for each in [query, *(part for part, _ in parts)]:
            if isinstance(each, str) and image_named(_filled(each)) is not None:
                raise ValueError(f"{each} is an image file; give a Path or an image to search by it, or words")
        least, of = self.encoder.least_side, self.encoder.pixels
        more = [(part if isinstance(part, str) else of(_opened(part, least=least)), share) for part, share in parts]
        pixels = None if query is None or text is not None else of(_opened(query, least=least))
        options = {"top": top, "rerank": rerank, "weight": weight, "where": where, "photos": photos, "sort": sort}
        return self._run(self.steps(text, pixels, more=more, began=began, mode=mode, **options))

    def similar(
        self,
        id: str,  # noqa: A002
        *,
        top: int = 10,
        where: str | None = None,
        photos: PhotoFilter | None = None,
        sort: Literal["date"] | None = None,
    ) -> SearchResult:
        """Search images like one of the index, without itself; ValueError if there is no such image."""
        return self._run(self.steps(None, None, like=[id], top=top, where=where, photos=photos, sort=sort))

    def warm_up(self) -> None:
        """Load the fusion encoder, so that the first search finds it ready."""
        if self.encoder.can_match:
            self.encoder.match([Image.new("RGB", (256, 256), "white")], ["an image"])

    # ------------------------------------------------------------------------------ steps, for whoever shares the model

    def steps(
        self,
        text: str | None,
        pixels: Pixels | None,
        *,
        more: Sequence[tuple[str | Pixels, float]] = (),
        like: Sequence[str] = (),
        unlike: Sequence[str] = (),
        top: int = 10,
        rerank: int | None = None,
        weight: float | None = None,
        where: str | None = None,
        photos: PhotoFilter | None = None,
        sort: Literal["date"] | None = None,
        mode: Mode = "auto",
        began: float | None = None,
    ) -> Steps:
        """Search by a text, an image (`Encoder.pixels`), both or neither, as a generator that asks for all work.

        Arguments are those of `search`, `more` (its `parts`, with pixels), `like` and `unlike` (ids of images of the
        index that the query moves towards and away from, by Rocchio's relevance feedback, and that are not found) and
        `began` (time by `time.perf_counter` that durations count from; None: now). ValueError if one is wrong.
        """
        began, ids = time.perf_counter() if began is None else began, [*like, *unlike]
        encoder, by_text = self.encoder, pixels is None and text is not None and not more and not ids
        if rerank is None:
            helps = by_text and encoder.can_match and mode != "words"
            helps = helps and len((text or "").split()) >= encoder.rerank_min_words
            rerank = SEARCH_RERANK if helps else 0
        self._check(text, mode, top, rerank, weight, by_text=by_text)
        given = [(part, share) for part, share in ((text, 1.0), (pixels, 1.0), *more) if part is not None]
        if not given and not like and sort is None:
            raise ValueError("there is no query; give words or an image, or the order by date")
        texts = [(part, share) for part, share in given if isinstance(part, str)]
        images = [(part, share) for part, share in given if not isinstance(part, str)]
        by_words = not ids and (
            mode in {"words", "hybrid"} or (mode == "auto" and all(share > 0 for _, share in given))
        )
        words = query_words(" ".join(part for part, share in texts if share > 0)) if by_words else []
        asked: Asked = {IMAGES: [part for part, _ in images]} if images else {}
        asked |= {TEXTS: [_filled(part) for part, _ in texts]} if texts else {}
        answers = yield asked | ({TOKENS: [text]} if by_text else {})
        no_match = TOKENS in answers and encoder.is_unknown(text or "", tokens=answers[TOKENS][0])
        vectors = [*answers.get(TEXTS, ()), *answers.get(IMAGES, ())]
        vector = weighted_direction(vectors, [share for _, share in (*texts, *images)]) if vectors else None
        if ids:
            known = (yield {STORED: ids})[STORED]
            weights = [1.0] * (vector is not None) + [_LIKE / len(like) for _ in like] + [-_UNLIKE for _ in unlike]
            vector = weighted_direction([*([] if vector is None else [vector]), *known], weights)
        encoded = time.perf_counter()

        def rank() -> tuple[Ranking, Ranking]:
            query = Query(vector, max(top, _FUSED), where, photos or PhotoFilter(), words, mode == "auto")
            matched = self.index.rank(query) if words else NO_RANKING
            most = max(top + len(ids), rerank, _FUSED if matched.ranks else 1)
            return matched, NO_RANKING if mode == "words" else self.index.rank(query._replace(top=most, words=None))

        ((matched, ranked),) = (yield {INDEX: [rank]})[INDEX]
        order, found = [each for each in ranked.ranks if each not in ids], time.perf_counter()
        no_match = no_match and not matched.ranks
        seconds = {"encode": encoded - began, "index": found - encoded}
        result = SearchResult(ranked.hits({*order[:rerank]}), seconds=seconds, no_match=no_match)
        if rerank:
            weight = encoder.rerank_weight if weight is None else weight
            result = yield from self._rerank(result, text or "", weight=weight, top=top)
            result = replace(result, seconds={**seconds, "rerank": time.perf_counter() - found})
        known = {hit.id: hit for hit in result.hits}
        order = [*known, *order[rerank:]]
        shares, scores = dict(zip(matched.ranks, matched.shares, strict=True)), dict[str, float]()
        if shares:
            scores = _fuse(order, shares, words, lambda each: (matched if each in shares else ranked).own_words(each))
        best = list(scores or order)[:top]
        for hit in ranked.hits({*best} - known.keys()) + matched.hits({*best} - ranked.ranks.keys()):
            known[hit.id] = hit
        hits = [known[id] for id in best]  # noqa: A001
        if shares:
            hits = [replace(hit, score=scores[hit.id], words=shares.get(hit.id)) for hit in hits]
        if sort == "date":  # the newest first, and last those without one
            hits.sort(key=lambda hit: (hit.is_dated, str(hit.metadata.get("taken") or "")), reverse=True)
        by_time = photos is not None and (photos.since or photos.until)
        return replace(result, hits=hits, num_undated=sum(not hit.is_dated for hit in hits) if by_time else 0)

    def _check(
        self, text: str | None, mode: Mode, top: int, rerank: int, weight: float | None, *, by_text: bool
    ) -> None:
        for name, value, least in (("top", top, 1), ("rerank", rerank, 0)):
            if not least <= value <= MAX_TOP:
                raise ValueError(f"{name} is {value}; give a number from {least} to {MAX_TOP}")
        if weight is not None and not 0 <= weight <= 1:
            raise ValueError(f"weight is {weight}; give the share of the match score, from 0 to 1")
        if rerank and not self.encoder.can_match:
            raise ValueError(f"{self.encoder.folder}: this model has no matching head; leave rerank at 0")
        if rerank and not (by_text and mode != "words"):
            raise ValueError("the fusion encoder scores single texts, and not by words alone; leave rerank at 0")
        if text is None and mode in {"words", "hybrid"}:
            raise ValueError(f"mode {mode} looks up words, but there is no text")

    def _rerank(self, result: SearchResult, text: str, *, weight: float, top: int) -> Steps:
        scored: list[Hit] = []
        unreadable: list[Hit] = []
        left, scale = result.hits, self.encoder.inverse_temperature
        while left:
            similarity, match = [hit.similarity for hit in [*scored, *left]], [hit.match or 0.0 for hit in scored]
            if not (wanted := num_wanted(similarity, match, weight=weight, scale=scale, top=top)):
                break
            size = min(wanted, max(STEP, top - len(scored)), SEARCH_RERANK)
            batch, left = left[:size], left[size:]
            with self._lock:
                kept = {(hit.id, hit.hash): self._pixels.pop((hit.id, hit.hash), None) for hit in batch}
                self._pixels |= {key: each for key, each in kept.items() if each is not None}
            pixels: list[Any] = list(kept.values())
            if missing := [hit for hit, each in zip(batch, pixels, strict=True) if each is None]:
                ((loaders,),) = (yield {INDEX: [functools.partial(self._pixel_loaders, missing)]}).values()
                loaded = iter((yield {LOAD: loaders})[LOAD])
                pixels = [next(loaded) if each is None else each for each in pixels]
            odds = iter((yield {PAIRS: [(each, text) for each in pixels if each is not None]})[PAIRS])
            for hit, each in zip(batch, pixels, strict=True):
                if each is None:
                    unreadable.append(hit)
                    continue
                match = float(next(odds))
                score = rerank_score(hit.similarity, match, weight=weight, scale=scale)
                scored.append(replace(hit, score=score, match=match))
        scored.sort(key=lambda hit: -hit.score)  # equal scores in the order of the vectors
        others = sorted([*unreadable, *left], key=lambda hit: -hit.similarity)
        return replace(result, hits=[*scored, *others], num_reranked=len(scored), num_unreadable=len(unreadable))

    def _pixel_loaders(self, hits: Sequence[Hit]) -> list[Callable[[], Pixels | None]]:
        """Functions that read, resize and keep images, or return None."""

        def load_pixels(hit: Hit, load: Callable[[], Image.Image]) -> Pixels | None:
            try:
                pixels = self.encoder.pixels(load())
            except ValueError:
                return None
            with self._lock:
                self._pixels[hit.id, hit.hash] = pixels
                while len(self._pixels) * pixels.nbytes > _PIXEL_BYTES:
                    del self._pixels[next(iter(self._pixels))]  # which was used least lately
            return pixels

        loaders = self.index.loaders([hit.id for hit in hits], least=self.encoder.least_side)
        return [functools.partial(load_pixels, hit, load) for hit, load in zip(hits, loaders, strict=True)]

    def _run(self, steps: Steps) -> SearchResult:
        encoder = self.encoder
        work: dict[str, Callable[[list[Any]], Any]] = {TEXTS: encoder.embed_texts, IMAGES: encoder.embed_pixels}
        work |= {TOKENS: encoder.count_tokens, PAIRS: encoder.match_pairs}
        work[INDEX] = lambda calls: [call() for call in calls]
        work[STORED] = lambda ids: list(map(self.index.vector, ids))
        work[LOAD] = lambda calls: list(encoder.pool.map(lambda call: call(), calls))
        asked = next(steps)
        while True:
            try:
                asked = steps.send({kind: work[kind](rows) for kind, rows in asked.items()})
            except StopIteration as end:
                return end.value


def _filled(query: str) -> str:
    if not query.strip():
        raise ValueError("the query is empty; give some words")
    if query != query.encode(errors="ignore").decode():
        raise ValueError("the query is not valid UTF-8; give a text in that encoding")
    return query


def weighted_direction(vectors: Sequence[np.ndarray], weights: Sequence[float]) -> Float32[np.ndarray, " dim"]:
    """Return the direction of a weighted sum of vectors; ValueError if it has none."""
    total = np.asarray(weights, np.float32) @ np.stack(vectors)
    if not _NO_DIRECTION < (norm := np.linalg.norm(total)) < math.inf:
        raise ValueError("the parts of the query cancel each other, or have no finite weights")
    return total / norm


def _opened(image: str | Path | Image.Image, *, least: int) -> Image.Image:
    if isinstance(image, Image.Image):
        return image
    return EncodedImage({"bytes": None, "path": str(Path(image).expanduser())}).decode_to(least)


def _fuse(
    order: Sequence[str], shares: Mapping[str, float], words: Sequence[str], own_words: Callable[[str], OwnWords]
) -> dict[str, float]:
    """Return the sums of the reciprocal ranks of images in two orders, by the model and by words, the best first.

    Words count twice, times the square of the share of the query's words that an image has: one that has all of them
    comes before those that only the model finds, and few of many words change little. They count three times where a
    text of the image has no others. As words do not find images whose own texts have at most one (IMG), the best of
    these comes before the best that words find among others, if the model has it before that; then the next of these.
    """
    ranks, wanted = {each: rank for rank, each in enumerate(order, start=1)}, singular(words)
    full = (each for each, share in shares.items() if share == 1)
    whole = {each for each in full if any(text <= wanted for text in own_words(each)[1])}
    numbered = enumerate(shares.items(), start=1)
    scores = {each: (2 + (each in whole)) * share**2 / (_RANK + rank) for rank, (each, share) in numbered}
    for each, rank in ranks.items():
        scores[each] = scores.get(each, 0) + 1 / (_RANK + rank)
    nameless = [each for each in reversed(order) if each not in shares and own_words(each)[0] < 2]
    for other in sorted(shares.keys() - whole, key=lambda each: (-scores[each], each)):
        if nameless and ranks[nameless[-1]] < ranks.get(other, math.inf):
            each = nameless.pop()
            scores[each] = max(scores[each], scores[other])
    return {each: scores[each] for each in sorted(scores, key=lambda each: (-scores[each], each in shares))}
