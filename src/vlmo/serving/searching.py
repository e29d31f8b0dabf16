"""Searches whose pairs are judged together with those of other clients."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
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

    def run(
        self, work: Callable[[Searcher], T], *, cancelled: threading.Event | None = None, deadline: float | None = None
    ) -> T:
        """The result of `work` on this thread, unless `cancelled` is set meanwhile.

        Args:
            work: A search, or several.
            cancelled: See there.
            deadline: By `time.monotonic`; from then on no judgement is waited for.

        Raises:
            SearchCancelledError: It was cancelled.
        """
        self._encoder.here.cancelled, self._encoder.here.deadline = cancelled, deadline
        return work(self._searcher)

    def warm_up(self) -> None:
        """Learns how long a judgement takes, so that the first searches keep their budgets too."""
        self.run(Searcher.warm_up)


class _Here(threading.local):
    """What belongs to the search of this thread."""

    cancelled: threading.Event | None = None
    deadline: float | None = None


class _SharedEncoder(Encoder):
    """The same model, judging by way of the batcher."""

    def __init__(self, encoder: Encoder, *, batcher: Batcher, kind: str) -> None:
        vars(self).update(vars(encoder))
        self._batcher, self._kind, self.here = batcher, kind, _Here()

    def match(self, pictures: Sequence[Image.Image], texts: Sequence[str]) -> Float32[np.ndarray, " pair"]:
        """Log-odds that each text belongs to the picture in the same place.

        Raises:
            SearchCancelledError: Nobody waits for them.
            TimeoutError: The deadline has come before the model's turn, or during it.
        """
        cancelled, deadline = self.here.cancelled, self.here.deadline
        if cancelled is not None and cancelled.is_set():
            raise SearchCancelledError
        judged = self._batcher.submit(self._kind, list(zip(pictures, texts, strict=True)))
        try:
            odds = judged.result(None if deadline is None else max(deadline - time.monotonic(), 0))
        except TimeoutError:
            judged.cancel()
            raise
        return np.asarray(odds, dtype=np.float32)


@asynccontextmanager
async def turn(turns: asyncio.Semaphore | None, *, deadline: float | None) -> AsyncIterator[None]:
    """A turn, or none if it does not come in time: what is late holds no pictures.

    Args:
        turns: None: there is nothing to wait for.
        deadline: By `time.monotonic`.
    """
    if turns is None:
        yield
        return
    try:
        async with asyncio.timeout(None if deadline is None else deadline - time.monotonic()):
            await turns.acquire()
    except TimeoutError:
        yield
        return
    try:
        yield
    finally:
        turns.release()
