"""Searches whose pairs are judged together with those of other clients."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
from jaxtyping import Float32
from PIL import Image

from vlmo.retrieval import Encoder, Index, Searcher
from vlmo.serving.batcher import Batcher

T = TypeVar("T")


class SearchCancelledError(Exception):
    """Ends a search whose client has gone."""


class SharedSearcher:
    """A searcher for many threads, each with the search of one client.

    Args:
        encoder: The model.
        index: Made with it.
        batcher: Judges pairs of a picture and a text as rows of `kind`.
        kind: See there.

    Raises:
        ValueError: The index is one of another model.
    """

    def __init__(self, encoder: Encoder, index: Index, *, batcher: Batcher, kind: str) -> None:
        self._encoder = _SharedEncoder(encoder, batcher=batcher, kind=kind)
        self._searcher = Searcher(self._encoder, index)

    def run(self, work: Callable[[Searcher], T], *, cancelled: threading.Event) -> T:
        """The result of `work` on this thread, unless `cancelled` is set meanwhile.

        Raises:
            SearchCancelledError: It was.
        """
        self._encoder.here.cancelled = cancelled
        return work(self._searcher)


class _Here(threading.local):
    """What belongs to the search of this thread."""

    cancelled: threading.Event | None = None


class _SharedEncoder(Encoder):
    """The same model, judging by way of the batcher."""

    def __init__(self, encoder: Encoder, *, batcher: Batcher, kind: str) -> None:
        vars(self).update(vars(encoder))
        self._batcher, self._kind, self.here = batcher, kind, _Here()

    def match(self, pictures: Sequence[Image.Image], texts: Sequence[str]) -> Float32[np.ndarray, " pair"]:
        """Log-odds that each text belongs to the picture in the same place.

        Raises:
            SearchCancelledError: Nobody waits for them.
        """
        cancelled = self.here.cancelled
        if cancelled is not None and cancelled.is_set():
            raise SearchCancelledError
        pairs = list(zip(pictures, texts, strict=True))
        return np.asarray(self._batcher.submit(self._kind, pairs).result(), dtype=np.float32)
