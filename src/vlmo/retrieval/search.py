"""Search by words or by image: a shortlist by vectors, reranked by the fusion encoder."""

from __future__ import annotations

import functools
import math
import threading
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Float32
from PIL import Image

from vlmo.data.decoding import EncodedImage
from vlmo.data.listing import image_named
from vlmo.export.sessions import Pixels
from vlmo.folder import JsonObject
from vlmo.model.reranking import SEARCH_RERANK, num_wanted, rerank_score
from vlmo.retrieval.encoder import Encoder
from vlmo.retrieval.fusion import fuse_ranks
from vlmo.retrieval.hits import NO_RANKING, Hit, Ranking
from vlmo.retrieval.index import Index, IndexQuery
from vlmo.retrieval.options import SearchOptions
from vlmo.retrieval.presence import Background
from vlmo.retrieval.words import query_words

TEXTS = "texts"
IMAGES = "images"
TOKENS = "tokens"
PAIRS = "pairs"
INDEX = "index"
LOAD = "load"
STEP = 8
"""Candidates that are reranked first, and then at a time, at most."""
# Images of both orders, at least, that are fused.
_FUSED = 100
# Weights of the mean of images to be like, and of those not to be like (Manning et al., "The
# Rocchio algorithm").
_LIKE = 0.75
_UNLIKE = 0.15
# Length of a sum of vectors below which its direction is rounding.
_NO_DIRECTION = 1e-4
# Limit of the images that are kept as the model takes them, those that were reranked last.
_PIXEL_BYTES = 2**28


@dataclass(frozen=True, kw_only=True)
class SearchQuery:
    """Query of a search: the direction of the weighted sum of all vectors.

    Attributes:
        text: Words, with weight 1.
        parts: More texts, and images as the model takes them (`Encoder.pixels`), with their weights; negative ones
            are subtracted.
        like: Ids of indexed images that the query moves towards (Rocchio's relevance feedback), and that
            are not results.
        unlike: Ids of those that it moves away from.
    """

    text: str | None = None
    parts: Sequence[tuple[str | Pixels, float]] = ()
    like: Sequence[str] = ()
    unlike: Sequence[str] = ()

    @property
    def is_single_text(self) -> bool:
        """True for a text alone, which the fusion encoder can match."""
        return self.text is not None and not (self.parts or self.like or self.unlike)

    @property
    def texts(self) -> list[tuple[str, float]]:
        """All texts with their weights."""
        texts = [(part, weight) for part, weight in self.parts if isinstance(part, str)]
        if self.text is not None:
            texts.insert(0, (self.text, 1.0))
        return texts

    @property
    def images(self) -> list[tuple[Pixels, float]]:
        """All images with their weights."""
        return [(part, weight) for part, weight in self.parts if not isinstance(part, str)]


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
        less_likely: Images below `min_probability`, best first.
    """

    hits: list[Hit]
    num_reranked: int = 0
    num_unreadable: int = 0
    seconds: Mapping[str, float] = field(default_factory=dict)
    no_match: bool = False
    num_undated: int = 0
    less_likely: Sequence[Hit] = ()

    @property
    def num_matched(self) -> int:
        """Hits whose texts have a word of the query."""
        return sum(hit.words is not None for hit in self.hits)

    def facts(self) -> JsonObject:
        """Return all but the hits, ready for JSON."""
        names = ("num_reranked", "num_matched", "no_match", "note")
        seconds = {part: round(value, 6) for part, value in self.seconds.items()}
        return {name: getattr(self, name) for name in names} | {"seconds": seconds}

    @property
    def note(self) -> str | None:
        """Remarks on the result, in words; None if there are none."""
        notes = []
        if self.no_match:
            notes.append(
                "no match: the model does not know these words and reads them in pieces, as it does nonsense"
            )
        if self.less_likely and not self.hits:
            notes.append("nothing here looks like the query; the nearest are less likely")
        if self.num_unreadable:
            notes.append(f"{self.num_unreadable} images could not be read and were not reranked")
        if self.num_undated:
            notes.append(
                f"{self.num_undated} of {len(self.hits)} have no date of their own: that of the file counts"
            )
        return "; ".join(notes) or None


Work: TypeAlias = dict[str, list[Any]]
"""Rows for the encoder's functions by kind: `TEXTS`, `IMAGES` (as pixels), `TOKENS`, `PAIRS` (of pixels and
text); or functions to call, which ask the index (`INDEX`), or read and resize an image (`LOAD`)."""
Results: TypeAlias = Mapping[str, Sequence[Any] | np.ndarray]
"""Results of the rows of a `Work`, in their order."""
Steps: TypeAlias = Generator[Work, Results, SearchResult]
"""A search as a generator: it yields the work that it needs, and is sent the results."""


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
        self._lock = threading.Lock()
        # Of images that were reranked last, by id and hash.
        self._pixels: dict[tuple[str, str], Pixels] = {}

    def search(
        self,
        query: str | Path | Image.Image | None = None,
        *,
        parts: Sequence[tuple[str | Path | Image.Image, float]] = (),
        **options: Any,
    ) -> SearchResult:
        """Search images by a text or by an image.

        The fusion encoder scores the best candidates of a text, and only these change places:

            score = (1 - weight) * similarity / temperature + weight * log-odds of a match

        It scores `top` of them, and more, `rerank` at most, until the others hardly matter (`num_wanted`).

        Args:
            query: A text; an image, or the `Path` of an image file. A text that names a file is refused.
                None: with the order by date, all images that pass the filters.
            parts: More texts and images with their weights, such as ("people", -1.0), without reranking;
                with "auto" also without words if one is subtracted.
            options: Those of `SearchOptions`; ValueError if one is wrong.
        """
        started_at = time.perf_counter()
        # Programs search for texts of strangers, who must not search by the program's files.
        for part in [query, *(part for part, _ in parts)]:
            if isinstance(part, str) and image_named(_checked(part)) is not None:
                raise ValueError(
                    f"{part} is an image file; give a Path or an image to search by it, or words"
                )
        # Images are decoded and resized in the caller's thread, before the model is waited for.
        if query is not None and not isinstance(query, str):
            parts = [(query, 1.0), *parts]
            query = None
        opened = [
            (part if isinstance(part, str) else self._open_pixels(part), weight)
            for part, weight in parts
        ]
        search_query = SearchQuery(text=query, parts=opened)
        return self._run(self.steps(search_query, SearchOptions(**options), started_at=started_at))

    def similar(self, id: str, **options: Any) -> SearchResult:  # noqa: A002
        """Search images like one of the index, without itself; `options` are those of `SearchOptions`.

        Raises:
            ValueError: There is no such image, or an option is wrong.
        """
        return self._run(self.steps(SearchQuery(like=[id]), SearchOptions(**options)))

    def warm_up(self) -> None:
        """Load the fusion encoder, so that the first search finds it ready."""
        if self.encoder.can_match:
            self.encoder.match([Image.new("RGB", (256, 256), "white")], ["an image"])

    def _open_pixels(self, image: Path | Image.Image) -> Pixels:
        if isinstance(image, Path):
            cell = {"bytes": None, "path": str(image.expanduser())}
            image = EncodedImage(cell).decode_to(self.encoder.least_side)
        return self.encoder.pixels(image)

    # -------------------------------------------------- a search as steps, for callers that share the model

    def steps(
        self, query: SearchQuery, options: SearchOptions, *, started_at: float | None = None
    ) -> Steps:
        """Search as a generator that asks for all work, by the model and by the index.

        Args:
            started_at: Time by `time.perf_counter` that durations count from; None: now.

        Raises:
            ValueError: Query and options do not fit each other, or the model.
        """
        started_at = started_at or time.perf_counter()
        rerank = self._num_candidates(query, options)
        words = _words_to_look_up(query, options)

        # 1. Encode the texts and images of the query.
        # (dim,), L2-normalized: its dot product with an image's vector is their cosine.
        vector, is_unknown = yield from self._encode(query)
        encoded_at = time.perf_counter()

        # 2. Rank images by the vector, and by words.
        rank = functools.partial(
            self._rank, query, options, vector=vector, words=words, rerank=rerank
        )
        ((by_words, by_vectors),) = (yield {INDEX: [rank]})[INDEX]
        # The user has seen the images of the feedback already.
        feedback = {*query.like, *query.unlike}
        order = [image_id for image_id in by_vectors.ranks if image_id not in feedback]
        ranked_at = time.perf_counter()
        seconds = {"encode": encoded_at - started_at, "index": ranked_at - encoded_at}

        # 3. Rerank the best candidates by the fusion encoder.
        result = SearchResult(by_vectors.hits({*order[:rerank]}))
        if rerank:
            result = yield from self._rerank(result.hits, query.text or "", options)
            seconds["rerank"] = time.perf_counter() - ranked_at
        # Those that were not scored follow in the order of their vectors.
        order = [*(hit.id for hit in result.hits), *order[rerank:]]

        # 4. Fuse both orders, and show the best.
        reranked = {hit.id: hit for hit in result.hits}
        hits = _best_hits(order, reranked, by_vectors, by_words, words=words, top=options.top)
        # The newest first, and last those without a date.
        if options.sort == "date":
            hits.sort(
                key=lambda hit: (hit.is_dated, str(hit.metadata.get("taken") or "")), reverse=True
            )
        less_likely: list[Hit] = []
        if query.is_single_text:
            hits = _with_presence(hits, self.index.background)
            hits, less_likely = _split_by_presence(hits, options.min_probability)
        num_undated = 0
        if options.photos.since or options.photos.until:
            num_undated = sum(not hit.is_dated for hit in hits)
        return replace(
            result,
            hits=hits,
            seconds=seconds,
            no_match=is_unknown and not by_words.ranks,
            num_undated=num_undated,
            less_likely=less_likely,
        )

    def _num_candidates(self, query: SearchQuery, options: SearchOptions) -> int:
        """Return the number of candidates to rerank, after checking that query, options and model fit."""
        if options.mode in {"words", "hybrid"} and query.text is None:
            raise ValueError(f"mode {options.mode} looks up words, but there is no text")
        if not (query.texts or query.images or query.like) and options.sort is None:
            raise ValueError("there is no query; give words or an image, or the order by date")
        if options.min_probability is not None and not query.is_single_text:
            raise ValueError(
                "min_probability belongs to a text alone; leave it out, or give words without parts"
            )
        if options.min_probability is not None and self.index.background is None:
            raise ValueError(
                f"{self.index.folder} knows no probabilities yet; run vlmo index again, or leave out min_probability"
            )
        # The matching head was trained on whole captions, not on sums of texts and images.
        can_rerank = query.is_single_text and options.mode != "words"
        if options.rerank is None:
            num_words = len((query.text or "").split())
            is_long = num_words >= self.encoder.rerank_min_words
            if can_rerank and self.encoder.can_match and is_long:
                return SEARCH_RERANK
            return 0
        if options.rerank and not self.encoder.can_match:
            raise ValueError(
                f"{self.encoder.folder}: {self.encoder.no_match}; leave rerank at 0, or index with a VLMo"
            )
        if options.rerank and not can_rerank:
            raise ValueError(
                "the fusion encoder scores single texts, and not by words alone; leave rerank at 0"
            )
        return options.rerank

    def _encode(
        self, query: SearchQuery
    ) -> Generator[Work, Results, tuple[Float32[np.ndarray, " dim"] | None, bool]]:
        """Return the vector of a query, None if it has no parts, and True for words unknown to the model."""
        texts = [_checked(text) for text, _ in query.texts]
        images = [pixels for pixels, _ in query.images]
        work: Work = {}
        if images:
            work[IMAGES] = images
        if texts:
            work[TEXTS] = texts
        if query.is_single_text:
            # Only to tell a query that the model reads as nonsense.
            work[TOKENS] = texts
        results = yield work
        is_unknown = False
        if query.is_single_text:
            is_unknown = self.encoder.is_unknown(texts[0], tokens=results[TOKENS][0])
        vectors = [*results.get(TEXTS, ()), *results.get(IMAGES, ())]
        weights = [weight for _, weight in (*query.texts, *query.images)]
        vector = None
        if vectors:
            # Length 1 again: similarities stay cosines, whatever the number of parts.
            vector = weighted_direction(vectors, weights)
        return vector, is_unknown

    def _rank(
        self,
        query: SearchQuery,
        options: SearchOptions,
        *,
        vector: Float32[np.ndarray, " dim"] | None,
        words: Sequence[str],
        rerank: int,
    ) -> tuple[Ranking, Ranking]:
        """Return the images that words find, and those that the vector finds, moved by the feedback."""
        feedback = [*query.like, *query.unlike]
        if feedback:
            vectors = [self.index.vector(image_id) for image_id in feedback]
            # Rocchio's mean of the images to be like has one weight, however many there are.
            weights = [_LIKE / len(query.like) for _ in query.like]
            # Those not to be like count one by one.
            weights += [-_UNLIKE] * len(query.unlike)
            if vector is not None:
                vectors.append(vector)
                weights.append(1.0)
            vector = weighted_direction(vectors, weights)
        index_query = IndexQuery(
            vector=vector,
            top=max(options.top, _FUSED),
            where=options.where,
            photos=options.photos,
            words=words,
            every_word=options.mode == "auto",
        )
        # Words rank first: whether they find anything decides how many images are fused.
        by_words = NO_RANKING
        if words:
            by_words = self.index.rank(index_query)
        if options.mode == "words":
            return by_words, NO_RANKING
        # The feedback's own images are no results, but perhaps among the best.
        top = max(options.top + len(feedback), rerank)
        if by_words.ranks:
            top = max(top, _FUSED)
        return by_words, self.index.rank(index_query._replace(top=top, words=None))

    def _rerank(self, candidates: Sequence[Hit], text: str, options: SearchOptions) -> Steps:
        """Return the candidates in the order of the mixed score, as far as they could get among the best.

        VLMo, retrieval with ITC and ITM: the fusion encoder reranks the dual encoder's top k.
        """
        top = options.top
        weight = self.encoder.rerank_weight if options.weight is None else options.weight
        scored: list[Hit] = []
        unreadable: list[Hit] = []
        left = list(candidates)
        scale = self.encoder.inverse_temperature
        while left:
            similarities = [hit.similarity for hit in [*scored, *left]]
            matches = [hit.match or 0.0 for hit in scored]
            wanted = num_wanted(similarities, matches, weight=weight, scale=scale, top=top)
            if not wanted:
                break
            # Few at a time: their scores may show that no other candidate can get among the best.
            size = min(wanted, max(STEP, top - len(scored)), SEARCH_RERANK)
            batch = left[:size]
            left = left[size:]
            pixels = yield from self._read_pixels(batch)
            readable = [hit for hit in batch if hit.id in pixels]
            unreadable += [hit for hit in batch if hit.id not in pixels]
            # (pair,): logit of a match less that of no match, by the ITM head.
            log_odds = (yield {PAIRS: [(pixels[hit.id], text) for hit in readable]})[PAIRS]
            for hit, match in zip(readable, map(float, log_odds), strict=True):
                score = rerank_score(hit.similarity, match, weight=weight, scale=scale)
                scored.append(replace(hit, score=score, match=match))
        # Equal scores in the order of the vectors.
        scored.sort(key=lambda hit: -hit.score)
        others = sorted([*unreadable, *left], key=lambda hit: -hit.similarity)
        return SearchResult(
            [*scored, *others], num_reranked=len(scored), num_unreadable=len(unreadable)
        )

    def _read_pixels(self, hits: Sequence[Hit]) -> Generator[Work, Results, dict[str, Pixels]]:
        """Return the pixels of images by id, those that were read before from memory; without unreadable ones."""
        pixels: dict[str, Pixels] = {}
        missing = []
        with self._lock:
            for hit in hits:
                kept = self._pixels.pop((hit.id, hit.hash), None)
                if kept is None:
                    missing.append(hit)
                else:
                    # Now the one used last.
                    self._pixels[hit.id, hit.hash] = pixels[hit.id] = kept
        if missing:
            (loaders,) = (yield {INDEX: [functools.partial(self._pixel_loaders, missing)]})[INDEX]
            loaded = (yield {LOAD: loaders})[LOAD]
            for hit, read in zip(missing, loaded, strict=True):
                if read is not None:
                    pixels[hit.id] = read
        return pixels

    def _pixel_loaders(self, hits: Sequence[Hit]) -> list[Callable[[], Pixels | None]]:
        """Functions that read, resize and keep images, or return None."""

        def load_pixels(hit: Hit, load: Callable[[], Image.Image]) -> Pixels | None:
            try:
                pixels = self.encoder.matcher.pixels(load())
            except ValueError:
                return None
            with self._lock:
                self._pixels[hit.id, hit.hash] = pixels
                # All images have the model's size, and so the same number of bytes.
                while len(self._pixels) * pixels.nbytes > _PIXEL_BYTES:
                    # The one that was used least lately.
                    del self._pixels[next(iter(self._pixels))]
            return pixels

        loaders = self.index.loaders([hit.id for hit in hits], least=self.encoder.least_side)
        return [
            functools.partial(load_pixels, hit, load)
            for hit, load in zip(hits, loaders, strict=True)
        ]

    def _run(self, steps: Steps) -> SearchResult:
        """Do all work of a search here and now."""
        encoder = self.encoder
        functions: dict[str, Callable[[list[Any]], Sequence[Any] | np.ndarray]] = {
            TEXTS: encoder.embed_texts,
            IMAGES: encoder.embed_pixels,
            TOKENS: encoder.count_tokens,
            PAIRS: encoder.match_pairs,
            INDEX: lambda calls: [call() for call in calls],
            LOAD: lambda calls: list(encoder.pool.map(lambda call: call(), calls)),
        }
        # A generator ends with StopIteration, whose value is what it returns.
        work = next(steps)
        while True:
            try:
                work = steps.send({kind: functions[kind](rows) for kind, rows in work.items()})
            except StopIteration as end:
                return end.value


def _words_to_look_up(query: SearchQuery, options: SearchOptions) -> list[str]:
    """Return the words of a query's texts; none where words do not count."""
    weights = [weight for _, weight in (*query.texts, *query.images)]
    is_subtracted = any(weight <= 0 for weight in weights)
    if (
        query.like
        or query.unlike
        or options.mode == "vectors"
        or (options.mode == "auto" and is_subtracted)
    ):
        return []
    return query_words(" ".join(text for text, weight in query.texts if weight > 0))


def _best_hits(
    order: Sequence[str],
    reranked: Mapping[str, Hit],
    by_vectors: Ranking,
    by_words: Ranking,
    *,
    words: Sequence[str],
    top: int,
) -> list[Hit]:
    """Return the best images of an order by vectors and scores, fused with that by words if there is one."""
    shares = dict(zip(by_words.ranks, by_words.shares, strict=True))
    scores: dict[str, float] = {}
    if shares:
        scores = fuse_ranks(
            order,
            shares,
            words,
            lambda image_id: (by_words if image_id in shares else by_vectors).own_words(image_id),
        )
    best = list(scores or order)[:top]
    hits = dict(reranked)
    missing = {*best} - hits.keys()
    for hit in by_vectors.hits(missing) + by_words.hits(missing - by_vectors.ranks.keys()):
        hits[hit.id] = hit
    if not shares:
        return [hits[image_id] for image_id in best]
    return [
        replace(hits[image_id], score=scores[image_id], words=shares.get(image_id))
        for image_id in best
    ]


def _with_presence(hits: Sequence[Hit], background: Background | None) -> list[Hit]:
    if background is None:
        return list(hits)
    return [replace(hit, presence=background.presence(hit.similarity)) for hit in hits]


def _split_by_presence(
    hits: Sequence[Hit], min_probability: float | None
) -> tuple[list[Hit], list[Hit]]:
    """Return the likely images and the less likely ones, both in their order."""
    likely = []
    less_likely = []
    for hit in hits:
        # Words in an image's own texts say what it shows, however little it looks like that.
        presence = 1.0 if hit.words is not None or hit.presence is None else hit.presence
        if presence >= (min_probability or 0.0):
            likely.append(hit)
        else:
            less_likely.append(hit)
    return likely, less_likely


def _checked(text: str) -> str:
    if not text.strip():
        raise ValueError("the query is empty; give some words")
    if text != text.encode(errors="ignore").decode():
        raise ValueError("the query is not valid UTF-8; give a text in that encoding")
    return text


def weighted_direction(
    vectors: Sequence[np.ndarray], weights: Sequence[float]
) -> Float32[np.ndarray, " dim"]:
    """Return the direction of a weighted sum of vectors; ValueError if it has none."""
    # Weights (part,) times vectors (part, dim).
    total = np.asarray(weights, np.float32) @ np.stack(vectors)
    norm = np.linalg.norm(total)
    if not _NO_DIRECTION < norm < math.inf:
        raise ValueError("the parts of the query cancel each other, or have no finite weights")
    return total / norm
