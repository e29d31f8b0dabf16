"""What requests and answers look like. Limits that stand here are in the OpenAPI schema too."""

from __future__ import annotations

import base64
import binascii
from typing import Annotated, Any, ClassVar, Literal, Self

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

from vlmo.serving.settings import (
    MAX_BUDGET,
    MAX_CHARACTERS,
    MAX_FILTER,
    MAX_LABELS,
    MAX_PICTURES,
    MAX_RERANK,
    MAX_TEXTS,
    MAX_TOP,
)

_ADDRESSES = ("http://", "https://")


def _picture(value: Any) -> bytes | str:
    """Bytes of base64 or of a `data:` address; bytes and other addresses stay as they are."""
    if isinstance(value, bytes):
        return value
    if not isinstance(value, str):
        raise ValueError("a picture is a string: a file in base64")
    if value[:8].lower().startswith(_ADDRESSES):
        if len(value) > 2000:
            raise ValueError("the address has more than 2000 characters")
        return value
    if value.startswith("data:"):
        value = value.partition(",")[2]
    try:
        data = base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"the picture is no base64: {error}") from None
    if not data:
        raise ValueError("the picture is empty")
    return data


def _text(value: str) -> str:
    if not value.strip():
        raise ValueError("the text is empty")
    return value


Picture = Annotated[
    bytes | str,
    BeforeValidator(_picture),
    WithJsonSchema(
        {
            "type": "string",
            "description": "A picture's file in base64 (a `data:` address will do). An http(s) address, where the "
            "server was started with --allow-host for its host.",
        }
    ),
]
Text = Annotated[str, StringConstraints(min_length=1, max_length=MAX_CHARACTERS), AfterValidator(_text)]
Id = Annotated[
    str, StringConstraints(min_length=1, max_length=1000), Field(description="Of an indexed picture, as hits have it.")
]
Where = Annotated[
    str,
    StringConstraints(max_length=MAX_FILTER),
    Field(description="Filter on the index's columns, such as `year >= 2020 and album = 'Rome'`."),
]
Top = Annotated[int, Field(ge=1, le=MAX_TOP, description="How many results.")]


class Body(BaseModel):
    """Of a request. `repeated` names the fields that are lists, which a form gives several times."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)
    repeated: ClassVar[frozenset[str]] = frozenset()


class EmbedRequest(Body):
    """Texts, pictures, or both."""

    repeated: ClassVar[frozenset[str]] = frozenset({"texts", "pictures"})
    texts: list[Text] = Field(default=[], max_length=MAX_TEXTS, description="Texts to embed.")
    pictures: list[Picture] = Field(default=[], max_length=MAX_PICTURES)

    @model_validator(mode="after")
    def _something(self) -> Self:
        if not self.texts and not self.pictures:
            raise ValueError("give texts, pictures, or both")
        return self


class SearchRequest(Body):
    """A text or a picture to search by."""

    text: Text | None = Field(default=None, description="Words that the picture should fit.")
    picture: Picture | None = None
    top: Top = 10
    rerank: Annotated[
        int, Field(ge=0, le=MAX_RERANK, description="Candidates that the fusion encoder judges; of text queries only.")
    ] = 0
    weight: Annotated[
        float | None, Field(ge=0, le=1, description="Share of its judgement in the order; by default the model's.")
    ] = None
    where: Where | None = None
    budget: Annotated[
        float | None, Field(gt=0, le=MAX_BUDGET, description="Seconds after which the order is returned as it stands.")
    ] = None

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.text is None) == (self.picture is None):
            raise ValueError("give a text or a picture, one of them")
        if self.picture is not None and self.rerank:
            raise ValueError("the fusion encoder judges texts; leave out rerank, or search by a text")
        return self


class SimilarRequest(Body):
    """An indexed picture to search by."""

    id: Id
    top: Top = 10
    where: Where | None = None


class MatchRequest(Body):
    """Pairs: the first picture with the first text and so on; a single one goes with each of the others."""

    repeated: ClassVar[frozenset[str]] = frozenset({"texts", "pictures"})
    pictures: list[Picture] = Field(min_length=1, max_length=MAX_PICTURES)
    texts: list[Text] = Field(min_length=1, max_length=MAX_TEXTS, description="Texts that may fit.")

    @model_validator(mode="after")
    def _pairs(self) -> Self:
        if len(self.pictures) != len(self.texts) and 1 not in (len(self.pictures), len(self.texts)):
            raise ValueError(
                f"{len(self.pictures)} pictures and {len(self.texts)} texts make no pairs: give equally many, or one "
                "of either"
            )
        return self


class QuestionRequest(Body):
    """A question about a picture, given as a file or by its id in the index."""

    question: Annotated[Text, Field(description="About the picture.")]
    picture: Picture | None = None
    id: Id | None = None
    top: Annotated[int, Field(ge=1, le=20, description="How many answers.")] = 5

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.picture is None) == (self.id is None):
            raise ValueError("give a picture or the id of an indexed one, one of them")
        return self


class ClassifyRequest(Body):
    """Pictures, and the words that may describe them."""

    repeated: ClassVar[frozenset[str]] = frozenset({"labels", "pictures"})
    pictures: list[Picture] = Field(min_length=1, max_length=MAX_PICTURES)
    labels: list[Text] = Field(min_length=2, max_length=MAX_LABELS, description="Names of the classes.")
    template: Annotated[str, StringConstraints(max_length=MAX_CHARACTERS)] = Field(
        default="{}", description="Sentence with one `{}`, where the label goes: `a photo of a {}`."
    )

    @model_validator(mode="after")
    def _place(self) -> Self:
        if self.template.count("{}") != 1:
            raise ValueError("the template needs one {}, where the label goes")
        if len(set(self.labels)) != len(self.labels):
            raise ValueError("a label is given twice")
        return self


class Sample(BaseModel):
    """An indexed picture."""

    id: str = Field(description="The same as long as the picture stays where it is.")
    name: str = Field(description="The file's name.")
    captions: list[str] = Field(description="All that it has.")
    metadata: dict[str, Any] = Field(description="The index's other columns.")
    width: int = Field(description="In pixels.")
    height: int = Field(description="In pixels.")


class Result(Sample):
    """An indexed picture that was found."""

    score: float = Field(description="What the order is by: similarity, or the mixed score in nats after reranking.")
    similarity: float = Field(description="Cosine of the query's and the picture's vectors.")
    match: float | None = Field(description="Log-odds that the text fits, by the fusion encoder; null: not judged.")
    probability: float | None = Field(description="The same as a probability.")


class SearchResponse(BaseModel):
    """What was found, the best first."""

    hits: list[Result]
    num_reranked: int = Field(description="Candidates that the fusion encoder has judged.")
    complete: bool = Field(description="False: the budget ran out, and the order is as far as it got.")
    note: str | None = Field(description="Says so in words, and how many candidates' pictures could not be read.")
    seconds: dict[str, float] = Field(description="`encode`, `index`, `rerank` and `total`, waiting included.")


class EmbedResponse(BaseModel):
    """Vectors of length 1; a dot product of two is their cosine."""

    texts: list[list[float]] = Field(description="A vector for each text.")
    pictures: list[list[float]] = Field(description="A vector for each picture.")
    dim: int = Field(description="Numbers in a vector.")
    model: str = Field(description="Fingerprint of the model. Vectors of different models do not compare.")


class Match(BaseModel):
    """Of one pair."""

    log_odds: float = Field(description="That the text fits the picture, by the fusion encoder.")
    probability: float = Field(description="The same as a probability.")


class MatchResponse(BaseModel):
    """In the order of the pairs."""

    matches: list[Match]


class Answer(BaseModel):
    """One of the answers that the model knows."""

    answer: str
    score: float = Field(description="Sigmoid of its logit; several may be right.")


class QuestionResponse(BaseModel):
    """The best first."""

    answers: list[Answer]


class Label(BaseModel):
    """A class and its share."""

    label: str
    probability: float


class ClassifyResponse(BaseModel):
    """For each picture all labels, the best first."""

    pictures: list[list[Label]]


class Health(BaseModel):
    """Whether requests are taken."""

    status: Literal["ready", "stopping"]


class About(BaseModel):
    """What this service can do."""

    version: str
    model: str | None = Field(description="Fingerprint of the model that compares pictures with texts.")
    dim: int | None
    can_search: bool
    can_rerank: bool
    can_answer: bool
    num_pictures: int
    columns: dict[str, str] = Field(description="Columns that filters may name, and what they hold.")
    samples: list[Sample] = Field(description="Some of the pictures.")
    limits: dict[str, int] = Field(description="The most of each that a request may have.")


class ErrorDetail(BaseModel):
    """What is wrong, and what to do."""

    reason: str
    hint: str


class ErrorResponse(BaseModel):
    """The form of every error."""

    error: ErrorDetail
