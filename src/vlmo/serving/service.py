"""The service without HTTP: images and texts of many clients to one model and one index."""

from __future__ import annotations

import asyncio
import base64
import functools
import itertools
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import PurePath
from typing import Any, TypeAlias, TypeVar

import numpy as np
from scipy.special import expit
from torch import Tensor

from vlmo.data.decoding import image_bytes
from vlmo.model.reranking import rerank_score
from vlmo.retrieval import Encoder, Hit, Index, Searcher, SearchResult
from vlmo.retrieval.filters import check_filter
from vlmo.retrieval.index import MissingImageError
from vlmo.retrieval.search import (
    IMAGES,
    INDEX,
    LOAD,
    PAIRS,
    TEXTS,
    TOKENS,
    SearchQuery,
    Steps,
)
from vlmo.retrieval.store import DamagedError
from vlmo.serving import schemas
from vlmo.serving.batcher import Batcher, Observer
from vlmo.serving.map import MapDrawer
from vlmo.serving.parts import CAPTIONS, QUESTIONS, ImageModel, Parts
from vlmo.serving.schemas import ServiceError
from vlmo.serving.settings import Settings
from vlmo.serving.uploads import DECODERS, Uploads

# Pixels of an image of the index that is sent.
_LARGEST_SIDE = 2048
# Fields of a hit that clients see: its path is the server's own.
_HIT_FIELDS = (
    "id",
    "captions",
    "metadata",
    "width",
    "height",
    "score",
    "similarity",
    "match",
    "words",
    "presence",
)
# Columns that an index has beside those of its metadata.
_COLUMNS = ("id", "captions", "width", "height")
_SAMPLES = 12

Answer: TypeAlias = dict[str, Any]
"""An answer as JSON takes it."""
T = TypeVar("T")


class Service:
    """Answers requests; made when the server starts, in its event loop."""

    def __init__(
        self, parts: Parts, settings: Settings, *, observe: Observer | None = None
    ) -> None:
        self._parts = parts
        self._settings = settings
        self._batcher = Batcher(parts.calls(), max_batch=settings.max_batch, observe=observe)
        # Uploads have threads of their own, so that searches by words wait for none of them.
        self._uploads = Uploads(settings)
        self._threads = ThreadPoolExecutor(DECODERS, thread_name_prefix="vlmo-decoder")
        self._map_drawer = MapDrawer()

    def warm_up(self) -> None:
        """Load the models, so that the first searches are as fast as others. Blocks."""
        if self._can_search:
            self._searcher.warm_up()

    def close(self) -> None:
        """Finish what runs."""
        self._batcher.close()
        self._uploads.close()
        self._threads.shutdown()

    async def embeddings(self, request: schemas.EmbeddingsRequest) -> Answer:
        """L2-normalized vectors of texts and images, as OpenAI gives them; ServiceError for another model or size."""
        encoder = self._encoder(request.model)
        if request.dimensions not in {None, encoder.dim}:
            raise ServiceError(
                422,
                f"dimensions is {request.dimensions}, but the vectors here have {encoder.dim}",
                hint="leave out dimensions",
            )
        texts, images = schemas.split(request.input)
        pixels = await self._uploads.read(images, encoder.pixels)
        text_vectors, image_vectors, usage = await asyncio.gather(
            self._run(TEXTS, texts), self._run(IMAGES, pixels), self._usage(texts)
        )
        data = []
        for number, content in enumerate(request.input):
            vector = (image_vectors if content.text is None else text_vectors).pop(0)
            embedding = vector.tolist()
            # OpenAI's clients ask for base64, which is a quarter of the size of numbers in JSON.
            if request.encoding_format == "base64":
                embedding = base64.b64encode(vector.astype("<f4")).decode()
            data.append({"object": "embedding", "index": number, "embedding": embedding})
        return {
            "object": "list",
            "data": data,
            "model": encoder.folder.resolve().name,
            "usage": usage,
        }

    async def search(self, request: schemas.SearchRequest) -> Answer:
        """Indexed images that fit a text, or are like an image; ServiceError if the model cannot rerank but should."""
        started_at = time.perf_counter()
        self.index()
        encoder = self._encoder()
        if request.rerank and not encoder.can_match:
            raise ServiceError(
                422, f"{encoder.no_match}, so it cannot rerank", hint="leave out rerank"
            )
        if request.min_probability is not None and self.index().background is None:
            raise ServiceError(
                422,
                "the index knows no probabilities yet",
                hint="leave out min_probability, or run vlmo index again",
            )
        contents = (request, *request.parts)
        images = [content.image for content in contents if content.image is not None]
        pixels = iter(await self._uploads.read(images, encoder.pixels))
        parts = []
        if request.image is not None:
            parts.append((next(pixels), 1.0))
        parts += [(part.text or next(pixels), part.weight) for part in request.parts]
        query = SearchQuery(
            text=request.text, parts=parts, like=request.like, unlike=request.unlike
        )
        options = request.options()
        steps = self._searcher.steps(query, options, started_at=started_at)
        result = await self._run_steps(steps, where=options.where)
        facts = result.facts()
        facts["seconds"]["total"] = round(time.perf_counter() - started_at, 6)
        # Less likely images follow the others: an offset counts both.
        less_likely = result.less_likely[max(request.offset - len(result.hits), 0) :]
        return {
            "hits": [_visible(hit) for hit in result.hits[request.offset :]],
            "less_likely": [_visible(hit) for hit in less_likely],
            **facts,
        }

    async def _run_steps(self, steps: Steps, *, where: str | None) -> SearchResult:
        """Do the work of a search: the model's in batches with that of others, all else in threads."""

        async def do(kind: str, rows: list[Any]) -> Sequence[Any]:
            if kind == INDEX:
                return [await self._ask_index(call, where=where) for call in rows]
            if kind == LOAD:
                return await asyncio.gather(*map(self._decode, rows))
            return await self._run(kind, rows)

        try:
            work = next(steps)
            while True:
                results = await asyncio.gather(*map(do, work.keys(), work.values()))
                try:
                    work = steps.send(dict(zip(work, results, strict=True)))
                except ValueError as error:
                    # Parts that cancel each other.
                    raise ServiceError(422, str(error)) from error
        except StopIteration as end:
            return end.value

    async def similar(self, request: schemas.SimilarRequest) -> Answer:
        """Indexed images that are like one of them."""
        options = request.model_dump(by_alias=True, exclude={"id"})
        return await self.search(schemas.SearchRequest(like=[request.id], **options))

    async def rerank(self, request: schemas.RerankRequest) -> Answer:
        """Images in order for a text, or texts for an image, as Cohere gives them.

        ServiceError for another model, or one without a matching head.
        """
        encoder = self._encoder(request.model)
        if not encoder.can_match:
            raise ServiceError(404, encoder.no_match, hint="serve a VLMo that stage 3 has left")
        weight = request.weight
        if weight is None and request.query.text is None:
            weight = encoder.rerank_weight_image_to_text
        elif weight is None:
            weight = encoder.rerank_weight
        texts, images = schemas.split([request.query, *request.documents])
        pixels = await self._uploads.read(images, encoder.both_pixels)
        # One of both lists has a single entry: that of the query.
        pairs = [(to_match, text) for _, to_match in pixels for text in texts]
        text_vectors, image_vectors, log_odds, usage = await asyncio.gather(
            self._run(TEXTS, texts),
            self._run(IMAGES, [to_embed for to_embed, _ in pixels]),
            self._run(PAIRS, pairs),
            self._usage(texts),
        )
        similarities = (np.stack(image_vectors) @ np.stack(text_vectors).T).ravel()
        # Less the largest similarity, so that a logistic function does not round many scores to 1.
        scores = rerank_score(
            similarities - 1,
            np.asarray(log_odds),
            weight=weight,
            scale=encoder.inverse_temperature,
        )
        return {
            "results": request.ranked(scores),
            "model": encoder.folder.resolve().name,
            "usage": usage,
        }

    async def answer(self, request: schemas.QuestionRequest) -> Answer:
        """Answers to a question about an image, the best first; a score is the sigmoid of a logit."""
        answerer = _need(
            self._parts.answerer,
            "this service answers no questions",
            hint="start it with --vqa and the folder of a model for visual question answering",
        )
        pixels = await self._pixels(request, answerer)
        (scores,) = await self._run(QUESTIONS, [(pixels, request.question)])
        best = scores.topk(min(request.top, len(scores)))
        names = answerer.model.config.id2label
        pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        return {"answers": [{"answer": names[label], "score": score} for label, score in pairs]}

    async def caption(self, request: schemas.CaptionRequest) -> Answer:
        """A sentence about an image."""
        captioner = _need(
            self._parts.captioner,
            "this service describes no images",
            hint="start it with --captioning and the folder of a model for captions",
        )
        (text,) = await self._run(CAPTIONS, [await self._pixels(request, captioner)])
        return {"caption": text}

    async def thumbnail(self, image_id: str) -> bytes:
        """JPEG of an indexed image."""
        return await _of_image(asyncio.to_thread, self.index().thumbnail, image_id)

    async def image(self, image_id: str) -> bytes:
        """An indexed image as JPEG, of at most 2048 pixels a side."""
        index = self.index()

        def read() -> bytes:
            # `convert` gives a copy, so that the thumbnail changes nothing.
            image = index.image(image_id).convert("RGB")
            image.thumbnail((_LARGEST_SIDE, _LARGEST_SIDE))
            return image_bytes(image, "JPEG", quality=90)

        return await _of_image(self._decode, read)

    def models(self) -> Answer:
        """Models of the service, in the form of OpenAI."""
        models = []
        for part in (self._parts.encoder, self._parts.answerer, self._parts.captioner):
            if part is not None:
                name = part.folder.resolve().name
                created = int((part.folder / "config.json").stat().st_mtime)
                models.append(
                    {"id": name, "object": "model", "created": created, "owned_by": "vlmo"}
                )
        return {"object": "list", "data": models}

    def about(self) -> Answer:
        """Abilities and limits of the service, and some images of its index, which it asks: it blocks."""
        encoder = self._parts.encoder
        index = self._parts.index
        about = {
            "version": version("vlmo"),
            "model": getattr(encoder, "fingerprint", None),
            "dim": getattr(encoder, "dim", None),
            "can_search": self._can_search,
            "can_rerank": self._can_search and getattr(encoder, "can_match", False),
            "can_answer": self._parts.answerer is not None,
            "can_caption": self._parts.captioner is not None,
            "is_behind": self._parts.is_behind(),
            "limits": {
                "request_bytes": self._settings.request_bytes,
                "pixels": self._settings.max_pixels,
                "top": schemas.MAX_TOP,
            },
        }
        if index is None:
            empty = {"num_images": 0, "complete": True, "num_skipped": 0, "has_texts": False}
            return about | empty | {"columns": {}, "samples": []}
        return about | {
            "num_images": index.num_images,
            "complete": index.complete,
            "num_skipped": index.num_skipped,
            "has_texts": index.has_texts,
            "columns": index.columns,
            "samples": [_visible(hit) for hit, _ in index.sample(_SAMPLES)],
        }

    def map(self) -> Answer:
        """The map, or the `step` that is being done for it; ServiceError if there is none. It blocks."""
        try:
            drawn = self._map_drawer.ask(self._encoder(), self.index())
        except DamagedError:
            raise
        except (ValueError, ModuleNotFoundError) as error:
            raise ServiceError(404, "there is no map", hint=str(error)) from error
        if isinstance(drawn, str):
            return {"step": drawn}
        return {
            "images": [
                _visible(hit) | {"x": x, "y": y, "thumbnail": thumbnail}
                for hit, x, y, thumbnail in drawn.images
            ],
            "groups": [{"name": name, "x": x, "y": y} for name, x, y in drawn.groups],
        }

    def index(self) -> Index:
        """Return the index; ServiceError if there is none."""
        return _need(
            self._parts.index,
            "this service has no index",
            hint="start it with --index and a folder of vlmo index",
        )

    def _encoder(self, name: str | None = None) -> Encoder:
        """Return the model of images and texts; ServiceError if there is none, or if `name` is not its name."""
        encoder = _need(
            self._parts.encoder,
            "this service's model does not compare images with texts",
            hint="serve one that retrieves",
        )
        model = encoder.folder.resolve().name
        if name not in {None, model}:
            raise ServiceError(
                404,
                f"the model {name!r:.80} does not exist",
                hint=f"send {model!r}, or leave out model",
                fields={"param": "model", "code": "model_not_found"},
            )
        return encoder

    @property
    def _can_search(self) -> bool:
        return self._parts.encoder is not None and self._parts.index is not None

    @functools.cached_property
    def _searcher(self) -> Searcher:
        return Searcher(self._encoder(), self.index())

    async def _run(self, kind: str, rows: Sequence[Any]) -> list[Any]:
        """Return results of the model for rows of one request, in parts of at most a batch."""
        # Other requests get in between the parts.
        size = self._settings.max_batch
        parts = [
            self._batcher.submit(kind, rows[start : start + size])
            for start in range(0, len(rows), size)
        ]
        results = await asyncio.gather(*map(asyncio.wrap_future, parts))
        return list(itertools.chain(*results))

    async def _usage(self, texts: Sequence[str]) -> Answer:
        tokens = sum(await self._run(TOKENS, texts))
        return {"prompt_tokens": tokens, "total_tokens": tokens}

    async def _decode(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    async def _pixels(self, request: schemas.CaptionRequest, model: ImageModel) -> Tensor:
        if request.image is not None:
            return (await self._uploads.read([request.image], model.pixels))[0]
        index = self.index()
        image_id = request.id or ""
        return await _of_image(self._decode, lambda: model.pixels(index.image(image_id)))

    async def _ask_index(self, work: Callable[[], T], *, where: str | None) -> T:
        index = self.index()

        def checked() -> T:
            try:
                if where is not None:
                    columns = [*index.columns, *_COLUMNS]
                    check_filter(where, columns=columns)
                return work()
            except MissingImageError as error:
                raise _no_image() from error
            except ValueError as error:
                if not str(error).startswith(("the filter", "the index knows", "the parts")):
                    raise
                # The index names columns too, some of which are not for clients.
                reason = " ".join(str(error).split()).partition(". Columns: ")[0]
                hint = ""
                if reason.startswith("the filter"):
                    names = ", ".join(sorted([*index.columns, *_COLUMNS]))
                    hint = f"a filter compares columns with numbers and 'texts'; there are {names}"
                raise ServiceError(422, reason, hint=hint) from error

        return await asyncio.to_thread(checked)


async def _of_image(run: Callable[..., Awaitable[T]], *arguments: object) -> T:
    """Run what reads an image of the index; ServiceError if that is gone."""
    try:
        return await run(*arguments)
    except DamagedError:
        raise
    except ValueError as error:
        raise _no_image() from error


def _no_image() -> ServiceError:
    # The index's own message may name a path of the server.
    reason = "the index has no image of this id, or its file is gone"
    return ServiceError(404, reason, hint="search again")


def _visible(hit: Hit) -> Answer:
    """Return the fields of a hit that clients may see: its file's name, and not where that lies on the server."""
    probability = None if hit.match is None else float(expit(hit.match))
    shown = {name: vars(hit)[name] for name in _HIT_FIELDS}
    return shown | {"name": PurePath(hit.path).name, "probability": probability}


def _need(part: T | None, reason: str, *, hint: str) -> T:
    if part is None:
        raise ServiceError(404, reason, hint=hint)
    return part
