"""Options of an index that is built or brought up to date, and of a search in it; imported by the command line."""

from __future__ import annotations

import contextlib
import math
import re
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Suppress, arg

Mode = Literal["auto", "vectors", "words", "hybrid"]
"""Way to find images: vectors, words in their texts, or both; auto: both, with images alone that have all words."""
MAX_TOP = 10_000
"""Most results of a search."""
APPROXIMATE_FROM = 50_000
"""Images from which on an approximate index is built beside the exact search."""
_NUMBER = r"\s*(-?\d{1,3}(?:\.\d+)?)\s*"
_CIRCLE = re.compile(rf"{_NUMBER},{_NUMBER},\s*(\d{{1,5}}(?:\.\d+)?)\s*km\s*")
_EARTH_KM = 6371.0088  # mean radius


@dataclass(frozen=True, kw_only=True)
class IndexOptions:
    """Options of an index, the same in Python and of `vlmo index`; ValueError for a number below 1.

    Attributes:
        metadata: Table (.csv, .tsv, .jsonl) of captions and columns by the names of image files; later runs go by it
            too. Without one, captions.csv and the like in the folders themselves.
        store_bytes: Keep the bytes of image files in the index; those of shards are kept in any case. None: as in the
            last run, and not in the first one.
        ocr: Read text in the images too, into the column "ocr_text" and the full-text index. None: as in the last run,
            and not in the first one.
        batch: Images that go through the model at a time.
        approximate_from: Number of images from which on an approximate index is built beside the exact search.
        remove: Inputs of earlier runs whose images leave the index, or their table of metadata.
    """

    metadata: Path | None = None
    store_bytes: Suppress[bool | None] = None
    ocr: Suppress[bool | None] = None
    # The same as `encoder.BATCH`, which lies beside numpy.
    batch: Annotated[int, arg(name="batch-size")] = 64
    approximate_from: Annotated[int, arg(name="ann-threshold")] = APPROXIMATE_FROM
    remove: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("batch", "approximate_from"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; give a number from 1 up")


@dataclass(frozen=True, kw_only=True)
class PhotoFilter:
    """Conditions of photographs, all of which must hold; those that are None or empty always do.

    Attributes:
        since: First date of photographs: 2021, 2021-06, 2021-06-14 or with a time 2021-06-14T09:30.
        until: Last date; all of that year, month, day or minute counts.
        near: Place and distance: LATITUDE,LONGITUDE,20km.
        album: Folder that the files are in, or some that follow each other, such as Italy/Rome, anywhere in the path
            below the input.

    Raises:
        ValueError: One has another form.
    """

    since: Annotated[str | None, arg(name="from")] = None
    until: Annotated[str | None, arg(name="to")] = None
    near: str | None = None
    album: str | None = None

    def __post_init__(self) -> None:
        for text in filter(None, (self.since, self.until)):
            _check_date(text)
        # Read here too, so that a wrong one is refused before anything is searched.
        _ = self.circle

    @property
    def circle(self) -> tuple[float, float, float] | None:
        """Latitude and longitude of `near`, and the angle of its distance at the center of the earth, in radians.

        ValueError for a text of another form.
        """
        if not self.near:
            return None
        match = _CIRCLE.fullmatch(self.near)
        north, east, distance = map(float, match.groups()) if match else (91.0, 0.0, 0.0)
        if abs(north) > 90 or abs(east) > 180:
            raise ValueError(
                f"near is {self.near!r:.50}; give degrees and a distance: LATITUDE,LONGITUDE,20km"
            )
        angle = min(distance / _EARTH_KM, math.pi)
        return math.radians(north), math.radians(east), angle


def _check_date(text: str) -> None:
    with contextlib.suppress(ValueError):
        datetime.fromisoformat(text + "0001-01-01T00:00:00"[len(text) :])
        if len(text) in {4, 7, 10, 16, 19} and re.fullmatch(r"[\dT:-]+", text):
            return
    raise ValueError(f"the date is {text!r:.50}; give one such as 2021, 2021-06 or 2021-06-14")


@dataclass(frozen=True, kw_only=True)
class SearchOptions:
    """Options of a search, the same in Python, of `vlmo search` and over HTTP; ValueError for a number out of range.

    Attributes:
        top: Number of results.
        rerank: Most candidates that the fusion encoder scores, for single texts only; 0: none. By default 32, but none
            for other queries, texts of fewer words than the model's `rerank_min_words`, and models without a matching
            head.
        weight: Share of the match score in the order, 0 to 1; by default the model's.
        where: Filter in SQL over the columns of metadata, such as "year > 2000 and kind = 'cat'".
        photos: Filter by date, place and album.
        sort: date: the best are sorted by date, the newest first.
        mode: vectors; words: only images whose captions, file names, albums or texts in them have a word of the text;
            hybrid: the order by the model and that by words, fused by reciprocal ranks; auto: the same, where only
            images that have all words are found by words.
        min_probability: Least probability that an image shows the text, 0 to 1; others are apart, as less likely.
            Images that words find stay.
    """

    top: int = 10
    rerank: int | None = None
    weight: Annotated[float | None, arg(name="rerank-weight")] = None
    where: str | None = None
    photos: Annotated[PhotoFilter, arg(name="")] = PhotoFilter()
    sort: Literal["date"] | None = None
    mode: Mode = "auto"
    min_probability: float | None = None

    def __post_init__(self) -> None:
        for name, value, least in (("top", self.top, 1), ("rerank", self.rerank or 0, 0)):
            if not least <= value <= MAX_TOP:
                raise ValueError(f"{name} is {value}; give a number from {least} to {MAX_TOP}")
        if self.weight is not None and not 0 <= self.weight <= 1:
            raise ValueError(
                f"weight is {self.weight}; give the share of the match score, from 0 to 1"
            )
        if self.min_probability is not None and not 0 <= self.min_probability <= 1:
            raise ValueError(
                f"min_probability is {self.min_probability}; give a probability from 0 to 1"
            )
