"""The service without HTTP: images and texts of many clients to one model and one index."""

from __future__ import annotations

import asyncio
import functools
import io
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from vlmo.data.decoding import COMMON_FORMATS, decode_image
from vlmo.retrieval import Encoder, Index, Searcher
from vlmo.retrieval.filters import check_comparisons
from vlmo.serving import schemas
from vlmo.serving.batcher import Batcher, Call, Observer
from vlmo.serving.parts import Parts, Question
from vlmo.serving.schemas import ServiceError, sigmoid
from vlmo.serving.settings import Settings

TEXTS, IMAGES, PAIRS, QUESTIONS = "texts", "images", "pairs", "questions"
_DECODERS = 2
"""Threads that decode; as many whole images are in memory at a time."""
_FORMATS = "JPEG, PNG, WebP, GIF, BMP, TIFF"
_LARGEST_SIDE = 2048
# Columns that every index has beside those of its metadata.
_OWN_COLUMNS = ("id", "captions", "width", "height")
_FILTER_HINT = "a filter compares columns with numbers and 'texts'; there are"
_SAMPLES, _SAMPLED = 12, 180

T = TypeVar("T")


class Service:
    """Answers requests; made when the server starts, in its event loop.

    Args:
        parts: Models and index.
        settings: Settings of the server.
        observe: Called with kind, rows and seconds of each call of a model.
    """

    def __init__(self, parts: Parts, settings: Settings, *, observe: Observer | None = None) -> None:
        self._parts, self._settings = parts, settings
        self._batcher = Batcher(
            _calls(parts), max_batch=settings.max_batch, max_wait=settings.max_wait_ms / 1000, observe=observe
        )
        self._decoders = ThreadPoolExecutor(_DECODERS, thread_name_prefix="vlmo-decoder")

    def warm_up(self) -> None:
        """Measure the speed of reranking, so that the first searches keep their budgets too. Blocks."""
        if self._can_search:
            self._searcher.warm_up()

    def close(self) -> None:
        """Finish what runs."""
        self._batcher.close()
        self._decoders.shutdown()

    async def embed(self, request: schemas.EmbedRequest) -> schemas.EmbedResponse:
        """Vectors of texts and images."""
        encoder = self._encoder()
        texts = await self._run(TEXTS, request.texts)
        vectors = await self._run(IMAGES, await self._read(request.images, encoder.pixels))
        return schemas.EmbedResponse(
            texts=[vector.tolist() for vector in texts],
            images=[vector.tolist() for vector in vectors],
            dim=encoder.dim,
            model=encoder.fingerprint,
        )

    async def search(self, request: schemas.SearchRequest) -> schemas.SearchResponse:
        """Indexed images that fit a text, or are like an image.

        Raises:
            ServiceError: There is no index, the request cannot be met by this model, or its image cannot be read.
        """
        began = time.perf_counter()
        index, encoder, searcher = self._index(), self._encoder(), self._searcher
        if request.rerank and not encoder.can_match:
            raise ServiceError(422, "this model has no matching head, so it cannot rerank", hint="leave out rerank")
        if request.text is not None:
            (vector,) = await self._run(TEXTS, [request.text])
        else:
            (vector,) = await self._run(IMAGES, await self._read([request.image or b""], encoder.pixels))
        encoded = time.perf_counter()
        where, top = request.where or None, max(request.top, request.rerank)
        shortlist = await self._ask_index(lambda: index.nearest(vector, top=top, where=where), where=where)
        seconds = {"encode": encoded - began, "index": time.perf_counter() - encoded}
        weight = encoder.rerank_weight if request.weight is None else request.weight
        deadline = None if request.budget is None else began + request.budget
        ranking = searcher.reranking(shortlist, rerank=request.rerank, weight=weight, deadline=deadline)
        try:
            async with asyncio.timeout(None if deadline is None else deadline - time.perf_counter()):
                while batch := ranking.next_batch():
                    loaders = await asyncio.to_thread(index.loaders, [hit.id for hit in batch])
                    pixels = await asyncio.gather(*[self._decode(searcher.load_pixels, load) for load in loaders])
                    pairs = [(each, request.text) for each in pixels if each is not None]
                    odds = iter(await self._run(PAIRS, pairs))
                    ranking.add([None if each is None else float(next(odds)) for each in pixels])
        except TimeoutError:
            pass  # the result says how far it came
        result = ranking.result(top=request.top, seconds=seconds)
        return schemas.SearchResponse.of(result, total=time.perf_counter() - began)

    async def similar(self, request: schemas.SimilarRequest) -> schemas.SearchResponse:
        """Indexed images that are like one of them."""
        began = time.perf_counter()
        index, searcher, where = self._index(), self._searcher, request.where or None
        await _of_image(asyncio.to_thread(index.vector, request.id))
        result = await self._ask_index(lambda: searcher.similar(request.id, top=request.top, where=where), where=where)
        return schemas.SearchResponse.of(result, total=time.perf_counter() - began)

    async def match(self, request: schemas.MatchRequest) -> schemas.MatchResponse:
        """Scores of how well texts fit images, by the fusion encoder.

        Raises:
            ServiceError: The model has no matching head, or an image cannot be read.
        """
        encoder = self._encoder()
        if not encoder.can_match:
            raise ServiceError(404, "this model has no matching head", hint="serve one that stage 3 has left")
        images = await self._read(request.images, encoder.pixels)
        number = max(len(images), len(request.texts))
        # One of either goes with each of the others.
        pairs = list(zip(images * (number // len(images)), request.texts * (number // len(request.texts)), strict=True))
        odds = [float(each) for each in await self._run(PAIRS, pairs)]
        return schemas.MatchResponse(matches=[schemas.Match(log_odds=each, probability=sigmoid(each)) for each in odds])

    async def answer(self, request: schemas.QuestionRequest) -> schemas.QuestionResponse:
        """Answers to a question about an image.

        Raises:
            ServiceError: The service answers no questions, or the image cannot be read.
        """
        hint = "start it with --vqa and the folder of a model for visual question answering"
        answerer = _need(self._parts.answerer, "this service answers no questions", hint=hint)
        if request.id is not None:
            index, number = self._index(), request.id
            pixels = await _of_image(self._decode(lambda: answerer.pixels(index.image(number))))
        else:
            (pixels,) = await self._read([request.image or b""], answerer.pixels)
        (answers,) = await self._run(QUESTIONS, [Question(pixels, request.question, request.top)])
        return schemas.QuestionResponse(
            answers=[schemas.Answer(answer=answer, score=score) for answer, score in answers]
        )

    async def classify(self, request: schemas.ClassifyRequest) -> schemas.ClassifyResponse:
        """Probabilities of labels for images, by words alone (zero-shot)."""
        encoder = self._encoder()
        sentences = [request.template.replace("{}", label) for label in request.labels]
        classes = np.stack(await self._run(TEXTS, sentences))
        vectors = np.stack(await self._run(IMAGES, await self._read(request.images, encoder.pixels)))
        logits = encoder.inverse_temperature * vectors @ classes.T
        shares = np.exp(logits - logits.max(axis=1, keepdims=True))
        shares /= shares.sum(axis=1, keepdims=True)
        order = np.argsort(-shares, axis=1, kind="stable")
        return schemas.ClassifyResponse(
            images=[
                [schemas.Label(label=request.labels[place], probability=float(row[place])) for place in places]
                for row, places in zip(shares, order, strict=True)
            ]
        )

    async def thumbnail(self, number: str) -> bytes:
        """JPEG of an indexed image."""
        return await _of_image(asyncio.to_thread(self._index().thumbnail, number))

    async def image(self, number: str) -> bytes:
        """An indexed image as JPEG, of at most 2048 pixels a side."""
        index = self._index()
        return await _of_image(self._decode(lambda: _jpeg(index.image(number))))

    def about(self) -> schemas.About:
        """Abilities and limits of the service. Blocks: it asks the index."""
        encoder, index = self._parts.encoder, self._parts.index
        limits = self._settings
        return schemas.About(
            version=version("vlmo"),
            model=None if encoder is None else encoder.fingerprint,
            dim=None if encoder is None else encoder.dim,
            can_search=self._can_search,
            can_rerank=self._can_search and encoder is not None and encoder.can_match,
            can_answer=self._parts.answerer is not None,
            num_images=0 if index is None else index.num_images,
            columns={} if index is None else index.columns,
            samples=self._samples(),
            limits={
                "request_bytes": limits.request_bytes,
                "pixels": limits.max_pixels,
                "texts": schemas.MAX_TEXTS,
                "characters": schemas.MAX_CHARACTERS,
                "images": schemas.MAX_IMAGES,
                "top": schemas.MAX_TOP,
                "rerank": schemas.MAX_RERANK,
            },
        )

    def _samples(self) -> list[schemas.Sample]:
        """A few images that are not too similar: every n-th of those nearest to a random vector."""
        index = self._parts.index
        if index is None or not index.num_images:
            return []
        vector = np.random.default_rng(0).normal(size=index.dim).astype(np.float32)
        near = index.nearest(vector / np.linalg.norm(vector), top=_SAMPLED)
        return [schemas.Sample.of(hit) for hit in near[:: max(len(near) // _SAMPLES, 1)][:_SAMPLES]]

    # ------------------------------------------------------------------------------------------------------- the parts

    def _encoder(self) -> Encoder:
        reason = "this service's model does not compare images with texts"
        return _need(self._parts.encoder, reason, hint="serve one that retrieves")

    def _index(self) -> Index:
        hint = "start it with --index and a folder of vlmo index"
        return _need(self._parts.index, "this service has no index", hint=hint)

    @property
    def _can_search(self) -> bool:
        return self._parts.encoder is not None and self._parts.index is not None

    @functools.cached_property
    def _searcher(self) -> Searcher:
        return Searcher(self._encoder(), self._index())

    async def _run(self, kind: str, rows: Sequence[Any]) -> list[Any]:
        """Results of rows, which share a call of the model with those of other clients."""
        return await asyncio.wrap_future(self._batcher.submit(kind, rows))

    async def _decode(self, work: Callable[..., T], *arguments: Any) -> T:
        """Run a function that holds a whole image on a decoder thread."""
        return await asyncio.get_running_loop().run_in_executor(self._decoders, work, *arguments)

    async def _read(self, files: Sequence[bytes], prepare: Callable[[Image.Image], T]) -> list[T]:
        """Apply `prepare` to the image of each file, one after the other.

        Raises:
            ServiceError: A file is no image, or has too many pixels.
        """

        def read(data: bytes) -> T:
            try:
                limits: Any = {"max_pixels": self._settings.max_pixels, "formats": COMMON_FORMATS}
                return prepare(decode_image({"bytes": data, "path": None}, **limits))
            except ValueError as error:
                reason = str(error).removeprefix("bytes in memory: ")
                raise ServiceError(422, f"no usable image: {reason}", hint=f"send a whole file: {_FORMATS}") from error

        return [await self._decode(read, data) for data in files]

    async def _ask_index(self, work: Callable[[], T], *, where: str | None) -> T:
        """Run a search of the index on a thread."""
        index = self._index()

        def checked() -> T:
            try:
                if where is not None:
                    columns = [*index.columns, *_OWN_COLUMNS]
                    check_comparisons(where, columns=columns, max_length=schemas.MAX_FILTER)
                return work()
            except ValueError as error:
                if where is None or not str(error).startswith("the filter"):
                    raise
                # The index names columns too, some of which are not for clients.
                reason = " ".join(str(error).split()).partition(". Columns: ")[0]
                columns = ", ".join(sorted([*index.columns, *_OWN_COLUMNS]))
                raise ServiceError(422, reason, hint=f"{_FILTER_HINT} {columns}") from error

        return await asyncio.to_thread(checked)


async def _of_image(work: Awaitable[T]) -> T:
    """Result of work on one image of the index."""
    try:
        return await work
    except ValueError as error:  # its message may name a path of the server
        raise ServiceError(404, "the index has no image of this id, or its file is gone") from error


def _need(part: T | None, reason: str, *, hint: str) -> T:
    if part is None:
        raise ServiceError(404, reason, hint=hint)
    return part


def _calls(parts: Parts) -> dict[str, Call]:
    calls: dict[str, Call] = {}
    encoder = parts.encoder
    if encoder is not None:
        calls |= {TEXTS: encoder.embed_texts, IMAGES: encoder.embed_pixels}
        calls[PAIRS] = lambda rows: encoder.match_pixels([pixels for pixels, _ in rows], [text for _, text in rows])
    if parts.answerer is not None:
        calls[QUESTIONS] = parts.answerer
    return calls


def _jpeg(image: Image.Image) -> bytes:
    small = image.convert("RGB")  # always a copy
    small.thumbnail((_LARGEST_SIDE, _LARGEST_SIDE))
    file = io.BytesIO()
    small.save(file, "JPEG", quality=90)
    return file.getvalue()
