"""What the service does, without HTTP: pictures and texts of many clients to one model and one index."""

from __future__ import annotations

import asyncio
import io
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Float
from numpy import ndarray
from PIL import Image

from vlmo.retrieval import Encoder, Index, Searcher, SearchResult
from vlmo.retrieval.search import JUDGED_AT_ONCE
from vlmo.serving import schemas, settings
from vlmo.serving.answering import Answerer, Question
from vlmo.serving.batcher import Batcher, Call, Observer
from vlmo.serving.errors import ServiceError
from vlmo.serving.fetching import Fetcher
from vlmo.serving.filters import check_filter
from vlmo.serving.pictures import PictureReader
from vlmo.serving.searching import SharedSearcher, turn
from vlmo.serving.settings import Settings
from vlmo.serving.showing import described, found, sigmoid

TEXTS, PICTURES, PAIRS, QUESTIONS = "texts", "pictures", "pairs", "questions"
_DECODERS = 2
_LARGEST_SIDE = 2048
# What every index has beside the columns of its source.
_OWN_COLUMNS = ("id", "captions", "width", "height")
_FILTER_HINT = "a filter compares columns with numbers and 'texts'; there are"
_SAMPLES, _SAMPLED = 12, 180
_SAMPLES_SECONDS = 10.0
"""So long the samples are kept; an index run may remove them."""
# For what is late already: over as soon as the vectors have been compared.
_NO_BUDGET = 1e-9

T = TypeVar("T")


@dataclass(frozen=True)
class Parts:
    """What a service is made of; what is missing makes its requests fail with a reason."""

    encoder: Encoder | None = None
    index: Index | None = None
    answerer: Answerer | None = None


class Service:
    """Answers requests; made when the server starts, in its event loop.

    Args:
        parts: Models and index.
        settings: Of the server.
        observe: Told of each call of a model: kind, rows, seconds.
    """

    def __init__(self, parts: Parts, settings: Settings, *, observe: Observer | None = None) -> None:
        self._parts, self._settings = parts, settings
        self._batcher = Batcher(
            _calls(parts), max_batch=settings.max_batch, max_wait=settings.max_wait, observe=observe
        )
        self._decoders = ThreadPoolExecutor(_DECODERS, thread_name_prefix="vlmo-decoder")
        # As many as are let in: those that wait for the model must not keep others from the index.
        self._searchers = ThreadPoolExecutor(settings.queue, thread_name_prefix="vlmo-searcher")
        fetcher = Fetcher(settings.allowed_hosts, max_bytes=settings.limits.request_bytes)
        self._reader = PictureReader(max_pixels=settings.limits.pixels, fetcher=fetcher, executor=self._decoders)
        # Each of these searches holds as many whole pictures as it has judged at once.
        self._judging = asyncio.Semaphore(max(settings.max_batch // JUDGED_AT_ONCE, 2))
        self._sampled: tuple[float, list[schemas.Sample]] = 0.0, []
        self._searcher = None
        if parts.encoder is not None and parts.index is not None:
            self._searcher = SharedSearcher(parts.encoder, parts.index, batcher=self._batcher, kind=PAIRS)

    def warm_up(self) -> None:
        """Makes ready what the first requests would wait for. Blocks."""
        if self._searcher is not None:
            self._searcher.warm_up()

    def close(self) -> None:
        """Finishes what runs."""
        self._searchers.shutdown()
        self._batcher.close()
        self._decoders.shutdown()

    async def embed(self, request: schemas.EmbedRequest) -> schemas.EmbedResponse:
        """Vectors of texts and pictures."""
        encoder = self._encoder()
        texts = await self._run(TEXTS, request.texts)
        vectors = await self._run(PICTURES, await self._reader.read(request.pictures, encoder.pixels))
        return schemas.EmbedResponse(
            texts=[vector.tolist() for vector in texts],
            pictures=[vector.tolist() for vector in vectors],
            dim=encoder.dim,
            model=encoder.fingerprint,
        )

    async def search(self, request: schemas.SearchRequest) -> schemas.SearchResponse:
        """Indexed pictures that fit a text, or look like a picture.

        Raises:
            ServiceError: There is no index, the request cannot be met by this model, or its picture cannot be read.
        """
        began = time.monotonic()
        self._check_search()
        if request.rerank and not self._encoder().can_match:
            raise ServiceError(422, "this model has no matching head, so it cannot rerank", hint="leave out rerank")
        vector = await self._vector(request)
        encoded = time.monotonic() - began
        deadline = None if request.budget is None else began + request.budget
        where = request.where or None
        result = await self._search(
            lambda searcher: searcher.search_vector(
                vector,
                text=request.text,
                top=request.top,
                rerank=request.rerank,
                weight=request.weight,
                where=where,
                budget=None if deadline is None else max(deadline - time.monotonic(), _NO_BUDGET),
            ),
            where=where,
            deadline=deadline,
            turns=self._judging if request.rerank else None,
        )
        return found(result, seconds={**result.seconds, "encode": encoded, "total": time.monotonic() - began})

    async def similar(self, request: schemas.SimilarRequest) -> schemas.SearchResponse:
        """Indexed pictures that look like one of them."""
        began = time.monotonic()
        self._check_search()
        index, where = self._index(), request.where or None
        await self._of_picture(lambda: index.vector(request.id), executor=self._searchers)
        result = await self._search(
            lambda searcher: searcher.similar(request.id, top=request.top, where=where), where=where
        )
        return found(result, seconds={**result.seconds, "total": time.monotonic() - began})

    async def match(self, request: schemas.MatchRequest) -> schemas.MatchResponse:
        """Whether texts fit pictures, by the fusion encoder.

        Raises:
            ServiceError: The model has no matching head, or a picture cannot be read.
        """
        encoder = self._encoder()
        if not encoder.can_match:
            raise ServiceError(404, "this model has no matching head", hint="serve one that stage 3 has left")
        pictures = await self._reader.read(request.pictures, lambda picture: _small(encoder, picture))
        number = max(len(pictures), len(request.texts))
        pairs = list(zip(_repeated(pictures, number), _repeated(request.texts, number), strict=True))
        odds = await self._run(PAIRS, pairs)
        return schemas.MatchResponse(
            matches=[schemas.Match(log_odds=float(each), probability=sigmoid(float(each))) for each in odds]
        )

    async def answer(self, request: schemas.QuestionRequest) -> schemas.QuestionResponse:
        """Answers to a question about a picture.

        Raises:
            ServiceError: The service answers no questions, or the picture cannot be read.
        """
        answerer = self._parts.answerer
        if answerer is None:
            raise ServiceError(
                404,
                "this service answers no questions",
                hint="start it with --vqa and the folder of a model for visual question answering",
            )
        if request.id is not None:
            index, number = self._index(), request.id
            pixels = await self._of_picture(lambda: answerer.pixels(index.picture(number)), executor=self._decoders)
        else:
            (pixels,) = await self._reader.read([request.picture or b""], answerer.pixels)
        (answers,) = await self._run(QUESTIONS, [Question(pixels, request.question, request.top)])
        return schemas.QuestionResponse(
            answers=[schemas.Answer(answer=answer, score=score) for answer, score in answers]
        )

    async def classify(self, request: schemas.ClassifyRequest) -> schemas.ClassifyResponse:
        """Shares of labels for pictures, by words alone (zero-shot)."""
        encoder = self._encoder()
        sentences = [request.template.replace("{}", label) for label in request.labels]
        classes = np.stack(await self._run(TEXTS, sentences))
        pictures = await self._reader.read(request.pictures, encoder.pixels)
        vectors = np.stack(await self._run(PICTURES, pictures))
        shares = _softmax(encoder.inverse_temperature * vectors @ classes.T)
        return schemas.ClassifyResponse(pictures=[_ranked(request.labels, row) for row in shares])

    async def thumbnail(self, number: str) -> bytes:
        """JPEG of an indexed picture."""
        index = self._index()
        return await self._of_picture(lambda: index.thumbnail(number), executor=self._searchers)

    async def picture(self, number: str) -> bytes:
        """An indexed picture as JPEG, of at most 2048 pixels a side."""
        index = self._index()
        return await self._of_picture(lambda: _jpeg(index.picture(number)), executor=self._decoders)

    def about(self) -> schemas.About:
        """What the service can do. Blocks: it asks the index."""
        encoder, index = self._parts.encoder, self._parts.index
        limits = self._settings.limits
        return schemas.About(
            version=version("vlmo"),
            model=None if encoder is None else encoder.fingerprint,
            dim=None if encoder is None else encoder.dim,
            can_search=self._searcher is not None,
            can_rerank=self._searcher is not None and encoder is not None and encoder.can_match,
            can_answer=self._parts.answerer is not None,
            num_pictures=0 if index is None else index.num_pictures,
            columns={} if index is None else index.columns,
            samples=self._samples(),
            limits={
                "request_bytes": limits.request_bytes,
                "pixels": limits.pixels,
                "texts": settings.MAX_TEXTS,
                "characters": settings.MAX_CHARACTERS,
                "pictures": settings.MAX_PICTURES,
                "top": settings.MAX_TOP,
                "rerank": settings.MAX_RERANK,
            },
        )

    def _samples(self) -> list[schemas.Sample]:
        """A few pictures that are not too much alike: of those around some vector, one here and one there."""
        index, now = self._parts.index, time.monotonic()
        if index is None or not index.num_pictures:
            return []
        taken, samples = self._sampled
        if samples and now - taken < _SAMPLES_SECONDS:
            return samples
        vector = np.random.default_rng(0).normal(size=index.dim).astype(np.float32)
        near = index.nearest(vector / np.linalg.norm(vector), top=_SAMPLED)
        samples = [schemas.Sample(**described(hit)) for hit in near[:: max(len(near) // _SAMPLES, 1)][:_SAMPLES]]
        self._sampled = now, samples
        return samples

    async def _run(self, kind: str, rows: Sequence[Any]) -> list[Any]:
        return await asyncio.wrap_future(self._batcher.submit(kind, rows))

    async def _of_picture(self, work: Callable[[], T], *, executor: Executor) -> T:
        """The result of work on one picture of the index, on another thread."""
        try:
            return await asyncio.get_running_loop().run_in_executor(executor, work)
        except ValueError as error:  # its message may name a path of the server
            raise ServiceError(404, "the index has no picture of this id, or its file is gone") from error

    async def _vector(self, request: schemas.SearchRequest) -> Float[ndarray, " dim"]:
        if request.text is not None:
            (vector,) = await self._run(TEXTS, [request.text])
            return vector
        pictures = await self._reader.read([request.picture or b""], self._encoder().pixels)
        (vector,) = await self._run(PICTURES, pictures)
        return vector

    def _encoder(self) -> Encoder:
        if self._parts.encoder is None:
            raise ServiceError(
                404, "this service's model does not compare pictures with texts", hint="serve one that retrieves"
            )
        return self._parts.encoder

    def _index(self) -> Index:
        if self._parts.index is None:
            raise ServiceError(404, "this service has no index", hint="start it with --index and what vlmo index made")
        return self._parts.index

    def _check_search(self) -> SharedSearcher:
        self._index()
        self._encoder()
        if self._searcher is None:
            raise RuntimeError("there are a model and an index, and no searcher")
        return self._searcher

    async def _search(
        self,
        work: Callable[[Searcher], SearchResult],
        *,
        where: str | None,
        deadline: float | None = None,
        turns: asyncio.Semaphore | None = None,
    ) -> SearchResult:
        """The result of a search, which waits for its turn among those that hold whole pictures, if it has to."""
        index, searcher, cancelled = self._index(), self._check_search(), threading.Event()

        def checked() -> SearchResult:
            try:
                if where is not None:
                    check_filter(where, columns=[*index.columns, *_OWN_COLUMNS])
                return searcher.run(work, cancelled=cancelled, deadline=deadline)
            except ValueError as error:
                if where is None or not str(error).startswith("the filter"):
                    raise
                # The index names columns too, some of which are not for clients.
                reason = " ".join(str(error).split()).partition(". Columns: ")[0]
                columns = ", ".join(sorted([*index.columns, *_OWN_COLUMNS]))
                raise ServiceError(422, reason, hint=f"{_FILTER_HINT} {columns}") from error

        try:
            async with turn(turns, deadline=deadline):
                return await asyncio.get_running_loop().run_in_executor(self._searchers, checked)
        finally:
            cancelled.set()


def _calls(parts: Parts) -> dict[str, Call]:
    calls: dict[str, Call] = {}
    encoder = parts.encoder
    if encoder is not None:
        calls |= {TEXTS: encoder.embed_texts, PICTURES: encoder.embed_pixels}
        calls[PAIRS] = lambda rows: encoder.match([picture for picture, _ in rows], [text for _, text in rows])
    if parts.answerer is not None:
        calls[QUESTIONS] = parts.answerer
    return calls


def _small(encoder: Encoder, picture: Image.Image) -> Image.Image:
    """The picture at the size that the model resizes it to, where a second time changes nothing."""
    return Image.fromarray(encoder.pixels(picture).permute(1, 2, 0).numpy())


def _repeated(values: Sequence[T], number: int) -> Sequence[T]:
    return list(values) * number if len(values) == 1 else values


def _softmax(logits: Float[ndarray, "rows labels"]) -> Float[ndarray, "rows labels"]:
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    return shares / shares.sum(axis=1, keepdims=True)


def _ranked(labels: Sequence[str], shares: Float[ndarray, " labels"]) -> list[schemas.Label]:
    order = np.argsort(-shares, kind="stable")
    return [schemas.Label(label=labels[place], probability=float(shares[place])) for place in order]


def _jpeg(picture: Image.Image) -> bytes:
    if max(picture.size) > _LARGEST_SIDE:
        picture = picture.copy()
        picture.thumbnail((_LARGEST_SIDE, _LARGEST_SIDE))
    file = io.BytesIO()
    picture.convert("RGB").save(file, "JPEG", quality=90)
    return file.getvalue()
