"""Bodies of requests, answers and errors, and the limits of requests, which are in the OpenAPI schema too."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Literal, Self

import numpy as np
from fastapi.responses import JSONResponse
from jaxtyping import Float
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    WithJsonSchema,
    model_validator,
)
from scipy.special import expit

from vlmo.model.reranking import SEARCH_RERANK
from vlmo.retrieval.options import Mode, PhotoFilter, SearchOptions

MAX_TEXTS = 256  # of a request
MAX_IMAGES = 16
MAX_TOP = 200  # results
MAX_OFFSET = 9700  # results before these
# Files that are not in the index, of an answer.
MAX_FILES = 1000
# Of a query beside the first.
MAX_PARTS = 8
# Candidates of a request that the fusion encoder scores.
MAX_RERANK = 128
# Characters of a text, of which the model reads the first 40 or 64 tokens.
MAX_CHARACTERS = 1000
# Characters of a filter: a few hundred terms nest less deeply than any parser minds.
MAX_FILTER = 500
# Characters of an error, which may repeat a name or value of the request.
_MAX_REASON = 300
# Headers that an error of a status needs (RFC 9110).
_ERROR_HEADERS = {401: {"WWW-Authenticate": "Bearer"}, 503: {"Retry-After": "1"}}


def read_image(value: object) -> bytes:
    """Decode base64, alone or in a `data:` address; ValueError if it is something else, or empty."""
    if not isinstance(value, str):
        raise ValueError("an image is a string: a file in base64")
    if value[:8].lower().startswith(("http://", "https://")):
        raise ValueError("addresses are not fetched: send the image in base64")
    if value.startswith("data:"):
        value = value.partition(",")[2]
    try:
        data = base64.b64decode(value, validate=True)
    except ValueError as error:
        raise ValueError(f"the image is no base64: {error}") from None
    if not data:
        raise ValueError("the image is empty")
    return data


def _text(value: str) -> str:
    if not value.strip():
        raise ValueError("the text is empty")
    return value


def _check_one(first: object, second: object, *, names: str) -> None:
    if (first is None) == (second is None):
        raise ValueError(f"give {names}, one of them")


_FILE = WithJsonSchema(
    {"type": "string", "description": "An image file in base64 (a `data:` address will do)."}
)
ImageFile = Annotated[bytes, BeforeValidator(read_image), _FILE]
Text = Annotated[
    str, StringConstraints(min_length=1, max_length=MAX_CHARACTERS), AfterValidator(_text)
]
Id = Annotated[
    str, Field(min_length=1, max_length=1000, description="Id of an indexed image, from a hit.")
]
Ids = Annotated[list[Id], Field(max_length=MAX_IMAGES)]
_ABOUT_FILTERS = "Filter on the index's columns, such as `year >= 2020 and album = 'Rome'`."
Where = Annotated[str, Field(max_length=MAX_FILTER, description=_ABOUT_FILTERS)]
Top = Annotated[int, Field(ge=1, le=MAX_TOP, description="Number of results.")]
_ABOUT_RERANKING = f"""Candidates of a text that the fusion encoder scores; by default {SEARCH_RERANK}, if it can \
and the text has as many words as the model asks for."""
_ABOUT_WEIGHTS = "Share of the match score in the order; by default the model's."
Weight = Annotated[float | None, Field(ge=0, le=1, description=_ABOUT_WEIGHTS)]


class Body(BaseModel):
    """Body of a request."""

    model_config = ConfigDict(
        extra="forbid", hide_input_in_errors=True, use_attribute_docstrings=True
    )


class Photos(Body):
    """Photographs of a time, a place and a folder, and their order."""

    since: str | None = Field(None, alias="from")
    """First date: 2021, 2021-06 or 2021-06-14."""
    until: str | None = Field(None, alias="to")
    """Last date; all of that year, month or day counts."""
    near: str | None = Field(None, max_length=60)
    """Place and distance: `48.85,2.35,20km`."""
    album: str | None = Field(None, max_length=200)
    """Folder of the files."""
    offset: int = Field(0, ge=0, le=MAX_OFFSET)
    """Results that are left out before the first."""
    sort: Literal["date"] | None = None
    """The newest first; with a query without offset."""

    @model_validator(mode="after")
    def _check_photos(self) -> Self:
        self.photos()
        queries = (getattr(self, name, None) for name in ("text", "image", "like", "unlike", "id"))
        if self.sort and self.offset and any(queries):
            raise ValueError(
                "the best by date are sorted as a whole; leave out offset, and ask for more by top"
            )
        return self

    def photos(self) -> PhotoFilter:
        """Return the conditions; ValueError if one has another form."""
        return PhotoFilter(since=self.since, until=self.until, near=self.near, album=self.album)


class Item(Body):
    """A text or an image."""

    text: Text | None = None
    image: ImageFile | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        _check_one(self.text, self.image, names="a text or an image")
        return self


class Part(Item):
    """A text or an image that is added to a query, or subtracted."""

    weight: float = Field(1, ge=-10, le=10)
    """Subtracts if it is negative."""


class SearchRequest(Photos):
    """A text or an image to search by; neither, for all photographs by date."""

    text: Text | None = None
    """Words that the image should fit."""
    image: ImageFile | None = None
    parts: list[Part] = Field([], max_length=MAX_PARTS)
    """More texts and images, with weights."""
    top: Top = 10
    rerank: int | None = Field(None, ge=0, le=MAX_RERANK, description=_ABOUT_RERANKING)
    weight: Weight = None
    where: Where | None = None
    mode: Mode = "auto"
    """By vectors, words, both, or both where images have all words."""
    like: Ids = []
    """Images that the results are to be like."""
    unlike: Ids = []
    """Images that they are not to be like."""
    min_probability: float | None = Field(None, ge=0, le=1)
    """Least probability that an image shows the text; others are in `less_likely`."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.like or self.unlike) and (self.rerank or self.mode in {"words", "hybrid"}):
            raise ValueError(
                "like and unlike go by vectors of whole images; leave out rerank and mode"
            )
        if (self.sort is None and not self.like) or self.image is not None:
            _check_one(self.text, self.image, names="a text or an image")
        if self.rerank and (self.text is None or self.parts or self.mode == "words"):
            raise ValueError(
                "the fusion encoder scores single texts, and not by words alone; leave out rerank"
            )
        if self.parts and self.text is None and self.image is None and not self.like:
            raise ValueError("parts join a query; send a text, an image or like beside them")
        is_single_text = self.text is not None and not (self.parts or self.like or self.unlike)
        if self.min_probability is not None and not is_single_text:
            raise ValueError("min_probability belongs to a text alone; leave it out")
        if self.mode in {"words", "hybrid"} and self.text is None:
            raise ValueError(f"mode {self.mode} looks up words; send a text")
        return self

    def options(self) -> SearchOptions:
        """Return the options of the search, with the results before `offset`."""
        return SearchOptions(
            top=self.offset + self.top,
            rerank=self.rerank,
            weight=self.weight,
            where=self.where or None,
            photos=self.photos(),
            sort=self.sort,
            mode=self.mode,
            min_probability=self.min_probability,
        )


class SimilarRequest(Photos):
    """An indexed image to search by."""

    id: Id
    top: Top = 10
    where: Where | None = None


class CaptionRequest(Body):
    """An image, given as a file or by its id in the index."""

    image: ImageFile | None = None
    id: Id | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        _check_one(self.image, self.id, names="an image or the id of an indexed one")
        return self


class QuestionRequest(CaptionRequest):
    """A question about an image, given as a file or by its id in the index."""

    question: Text
    """Question about the image."""
    top: int = Field(5, ge=1, le=20)
    """Number of answers."""


class Content(Item):
    """A text or an image. A string is a text, unless it begins with `data:image/`; an address alone is refused."""

    @model_validator(mode="before")
    @classmethod
    def _wrap(cls, value: object) -> object:
        if isinstance(value, dict):
            return value
        if not isinstance(value, str):
            raise ValueError(
                'expected a text or {"image": ...}; token ids are not accepted, send the text itself'
            )
        if re.fullmatch(r"[a-z][a-z0-9+.-]*://\S+", value, re.IGNORECASE):
            raise ValueError(
                'addresses are not fetched: send the image in base64, or {"text": ...} to mean the words'
            )
        return {"image" if value[:11].lower() == "data:image/" else "text": value}

    @property
    def document(self) -> dict[str, str]:
        """The object that a client sends, an image in base64."""
        if self.image is not None:
            return {"image": base64.b64encode(self.image).decode()}
        return {"text": self.text or ""}


def split(contents: Sequence[Content]) -> tuple[list[str], list[bytes]]:
    """Texts and images, both in the order of the contents."""
    texts = [content.text for content in contents if content.text is not None]
    return texts, [content.image for content in contents if content.image is not None]


_OBJECTS = [
    {"type": "object", "properties": {key: {"type": "string"}}, "required": [key]}
    for key in ("text", "image")
]
_ABOUT = (
    'A text, or an image as `{"image": "BASE64"}` or as a string that begins with `data:image/`.'
)
AnyContent = Annotated[
    Content, WithJsonSchema({"anyOf": [{"type": "string"}, *_OBJECTS], "description": _ABOUT})
]


class ClientBody(Body):
    """Body whose other fields have no effect: clients send settings of models that are not these."""

    model_config = ConfigDict(extra="ignore")

    model: str | None = None
    """Name of the model, as `/v1/models` lists it; may be left out."""


class EmbeddingsRequest(ClientBody):
    """Texts and images to embed."""

    input: Annotated[
        list[AnyContent],
        BeforeValidator(lambda value: value if isinstance(value, list) else [value]),
    ] = Field(min_length=1, max_length=MAX_TEXTS)
    """Texts and images; a single one needs no list."""
    encoding_format: Literal["float", "base64"] | None = "float"
    """float: lists of numbers. base64: 32-bit floats, little-endian."""
    dimensions: int | None = None
    """Size of a vector; the model's, if given."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        number = len(split(self.input)[1])
        if number > MAX_IMAGES:
            raise ValueError(f"input has {number} images: send at most {MAX_IMAGES} at a time")
        return self


class RerankRequest(ClientBody):
    """A text with images, or an image with texts."""

    query: AnyContent
    documents: list[AnyContent] = Field(min_length=1, max_length=MAX_RERANK)
    """Images for a text, texts for an image."""
    weight: Weight = None
    top_n: int | None = Field(None, ge=1)
    """Number of results; by default all."""
    return_documents: bool | None = False
    """Send the documents back with the results."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        for number, document in enumerate(self.documents):
            if (document.text is None) == (self.query.text is None):
                kind = "images" if document.text is None else "texts"
                raise ValueError(
                    f"query and document {number} are both {kind}: send a text and images, or vice versa"
                )
        return self

    def ranked(self, scores: Float[np.ndarray, " document"]) -> list[dict[str, object]]:
        """Return the documents in the order of their scores, as Cohere gives them."""
        probabilities = expit(scores)
        results: list[dict[str, object]] = []
        # Not in the order of the logistic function, which is 1 for all sure matches.
        for index in np.argsort(-scores, kind="stable").tolist()[: self.top_n]:
            result: dict[str, object] = {
                "index": index,
                "relevance_score": float(probabilities[index]),
            }
            if self.return_documents:
                result["document"] = self.documents[index].document
            results.append(result)
        return results


class ErrorResponse(BaseModel):
    """Form of all errors."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    error: dict[str, str]
    """`message`, `type`, `code` and `param`, as OpenAI's clients read them."""
    detail: str
    """Advice, where Jina's clients read it."""


class ServiceError(Exception):
    """Becomes an `ErrorResponse` with this HTTP status.

    `headers` are by default those that the status asks for; `fields` are added to those that OpenAI's clients read.
    """

    def __init__(
        self,
        status: int,
        reason: str,
        *,
        hint: str = "",
        headers: Mapping[str, str] | None = None,
        fields: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(reason)
        self.status = status
        self.hint = hint
        self.reason = reason if len(reason) <= _MAX_REASON else f"{reason[: _MAX_REASON - 3]}..."
        self.fields = fields or {}
        self.headers = headers or _ERROR_HEADERS.get(status)

    def response(self) -> JSONResponse:
        """The error over HTTP."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        error = {"message": self.reason, "type": kind, "code": str(self.status), **self.fields}
        content = {"error": error, "detail": self.hint or self.reason}
        return JSONResponse(content, status_code=self.status, headers=self.headers)


class BusyError(ServiceError):
    """The queue is full."""

    def __init__(self, reason: str = "the queue is full") -> None:
        super().__init__(
            503, reason, hint="try again in a second, or start the server with a longer --queue"
        )


class StoppingError(ServiceError):
    """No new work is accepted."""

    def __init__(self) -> None:
        super().__init__(
            503, "the server is stopping", hint="try again when it has been started anew"
        )
