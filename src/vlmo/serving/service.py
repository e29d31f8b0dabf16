"""The service without HTTP: images and texts of many clients to one model and one index."""

from __future__ import annotations

import asyncio
import base64
import functools
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from typing import Any, TypeVar, cast

import numpy as np
from PIL import Image

from vlmo.data.decoding import image_bytes
from vlmo.model.reranking import rerank_score
from vlmo.retrieval import Encoder, Index, Searcher
from vlmo.retrieval.encoder import shorten
from vlmo.retrieval.filters import check_comparisons
from vlmo.retrieval.search import IMAGES, INDEX, LOAD, PAIRS, TEXTS, TOKENS, sigmoid
from vlmo.retrieval.store import DamagedError
from vlmo.serving import schemas
from vlmo.serving.batcher import Batcher, Call, Observer
from vlmo.serving.decoder import ClosedError, Decoders
from vlmo.serving.parts import Parts, Question
from vlmo.serving.schemas import BusyError, ServiceError, StoppingError
from vlmo.serving.settings import Settings

QUESTIONS = "questions"
_DECODERS = 2
"""Uploads, and images of the index, that are decoded and resized at a time."""
_MOST_IMAGES = 4
"""Images of the largest size, or of the longest time to decode, that all those of a request may cost together: phones'
photographs that fill a request cost two."""
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
        observe: Called with kind, rows and seconds of each call of a model.
    """

    def __init__(self, parts: Parts, settings: Settings, *, observe: Observer | None = None) -> None:
        self._parts, self._settings = parts, settings
        self._batcher = Batcher(
            _calls(parts), max_batch=settings.max_batch, max_wait=settings.max_wait_ms / 1000, observe=observe
        )
        # Uploads have threads of their own, and half of the queue, so that searches by words wait for none of them.
        self._threads = ThreadPoolExecutor(_DECODERS, thread_name_prefix="vlmo-decoder")
        self._upload_threads = ThreadPoolExecutor(_DECODERS, thread_name_prefix="vlmo-upload")
        self._uploads: set[asyncio.Task[Any]] = set()
        self._decoders = Decoders(_DECODERS, max_pixels=settings.max_pixels)

    def warm_up(self) -> None:
        """Load the models, so that the first searches keep their budgets too. Blocks."""
        if self._can_search:
            self._searcher.warm_up()

    def close(self) -> None:
        """Finish what runs."""
        self._batcher.close()
        self._decoders.close()
        self._threads.shutdown()
        self._upload_threads.shutdown()

    async def embeddings(self, request: schemas.EmbeddingsRequest) -> schemas.EmbeddingsResponse:
        """Vectors of texts and images, for clients of OpenAI and Jina.

        Raises:
            ServiceError: More dimensions are asked for than the vectors have, or an image cannot be read.
        """
        encoder = self._encoder()
        dim = encoder.dim if request.dimensions is None else request.dimensions
        if dim > encoder.dim:
            reason = f"dimensions is {dim}, but the vectors here have {encoder.dim}"
            raise ServiceError(422, reason, hint=f"leave out dimensions, or ask for at most {encoder.dim}")
        texts, images = schemas.split(request.input)
        vectors, usage = await asyncio.gather(self._embed(texts, images), self._usage(texts))
        of_texts, of_images = map(iter, vectors)
        data = []
        for index, content in enumerate(request.input):
            vector = shorten(next(of_images if content.text is None else of_texts), dim)
            is_coded = request.encoding_format == "base64"
            values = base64.b64encode(vector.astype("<f4").tobytes()).decode() if is_coded else vector.tolist()
            data.append(schemas.Embedding(object="embedding", index=index, embedding=values))
        return schemas.EmbeddingsResponse(object="list", data=data, model=encoder.fingerprint, usage=usage)

    async def search(self, request: schemas.SearchRequest) -> schemas.SearchResponse:
        """Indexed images that fit a text, or are like an image.

        Raises:
            ServiceError: There is no index, the request cannot be met by this model, or its image cannot be read.
        """
        began = time.perf_counter()
        self._index()
        encoder, searcher = self._encoder(), self._searcher
        if request.rerank and not encoder.can_match:
            raise ServiceError(422, "this model has no matching head, so it cannot rerank", hint="leave out rerank")
        pixels, where = None, request.where or None
        if request.text is None:
            (pixels,) = await self._read([request.image or b""], encoder.pixels)
        steps = searcher.steps(
            request.text,
            pixels,
            top=request.top,
            rerank=request.rerank,
            weight=request.weight,
            where=where,
            budget=request.budget,
            began=began,
        )
        work: dict[str, Callable[[Any], Awaitable[Any]]] = {
            INDEX: lambda call: self._ask_index(call, where=where),
            LOAD: self._decode,
        }

        async def do(kind: str, rows: list[Any]) -> list[Any]:
            return await asyncio.gather(*map(work[kind], rows)) if kind in work else await self._run(kind, rows)

        try:
            asked = next(steps)
            while True:
                try:
                    async with asyncio.timeout(None if asked.until is None else asked.until - time.perf_counter()):
                        answers = await asyncio.gather(*[do(kind, rows) for kind, rows in asked.rows.items()])
                except TimeoutError as error:
                    asked = steps.throw(error)  # the result says how far it came
                else:
                    asked = steps.send(dict(zip(asked.rows, answers, strict=True)))
        except StopIteration as end:
            return schemas.SearchResponse.of(end.value, total=time.perf_counter() - began)

    async def similar(self, request: schemas.SimilarRequest) -> schemas.SearchResponse:
        """Indexed images that are like one of them."""
        began = time.perf_counter()
        index, searcher, where = self._index(), self._searcher, request.where or None
        await _of_image(asyncio.to_thread(index.vector, request.id))
        result = await self._ask_index(lambda: searcher.similar(request.id, top=request.top, where=where), where=where)
        return schemas.SearchResponse.of(result, total=time.perf_counter() - began)

    async def rerank(self, request: schemas.RerankRequest) -> schemas.RerankResponse:
        """Order of images for a text or of texts for an image, as a search has it; for clients of Cohere and Jina."""
        encoder = self._encoder()
        own = encoder.rerank_weight_image_to_text if request.query.text is None else encoder.rerank_weight
        weight = own if request.rerank_weight is None else request.rerank_weight
        texts, images = schemas.split([request.query, *request.documents])
        (pixels, odds), usage = await asyncio.gather(self._match(texts, images), self._usage(texts))
        of_texts, of_images = await asyncio.gather(self._run(TEXTS, texts), self._run(IMAGES, pixels))
        similarity = (np.stack(of_images) @ np.stack(of_texts).T).ravel()  # there is one text, or one image
        # Less the largest similarity, so that a logistic function does not round many scores to 1.
        scores = rerank_score(similarity - 1, np.asarray(odds), weight=weight, scale=encoder.inverse_temperature)
        # Not by the logistic function: that of sure matches is equal.
        order = np.argsort(-scores, kind="stable").tolist()[: request.top_n]
        results = [schemas.Ranked(index=index, relevance_score=sigmoid(scores[index])) for index in order]
        if request.return_documents:
            for ranked in results:
                ranked.document = request.documents[ranked.index].document
        meta = {"tokens": {"input_tokens": usage.total_tokens}}
        return schemas.RerankResponse(results=results, model=encoder.fingerprint, usage=usage, meta=meta)

    async def answer(self, request: schemas.QuestionRequest) -> schemas.QuestionResponse:
        """Answers to a question about an image."""
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

    async def thumbnail(self, number: str) -> bytes:
        """JPEG of an indexed image."""
        return await _of_image(asyncio.to_thread(self._index().thumbnail, number))

    async def image(self, number: str) -> bytes:
        """An indexed image as JPEG, of at most 2048 pixels a side."""
        index = self._index()
        return await _of_image(self._decode(lambda: _jpeg(index.image(number))))

    def models(self) -> schemas.ModelList:
        """Models of the service, and the routes that each answers."""
        encoder, answerer, models = self._parts.encoder, self._parts.answerer, []
        if encoder is not None:
            routes = ["/v1/embeddings"]
            routes += ["/v1/rerank", "/v2/rerank"] if encoder.can_match else []
            routes += ["/v1/search", "/v1/similar"] if self._can_search else []
            models.append((encoder.folder, encoder.fingerprint, routes))
        if answerer is not None:
            models.append((answerer.folder, None, ["/v1/vqa"]))
        return schemas.ModelList(
            data=[
                schemas.Model(
                    id=folder.resolve().name,
                    created=int((folder / "config.json").stat().st_mtime),
                    fingerprint=fingerprint,
                    routes=routes,
                )
                for folder, fingerprint, routes in models
            ]
        )

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

    async def _embed(self, texts: Sequence[str], images: Sequence[bytes]) -> tuple[list[Any], list[Any]]:
        """Vectors of texts and of image files."""
        pixels = await self._read(images, self._encoder().pixels)
        return await self._run(TEXTS, texts), await self._run(IMAGES, pixels)

    async def _match(self, texts: list[str], images: Sequence[bytes]) -> tuple[list[Any], list[float]]:
        """Pixels of image files, and log-odds of their pairs with texts; one of either goes with each of the others."""
        encoder = self._encoder()
        if not encoder.can_match:
            raise ServiceError(404, "this model has no matching head", hint="serve one that stage 3 has left")
        pixels = await self._read(images, encoder.pixels)
        number = max(len(pixels), len(texts))
        pairs = list(zip(pixels * (number // len(pixels)), texts * (number // len(texts)), strict=True))
        return pixels, [float(each) for each in await self._run(PAIRS, pairs)]

    async def _usage(self, texts: Sequence[str]) -> schemas.Usage:
        tokens = sum(await self._run(TOKENS, texts))
        return schemas.Usage(prompt_tokens=tokens, total_tokens=tokens)

    async def _decode(self, work: Callable[..., T], *arguments: Any) -> T:
        """Run a function that holds a whole image of the index on a decoder thread."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, work, *arguments)

    async def _read(self, files: Sequence[bytes], prepare: Callable[[Image.Image], T]) -> list[T]:
        """Apply `prepare` to the image of each file in turn; ServiceError if one is no image, or all cost too much."""
        if files:
            self._admit_upload()
        longest, most_pixels, cost = self._decoders.cpu_seconds, self._settings.max_pixels, 0.0

        def read(data: bytes) -> tuple[T, float]:
            try:
                image = self._decoders.decode(data)
                share = max(image.width * image.height / most_pixels, image.info["cpu_seconds"] / longest)
                return prepare(image), share
            except ClosedError as error:
                raise StoppingError from error
            except ValueError as error:
                reason = str(error).removeprefix("bytes in memory: ")
                hint = f"send a whole file of at most {self._settings.max_pixels:,} pixels: {_FORMATS}"
                raise ServiceError(422, f"no usable image: {reason}", hint=hint) from error

        prepared = []
        for data in files:
            result, share = await asyncio.get_running_loop().run_in_executor(self._upload_threads, read, data)
            prepared.append(result)
            cost += share
            if cost > _MOST_IMAGES:
                most = f"{_MOST_IMAGES * most_pixels:,} pixels, or {_MOST_IMAGES * longest:g} s to decode"
                raise ServiceError(
                    422, f"the images take more than {most}", hint="send fewer or smaller ones at a time"
                )
        return prepared

    def _admit_upload(self) -> None:
        """Count the running task among those of requests with images until it ends; BusyError if they are too many."""
        if len(self._uploads) >= max(1, self._settings.queue // 2):
            raise BusyError("too many requests with images are waiting")
        self._uploads.add(task := cast("asyncio.Task[Any]", asyncio.current_task()))
        task.add_done_callback(self._uploads.discard)

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
    except DamagedError:
        raise
    except ValueError as error:  # its message may name a path of the server
        raise ServiceError(
            404, "the index has no image of this id, or its file is gone", hint="search again"
        ) from error


def _need(part: T | None, reason: str, *, hint: str) -> T:
    if part is None:
        raise ServiceError(404, reason, hint=hint)
    return part


def _calls(parts: Parts) -> dict[str, Call]:
    calls: dict[str, Call] = {}
    encoder = parts.encoder
    if encoder is not None:
        calls |= {TEXTS: encoder.embed_texts, IMAGES: encoder.embed_pixels, TOKENS: encoder.count_tokens}
        calls[PAIRS] = encoder.match_pairs
    if parts.answerer is not None:
        calls[QUESTIONS] = parts.answerer
    return calls


def _jpeg(image: Image.Image) -> bytes:
    small = image.convert("RGB")  # always a copy
    small.thumbnail((_LARGEST_SIDE, _LARGEST_SIDE))
    return image_bytes(small, "JPEG", quality=90)
