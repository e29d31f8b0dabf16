"""The service without HTTP: images and texts of many clients to one model and one index."""

from __future__ import annotations

import asyncio
import base64
import functools
import time
import zipfile
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import PurePath
from typing import IO, Any, TypeVar, cast

import numpy as np
from PIL import Image
from scipy.special import expit
from torch import Tensor

from vlmo.data.decoding import COMMON_FORMATS, image_bytes
from vlmo.model.reranking import rerank_score
from vlmo.retrieval import Encoder, Hit, Index, Searcher, SearchResult
from vlmo.retrieval.filters import check_filter
from vlmo.retrieval.search import (
    IMAGES,
    INDEX,
    LOAD,
    PAIRS,
    STORED,
    TEXTS,
    TOKENS,
    SearchQuery,
    Steps,
)
from vlmo.retrieval.store import DamagedError
from vlmo.serving import schemas
from vlmo.serving.batcher import Batcher, Call, Observer
from vlmo.serving.decoder import ClosedError, Decoders
from vlmo.serving.map import MapDrawer
from vlmo.serving.parts import ImageModel, Parts, answer_scores
from vlmo.serving.schemas import BusyError, ServiceError, StoppingError
from vlmo.serving.settings import Settings
from vlmo.tasks.captioning import describe

QUESTIONS = "questions"
CAPTIONS = "captions"
_DECODERS = 2
"""Uploads, and images of the index, that are decoded and resized at a time."""
_MOST_IMAGES = 4
"""Images of the largest size, or of the longest time to decode, that all those of a request may cost together: phones'
photographs that fill a request cost two."""
_LARGEST_SIDE = 2048
# Columns that every index has beside those of its metadata.
_OWN_COLUMNS = ("id", "captions", "width", "height")
_SAMPLES = 12

T = TypeVar("T")


class Service:
    """Answers requests; made when the server starts, in its event loop."""

    def __init__(
        self, parts: Parts, settings: Settings, *, observe: Observer | None = None
    ) -> None:
        self._parts = parts
        self._settings = settings
        self._batcher = Batcher(_calls(parts), max_batch=settings.max_batch, observe=observe)
        # Uploads have threads of their own, and half of the queue, so that searches by words wait for none of them.
        self._threads = ThreadPoolExecutor(_DECODERS, thread_name_prefix="vlmo-decoder")
        self._upload_threads = ThreadPoolExecutor(_DECODERS, thread_name_prefix="vlmo-upload")
        self._uploads: set[asyncio.Task[Any]] = set()
        self._decoders = Decoders(_DECODERS, max_pixels=settings.max_pixels)
        self._map_drawer = MapDrawer()

    def warm_up(self) -> None:
        """Load the models, so that the first searches are as fast as others. Blocks."""
        if self._can_search:
            self._searcher.warm_up()

    def close(self) -> None:
        """Finish what runs."""
        self._batcher.close()
        self._decoders.close()
        self._threads.shutdown()
        self._upload_threads.shutdown()

    async def embeddings(self, request: schemas.EmbeddingsRequest) -> dict[str, Any]:
        """L2-normalised vectors of texts and images, as OpenAI gives them; ServiceError for another model or size."""
        encoder = self._encoder(request.model)
        if request.dimensions not in {None, encoder.dim}:
            reason = f"dimensions is {request.dimensions}, but the vectors here have {encoder.dim}"
            raise ServiceError(422, reason, hint="leave out dimensions")
        texts, images = schemas.split(request.input)
        pixels = await self._read(images, encoder.pixels)
        asked = self._run(TEXTS, texts), self._run(IMAGES, pixels), self._usage(texts)
        of_texts, of_images, usage = await asyncio.gather(*asked)
        data = []
        for index, content in enumerate(request.input):
            vector = (of_images if content.text is None else of_texts).pop(0)
            is_coded = request.encoding_format == "base64"
            values = (
                base64.b64encode(vector.astype("<f4").tobytes()).decode()
                if is_coded
                else vector.tolist()
            )
            data.append({"object": "embedding", "index": index, "embedding": values})
        return {"object": "list", "data": data, "model": _name(encoder), "usage": usage}

    async def search(self, request: schemas.SearchRequest) -> dict[str, Any]:
        """Indexed images that fit a text, or are like an image; ServiceError if the model cannot rerank but should."""
        started_at = time.perf_counter()
        self._index()
        encoder = self._encoder()
        if request.rerank and not encoder.can_match:
            raise ServiceError(
                422, "this model has no matching head, so it cannot rerank", hint="leave out rerank"
            )
        query = await self._search_query(request, encoder)
        options = request.options()
        steps = self._searcher.steps(query, options, started_at=started_at)
        result = await self._run_steps(steps, where=options.where)
        facts = result.facts()
        facts["seconds"]["total"] = round(time.perf_counter() - started_at, 6)
        return {"hits": [_shown(hit) for hit in result.hits[request.offset :]], **facts}

    async def _search_query(self, request: schemas.SearchRequest, encoder: Encoder) -> SearchQuery:
        files = [part.image for part in (request, *request.parts) if part.image is not None]
        pixels = iter(await self._read(files, encoder.pixels))
        return SearchQuery(
            text=request.text,
            pixels=None if request.image is None else next(pixels),
            parts=[
                (next(pixels) if part.text is None else part.text, part.weight)
                for part in request.parts
            ],
            like=request.like,
            unlike=request.unlike,
        )

    async def _run_steps(self, steps: Steps, *, where: str | None) -> SearchResult:
        """Do the work of a search: the model's in batches with that of others, all else in threads."""

        async def do(kind: str, rows: list[Any]) -> Sequence[Any]:
            if kind == INDEX:
                return await asyncio.gather(*[self._ask_index(call, where=where) for call in rows])
            if kind == STORED:
                read = self._index().vector
                return await asyncio.gather(
                    *[_of_image(asyncio.to_thread, read, row) for row in rows]
                )
            if kind == LOAD:
                return await asyncio.gather(*[self._decode(call) for call in rows])
            return await self._run(kind, rows)

        try:
            work = next(steps)
            while True:
                results = await asyncio.gather(*[do(kind, rows) for kind, rows in work.items()])
                try:
                    work = steps.send(dict(zip(work, results, strict=True)))
                except ValueError as error:  # parts that cancel each other
                    raise ServiceError(422, str(error)) from error
        except StopIteration as end:
            return end.value

    async def similar(self, request: schemas.SimilarRequest) -> dict[str, Any]:
        """Indexed images that are like one of them."""
        others = request.model_dump(by_alias=True, exclude={"id"})
        return await self.search(schemas.SearchRequest(like=[request.id], **others))

    async def rerank(self, request: schemas.RerankRequest) -> dict[str, Any] | list[dict[str, Any]]:
        """Images in order for a text, or texts for an image, as Cohere or TEI gives them.

        ServiceError for another model, or one without a matching head.
        """
        encoder = self._encoder(request.model)
        if not encoder.can_match:
            raise ServiceError(
                404, "this model has no matching head", hint="serve one that stage 3 has left"
            )
        weight = request.weight
        if weight is None and request.query.text is None:
            weight = encoder.rerank_weight_image_to_text
        elif weight is None:
            weight = encoder.rerank_weight
        texts, images = schemas.split([request.query, *request.documents])
        pixels = await self._read(images, encoder.pixels)
        pairs = [
            (image, text) for image in pixels for text in texts
        ]  # there is one text, or one image
        asked = (
            self._run(TEXTS, texts),
            self._run(IMAGES, pixels),
            self._run(PAIRS, pairs),
            self._usage(texts),
        )
        of_texts, of_images, odds, usage = await asyncio.gather(*asked)
        similarity = (np.stack(of_images) @ np.stack(of_texts).T).ravel()
        # Less the largest similarity, so that a logistic function does not round many scores to 1.
        scores = rerank_score(
            similarity - 1, np.asarray(odds), weight=weight, scale=encoder.inverse_temperature
        )
        # Not by the logistic function: that of sure matches is equal.
        order = np.argsort(-scores, kind="stable").tolist()[: request.top_n]
        is_tei = request.texts is not None
        score, text = ("score", "text") if is_tei else ("relevance_score", "document")
        shown = float if is_tei and request.raw_scores else expit
        results: list[dict[str, Any]] = [
            {"index": each, score: float(shown(scores[each]))} for each in order
        ]
        for ranked in results if request.return_documents else ():
            document = request.documents[ranked["index"]].document
            ranked[text] = next(iter(document.values())) if is_tei else document
        if is_tei:
            return results
        return {"results": results, "model": _name(encoder), "usage": usage}

    async def answer(self, request: schemas.QuestionRequest) -> dict[str, Any]:
        """Answers to a question about an image, the best first; a score is the sigmoid of a logit."""
        hint = "start it with --vqa and the folder of a model for visual question answering"
        answerer = _need(self._parts.answerer, "this service answers no questions", hint=hint)
        pixels = await self._pixels(request, answerer)
        (scores,) = await self._run(QUESTIONS, [(pixels, request.question)])
        best = scores.topk(min(request.top, len(scores)))
        names = answerer.model.config.id2label
        pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        return {"answers": [{"answer": names[number], "score": score} for number, score in pairs]}

    async def caption(self, request: schemas.CaptionRequest) -> dict[str, Any]:
        """A sentence about an image."""
        hint = "start it with --captioning and the folder of a model for captions"
        captioner = _need(self._parts.captioner, "this service describes no images", hint=hint)
        (text,) = await self._run(CAPTIONS, [await self._pixels(request, captioner)])
        return {"caption": text}

    async def thumbnail(self, number: str) -> bytes:
        """JPEG of an indexed image."""
        return await _of_image(asyncio.to_thread, self._index().thumbnail, number)

    async def image(self, number: str) -> bytes:
        """An indexed image as JPEG, of at most 2048 pixels a side."""
        index = self._index()
        return await _of_image(self._decode, lambda: _jpeg(index.image(number)))

    def archive(self, ids: Sequence[str]) -> Iterator[bytes]:
        """Yield a zip archive of indexed files as they are; ServiceError if that is not wanted, or there is none."""
        index = self._index()
        if not self._settings.originals:
            raise ServiceError(
                403, "this service gives no files away", hint="start it with --originals"
            )
        if len(ids) > schemas.MAX_FILES:
            raise ServiceError(
                422, f"{len(ids)} ids", hint=f"give at most {schemas.MAX_FILES} at a time"
            )
        if not (files := index.files(ids)):
            raise ServiceError(
                404, "the index has no image of these ids", hint="give some, such as ?id=ID&id=ID"
            )
        return _zipped(files)

    def models(self) -> dict[str, Any]:
        """Models of the service, in the form of OpenAI."""
        parts = self._parts.encoder, self._parts.answerer, self._parts.captioner
        models = []
        for part in parts:
            if part is not None:
                created = int((part.folder / "config.json").stat().st_mtime)
                models.append(
                    {"id": _name(part), "object": "model", "created": created, "owned_by": "vlmo"}
                )
        return {"object": "list", "data": models}

    def about(self) -> dict[str, Any]:
        """Abilities and limits of the service, and some images of its index, which it asks: it blocks."""
        encoder = self._parts.encoder
        index = self._parts.index
        limits = self._settings
        return {
            "version": version("vlmo"),
            "model": None if encoder is None else encoder.fingerprint,
            "dim": None if encoder is None else encoder.dim,
            "can_search": self._can_search,
            "can_rerank": self._can_search and encoder is not None and encoder.can_match,
            "can_answer": self._parts.answerer is not None,
            "can_caption": self._parts.captioner is not None,
            "can_download": index is not None and limits.originals,
            "num_images": 0 if index is None else index.num_images,
            "complete": index is None or index.complete,
            "is_behind": self._parts.is_behind(),
            "num_skipped": 0 if index is None else index.num_skipped,
            "has_texts": index is not None and index.has_texts,
            "columns": {} if index is None else index.columns,
            "samples": [] if index is None else [_shown(hit) for hit, _ in index.sample(_SAMPLES)],
            "limits": {
                "request_bytes": limits.request_bytes,
                "pixels": limits.max_pixels,
                "top": schemas.MAX_TOP,
            },
        }

    def map(self) -> dict[str, Any]:
        """The map, or the `step` that is being done for it; ServiceError if there is none. It blocks."""
        try:
            found = self._map_drawer.ask(self._encoder(), self._index())
        except DamagedError:
            raise
        except (ValueError, ModuleNotFoundError) as error:
            raise ServiceError(404, "there is no map", hint=str(error)) from error
        if isinstance(found, str):
            return {"step": found}
        images = [
            {**_shown(hit), "x": x, "y": y, "thumbnail": data} for hit, x, y, data in found.images
        ]
        return {
            "images": images,
            "groups": [{"name": name, "x": x, "y": y} for name, x, y in found.groups],
        }

    def groups(self) -> dict[str, Any]:
        """Albums by their names, and months from the last on, each with its number of images and the newest of them."""
        return self._index().groups()

    def skipped(self) -> dict[str, Any]:
        """Files that are not in the index: names and reasons of the first 1,000, and formats that are not read."""
        return self._index().skipped(most=schemas.MAX_FILES)

    # ------------------------------------------------------------------------------------------------------- the parts

    def _encoder(self, name: str | None = None) -> Encoder:
        """Return the model of images and texts; ServiceError if there is none, or if `name` is not its name."""
        reason = "this service's model does not compare images with texts"
        encoder = _need(self._parts.encoder, reason, hint="serve one that retrieves")
        if name not in {None, _name(encoder)}:
            reason = f"the model {name!r:.80} does not exist"
            hint = f"send {_name(encoder)!r}, or leave out model"
            raise ServiceError(
                404, reason, hint=hint, fields={"param": "model", "code": "model_not_found"}
            )
        return encoder

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
        size = self._settings.max_batch
        parts = [
            self._batcher.submit(kind, rows[start : start + size])
            for start in range(0, len(rows), size)
        ]
        return [
            result
            for part in await asyncio.gather(*map(asyncio.wrap_future, parts))
            for result in part
        ]

    async def _usage(self, texts: Sequence[str]) -> dict[str, int]:
        tokens = sum(await self._run(TOKENS, texts))
        return {"prompt_tokens": tokens, "total_tokens": tokens}

    async def _decode(self, work: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work, *arguments)

    async def _read(self, files: Sequence[bytes], prepare: Callable[[Image.Image], T]) -> list[T]:
        """Apply `prepare` to the image of each file in turn; ServiceError if one is no image, or all cost too much."""
        if files:
            self._admit_upload()
        longest = self._decoders.cpu_seconds
        most_pixels = self._settings.max_pixels
        cost = 0.0

        def read(data: bytes) -> tuple[T, float]:
            try:
                image = self._decoders.decode(data)
                share = max(
                    image.width * image.height / most_pixels, image.info["cpu_seconds"] / longest
                )
                return prepare(image), share
            except ClosedError as error:
                raise StoppingError from error
            except ValueError as error:
                reason = str(error).removeprefix("bytes in memory: ")
                hint = f"send a whole file of at most {most_pixels:,} pixels: {', '.join(COMMON_FORMATS)}"
                raise ServiceError(422, f"no usable image: {reason}", hint=hint) from error

        prepared = []
        for data in files:
            result, share = await asyncio.get_running_loop().run_in_executor(
                self._upload_threads, read, data
            )
            prepared.append(result)
            cost += share
            if cost > _MOST_IMAGES:
                most = f"{_MOST_IMAGES * most_pixels:,} pixels, or {_MOST_IMAGES * longest:g} s to decode"
                hint = "send fewer or smaller ones at a time"
                raise ServiceError(422, f"the images take more than {most}", hint=hint)
        return prepared

    async def _pixels(self, request: schemas.CaptionRequest, model: ImageModel) -> Tensor:
        if request.image is not None:
            return (await self._read([request.image], model.pixels))[0]
        index = self._index()
        number = request.id or ""
        return await _of_image(self._decode, lambda: model.pixels(index.image(number)))

    def _admit_upload(self) -> None:
        """Count the running task among those of requests with images until it ends; BusyError if they are too many."""
        if len(self._uploads) >= max(1, self._settings.queue // 2):
            raise BusyError("too many requests with images are waiting")
        self._uploads.add(task := cast("asyncio.Task[Any]", asyncio.current_task()))
        task.add_done_callback(self._uploads.discard)

    async def _ask_index(self, work: Callable[[], T], *, where: str | None) -> T:
        index = self._index()

        def checked() -> T:
            try:
                if where is not None:
                    check_filter(
                        where,
                        columns=[*index.columns, *_OWN_COLUMNS],
                        max_length=schemas.MAX_FILTER,
                    )
                return work()
            except ValueError as error:
                if not str(error).startswith(("the filter", "the index knows", "the parts")):
                    raise
                # The index names columns too, some of which are not for clients.
                reason = " ".join(str(error).split()).partition(". Columns: ")[0]
                columns = ", ".join(sorted([*index.columns, *_OWN_COLUMNS]))
                hint = f"a filter compares columns with numbers and 'texts'; there are {columns}"
                raise ServiceError(
                    422, reason, hint=hint if reason.startswith("the filter") else ""
                ) from error

        return await asyncio.to_thread(checked)


async def _of_image(run: Callable[..., Awaitable[T]], *arguments: Any) -> T:
    try:
        return await run(*arguments)
    except DamagedError:
        raise
    except ValueError as error:  # its message may name a path of the server
        reason = "the index has no image of this id, or its file is gone"
        raise ServiceError(404, reason, hint="search again") from error


def _shown(hit: Hit) -> dict[str, Any]:
    """Return the fields of a hit that clients may see: its file's name, and not where that lies on the server."""
    names = (
        "id",
        "captions",
        "metadata",
        "width",
        "height",
        "score",
        "similarity",
        "match",
        "words",
    )
    probability = None if hit.match is None else float(expit(hit.match))
    return {name: vars(hit)[name] for name in names} | {
        "name": PurePath(hit.path).name,
        "probability": probability,
    }


class _Sent(list[bytes]):
    """A file that cannot be rewound, which makes `ZipFile` write all about an image before the next one."""

    def write(self, data: Any) -> int:
        self.append(bytes(data))
        return len(data)

    def flush(self) -> None: ...


def _zipped(files: Sequence[tuple[str, str, Callable[[], bytes]]]) -> Iterator[bytes]:
    """Yield a zip archive of files, one in memory at a time; before a name that another file has, its id stands."""
    sent = _Sent()
    used = set[str]()
    with zipfile.ZipFile(
        cast("IO[bytes]", sent), "w"
    ) as archive:  # stored: images are compressed already
        for key, path, read in files:
            name = PurePath(path).name
            try:
                data = read()
            except ValueError:
                name = f"{name} is missing.txt"
                data = b""
            archive.writestr(f"{key}-{name}" if name in used else name, data)
            used.add(name)
            yield b"".join(sent)
            sent.clear()
    yield b"".join(sent)


def _name(part: Encoder | ImageModel) -> str:
    return part.folder.resolve().name


def _need(part: T | None, reason: str, *, hint: str) -> T:
    if part is None:
        raise ServiceError(404, reason, hint=hint)
    return part


def _calls(parts: Parts) -> dict[str, Call]:
    calls: dict[str, Call] = {}
    encoder = parts.encoder
    if encoder is not None:
        calls |= {
            TEXTS: encoder.embed_texts,
            IMAGES: encoder.embed_pixels,
            TOKENS: encoder.count_tokens,
        }
        calls[PAIRS] = encoder.match_pairs
    if parts.answerer is not None:
        calls[QUESTIONS] = functools.partial(answer_scores, parts.answerer)
    if parts.captioner is not None:
        calls[CAPTIONS] = functools.partial(
            describe, parts.captioner.model, parts.captioner.processor
        )
    return calls


def _jpeg(image: Image.Image) -> bytes:
    small = image.convert("RGB")  # always a copy
    small.thumbnail((_LARGEST_SIDE, _LARGEST_SIDE))
    return image_bytes(small, "JPEG", quality=90)
