"""What a report shows, as plain data, and how it is put together from the result of an evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from jaxtyping import Float, Int
from PIL.Image import Image
from torch import Tensor

from vlmo.evaluation.retrieval import Ranking, RetrievalResult


@dataclass(frozen=True)
class Figure:
    """One row of the table of figures; all values are fractions.

    Attributes:
        metric: `ir@K`, `tr@K` or any other name, which is then shown as it is.
        chance: What a random order reaches.
        dual: The dual encoder.
        reranked: The fusion encoder on the dual encoder's shortlist.
        stageless: The dual encoder of a run of the same length without stages 1 and 2.
    """

    metric: str
    chance: float
    dual: float
    reranked: float | None = None
    stageless: float | None = None


@dataclass(frozen=True)
class Step:
    """One step of the run, in the order they ran; `seconds` is wall time."""

    name: str
    seconds: float
    note: str = ""


@dataclass(frozen=True)
class Curve:
    """Values by step; values that are not finite are left out of the drawing."""

    name: str
    points: Sequence[tuple[int, float]]


@dataclass(frozen=True)
class Chart:
    """Curves that share their axes, for example the losses of one stage."""

    title: str
    curves: Sequence[Curve]
    note: str = ""


@dataclass(frozen=True, eq=False)
class PictureQuery:
    """A text and the pictures it found, best first.

    Attributes:
        text: The query.
        pictures: The best pictures.
        correct: Place of the right picture among them, from 0; None if it is not there.
        rank: Rank of the right picture among all candidates, from 1.
        answer: The right picture, shown apart where `correct` is None.
    """

    text: str
    pictures: Sequence[Image]
    correct: int | None
    rank: int
    answer: Image | None = None


@dataclass(frozen=True, eq=False)
class TextQuery:
    """A picture and the texts it found, best first; `correct` holds the places, from 0, of the right ones."""

    picture: Image
    texts: Sequence[str]
    correct: Sequence[int]
    rank: int


@dataclass(frozen=True, eq=False)
class AttentionMap:
    """Attention of each word of a text over an image; see `attention_maps`.

    Raises:
        ValueError: The weights are not a grid for each word.
    """

    picture: Image
    words: Sequence[str]
    weights: Float[Tensor, "word grid_h grid_w"]

    def __post_init__(self) -> None:
        if self.weights.ndim != 3 or len(self.words) != len(self.weights):
            raise ValueError(
                f"{len(self.words)} words and weights of shape {tuple(self.weights.shape)}; "
                "expected one map [grid_h, grid_w] a word."
            )


@dataclass(frozen=True)
class Attribution:
    """Whom the data is from and on which terms it is shown."""

    name: str
    licence: str
    url: str = ""
    note: str = ""


@dataclass(frozen=True, eq=False)
class Report:
    """Everything on the page; parts that are left empty are left out."""

    title: str
    summary: str = ""
    figures: Sequence[Figure] = ()
    figures_note: str = ""
    steps: Sequence[Step] = ()
    charts: Sequence[Chart] = ()
    text_to_image: Sequence[PictureQuery] = ()
    image_to_text: Sequence[TextQuery] = ()
    attention: Sequence[AttentionMap] = ()
    details: Mapping[str, str] = field(default_factory=dict)
    attributions: Sequence[Attribution] = ()


def figures_of(result: RetrievalResult, *, stageless: Mapping[str, float] | None = None) -> list[Figure]:
    """One row for each metric of the result; `stageless` holds the same metrics of the run without stages."""
    stageless = stageless or {}
    return [
        Figure(
            metric=metric,
            chance=chance,
            dual=result.metrics[metric],
            reranked=result.metrics.get(f"rerank_{metric}"),
            stageless=stageless.get(metric),
        )
        for metric, chance in result.chance.items()
    ]


def picture_queries(
    ranking: Ranking,
    *,
    texts: Sequence[str],
    pictures: Sequence[Image],
    text_to_image: Int[Tensor, " num_texts"],
    chosen: Sequence[int],
    top: int = 5,
) -> list[PictureQuery]:
    """The chosen texts with the pictures that a text-to-image ranking found for them."""
    queries = []
    for text in chosen:
        found, answer = ranking.indices[text, :top].tolist(), int(text_to_image[text])
        queries.append(
            PictureQuery(
                text=texts[text],
                pictures=[pictures[image] for image in found],
                correct=found.index(answer) if answer in found else None,
                rank=int(ranking.ranks[text]),
                answer=pictures[answer],
            )
        )
    return queries


def text_queries(
    ranking: Ranking,
    *,
    texts: Sequence[str],
    pictures: Sequence[Image],
    text_to_image: Int[Tensor, " num_texts"],
    chosen: Sequence[int],
    top: int = 5,
) -> list[TextQuery]:
    """The chosen pictures with the texts that an image-to-text ranking found for them."""
    queries = []
    for image in chosen:
        found = ranking.indices[image, :top].tolist()
        queries.append(
            TextQuery(
                picture=pictures[image],
                texts=[texts[text] for text in found],
                correct=[place for place, text in enumerate(found) if int(text_to_image[text]) == image],
                rank=int(ranking.ranks[image]),
            )
        )
    return queries
