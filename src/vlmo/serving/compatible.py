"""Bodies and answers that clients of OpenAI and Jina (embeddings), Cohere and Jina (rerank) send and expect."""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AliasChoices,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from vlmo.serving.schemas import MAX_IMAGES, MAX_RERANK, MAX_TEXTS, Body, ImageFile, Text, read_image


class Content(Body):
    """A text or an image. A string is a text, unless it begins with `data:image/`; an address alone is refused."""

    text: Text | None = None
    # LangChain and LlamaIndex name an image of Jina's embeddings by the last two.
    image: ImageFile | None = Field(default=None, validation_alias=AliasChoices("image", "bytes", "url"))

    @model_validator(mode="before")
    @classmethod
    def _wrap(cls, value: Any) -> Any:
        if isinstance(value, dict):
            return value
        if isinstance(value, str) and re.fullmatch(r"[a-z][a-z0-9+.-]*://\S+", value, re.IGNORECASE):
            raise ValueError('addresses are not fetched: send the image in base64, or {"text": ...} to mean the words')
        if isinstance(value, str) and value[:11].lower() != "data:image/":
            return {"text": value}
        if isinstance(value, str | bytes):  # bytes: a file of a form
            return {"image": value}
        raise ValueError('expected a text or {"image": ...}; token ids are not accepted, send the text itself')

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.text is None) == (self.image is None):
            raise ValueError("give a text or an image, one of them")
        return self

    @property
    def document(self) -> dict[str, str]:
        """The object that a client sends, an image in base64."""
        return {"image": base64.b64encode(self.image).decode()} if self.image is not None else {"text": self.text or ""}


def split(contents: Sequence[Content]) -> tuple[list[str], list[bytes]]:
    """Texts and images, both in the order of the contents."""
    texts = [content.text for content in contents if content.text is not None]
    return texts, [content.image for content in contents if content.image is not None]


def model_of(folder: Path, *, fingerprint: str | None, routes: list[str]) -> Model:
    """A model folder as clients of OpenAI list it."""
    created = int((folder / "config.json").stat().st_mtime)
    facts = {"id": folder.resolve().name, "created": created, "fingerprint": fingerprint, "routes": routes}
    return Model(object="model", owned_by="vlmo", **facts)


_OBJECTS = [{"type": "object", "properties": {key: {"type": "string"}}, "required": [key]} for key in ("text", "image")]
_ABOUT = 'A text, or an image as `{"image": "BASE64"}` or as a string that begins with `data:image/`.'
AnyContent = Annotated[Content, WithJsonSchema({"anyOf": [{"type": "string"}, *_OBJECTS], "description": _ABOUT})]


class ClientBody(Body):
    """Body whose other fields have no effect: clients send settings of models that are not these."""

    model_config = ConfigDict(extra="ignore")

    model: str | None = Field(default=None, description="Has no effect: the service has one model.")


class EmbeddingsRequest(ClientBody):
    """Texts and images to embed."""

    input: Annotated[list[AnyContent], BeforeValidator(lambda value: value if isinstance(value, list) else [value])] = (
        Field(min_length=1, max_length=MAX_TEXTS, description="Texts and images; a single one needs no list.")
    )
    encoding_format: Literal["float", "base64"] | None = Field(
        default="float",
        validation_alias=AliasChoices("encoding_format", "embedding_type", "encoding_type"),  # Jina's, LlamaIndex's
        description="float: lists of numbers. base64: 32-bit floats, little-endian.",
    )
    dimensions: int | None = Field(
        default=None,
        ge=1,
        description="Size of a vector: its first dimensions, at most the model's, of length 1 again.",
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        number = len(split(self.input)[1])
        if number > MAX_IMAGES:
            raise ValueError(f"input has {number} images: send at most {MAX_IMAGES} at a time")
        return self


class RerankRequest(ClientBody):
    """A text with images, or an image with texts."""

    query: AnyContent
    documents: list[AnyContent] = Field(
        min_length=1, max_length=MAX_RERANK, description="Images for a text, texts for an image."
    )
    top_n: int | None = Field(default=None, ge=1, description="Number of results; by default all.")
    rerank_weight: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="Share of the fusion encoder in the order, the rest is the similarity's; by default the model's.",
    )
    return_documents: bool | None = Field(default=False, description="Send the documents back with the results.")

    @field_validator("documents", mode="before")
    @classmethod
    def _read_strings(cls, value: Any, info: ValidationInfo) -> Any:
        """Read strings beside a text as images in base64: clients of Cohere send nothing else."""
        query = info.data.get("query")
        if not isinstance(value, list) or query is None or query.text is None:
            return value
        documents = []
        for number, each in enumerate(value):
            try:
                documents.append(read_image(each) if isinstance(each, str) else each)
            except ValueError as error:
                raise ValueError(f"document {number} must be an image, as the query is a text: {error}") from None
        return documents

    @model_validator(mode="after")
    def _check(self) -> Self:
        for number, document in enumerate(self.documents):
            if (document.text is None) == (self.query.text is None):
                kind = "images" if document.text is None else "texts"
                raise ValueError(f"query and document {number} are both {kind}: send a text and images, or vice versa")
        return self


class Usage(BaseModel):
    """Tokens that the model reads of the texts; images count none."""

    prompt_tokens: int
    total_tokens: int = Field(description="The same.")


class Embedding(BaseModel):
    """Vector of an input, of length 1."""

    object: Literal["embedding"]
    index: int = Field(description="Position of the input.")
    embedding: list[float] | str


class EmbeddingsResponse(BaseModel):
    """Vectors in the order of the inputs."""

    object: Literal["list"]
    data: list[Embedding]
    model: str = Field(description="Fingerprint of the model. Vectors of different models do not compare.")
    usage: Usage


class Model(BaseModel):
    """A model of this service."""

    id: str = Field(description="Name of its folder.")
    object: Literal["model"]
    created: int = Field(description="Time of its weights, in seconds since 1970.")
    owned_by: Literal["vlmo"]
    fingerprint: str | None = Field(description="The `model` of answers; null: of a model for questions.")
    routes: list[str] = Field(description="What it answers.")


class ModelList(BaseModel):
    """Models of this service, one that compares images with texts and one for questions at most."""

    object: Literal["list"]
    data: list[Model]


class Ranked(BaseModel):
    """Score of a document; with the document, if it was asked for."""

    index: int = Field(description="Position of the document in the request.")
    relevance_score: float = Field(
        description="Logistic function of the score that orders; for a `rerank_weight` of 1 probability of a match."
    )
    document: dict[str, str] = Field(default={}, description="`text`, or `image` in base64; if it was asked for.")


class RerankResponse(BaseModel):
    """Documents, the best first."""

    results: list[Ranked]
    model: str = Field(description="Fingerprint of the model.")
    usage: Usage
    meta: dict[str, dict[str, int]] = Field(description="The number of tokens, where Cohere's clients read it.")
