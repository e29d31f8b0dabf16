"""What clients see of pictures that were found."""

from __future__ import annotations

import math
from pathlib import PurePath
from typing import Any

from vlmo.retrieval import Hit, SearchResult
from vlmo.serving import schemas


def found(result: SearchResult, *, seconds: dict[str, float]) -> schemas.SearchResponse:
    """The answer to a search; `seconds` in place of those of the result."""
    return schemas.SearchResponse(
        hits=[_shown(hit) for hit in result.hits],
        num_reranked=result.num_reranked,
        complete=result.complete,
        note=result.noted(_name),
        seconds={name: round(each, 6) for name, each in seconds.items()},
    )


def _shown(hit: Hit) -> schemas.Result:
    return schemas.Result(
        score=hit.score,
        similarity=hit.similarity,
        match=hit.match,
        probability=None if hit.match is None else sigmoid(hit.match),
        **described(hit),
    )


def described(hit: Hit) -> dict[str, Any]:
    """Fields of an indexed picture."""
    return {
        "id": hit.id,
        "name": _name(hit),
        "captions": list(hit.captions),
        "metadata": {name: _plain(value) for name, value in hit.metadata.items()},
        "width": hit.width,
        "height": hit.height,
    }


def _name(hit: Hit) -> str:
    """Of the file. Where the picture lies on the server is nobody's business."""
    return PurePath(hit.place).name


def _plain(value: Any) -> Any:
    """What JSON can hold; bytes are left out, other things are written as text."""
    if isinstance(value, bytes):
        return None
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, str | int | float | bool | None):
        return value
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, dict):
        return {str(name): _plain(each) for name, each in value.items()}
    return str(value)


def sigmoid(odds: float) -> float:
    """Probability of log-odds."""
    return 1 / (1 + math.exp(-odds)) if odds > -700 else 0.0
