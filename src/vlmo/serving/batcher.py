"""Rows of many callers, in one call of the model."""

from __future__ import annotations

import collections
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from numpy import ndarray

from vlmo.serving.errors import BusyError, StoppingError

Call = Callable[[list[Any]], Sequence[Any] | ndarray]
Observer = Callable[[str, int, float], None]


@dataclass(eq=False)
class _Job:
    """The rows of one caller; `taken` of them have been given to the model."""

    rows: Sequence[Any]
    due: float
    future: Future[list[Any]] = field(default_factory=Future)
    taken: int = 0
    results: list[Any] = field(default_factory=list)

    @property
    def dropped(self) -> bool:
        """Whether nobody waits for the rest: the caller has gone, or has got an error."""
        return self.future.done()


@dataclass(frozen=True)
class _Piece:
    job: _Job
    rows: Sequence[Any]


class Batcher:
    """Runs rows of the same kind together, on one thread of its own; no two calls run at a time.

    A call starts when `max_batch` rows of its kind wait, or the first of them has waited for `max_wait`. Callers come
    from any thread and any event loop; `asyncio.wrap_future` awaits what `submit` gives, and cancelling it drops the
    rows that have not been given to the model.

    Args:
        calls: For each kind a function from rows to as many results.
        max_batch: Rows of a call.
        max_wait: Seconds.
        observe: Told kind, rows and seconds of each call.
    """

    def __init__(
        self, calls: Mapping[str, Call], *, max_batch: int, max_wait: float, observe: Observer | None = None
    ) -> None:
        self._calls, self._max_batch, self._max_wait, self._observe = dict(calls), max_batch, max_wait, observe
        self._waiting: dict[str, collections.deque[_Job]] = {kind: collections.deque() for kind in calls}
        self._changed = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="vlmo-batcher", daemon=True)
        self._thread.start()

    def submit(self, kind: str, rows: Sequence[Any]) -> Future[list[Any]]:
        """The results of the rows, when they are there.

        Raises:
            StoppingError: `close` has been called.
        """
        job = _Job(rows, due=time.monotonic() + self._max_wait)
        if not rows:
            job.future.set_result([])
            return job.future
        with self._changed:
            if self._closing:
                raise StoppingError
            self._waiting[kind].append(job)
            self._changed.notify()
        return job.future

    def close(self) -> None:
        """Finishes what waits, without waiting for more, and takes nothing new."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while (batch := self._next_batch()) is not None:
            self._run_batch(*batch)

    def _next_batch(self) -> tuple[str, list[_Piece]] | None:
        """What to run now; waits for it. None: closed, and all is done."""
        with self._changed:
            while True:
                heads = {kind: jobs[0].due for kind, jobs in self._waiting.items() if self._drop_from(jobs)}
                if not heads:
                    if self._closing:
                        return None
                    self._changed.wait()
                    continue
                now = time.monotonic()
                ready = [kind for kind, due in heads.items() if self._closing or due <= now or self._is_full(kind)]
                if ready:
                    kind = min(ready, key=heads.__getitem__)
                    return kind, self._take(kind)
                self._changed.wait(min(heads.values()) - now)

    @staticmethod
    def _drop_from(jobs: collections.deque[_Job]) -> bool:
        """Whether a job is left at the front, when those that nobody waits for are gone."""
        while jobs and jobs[0].dropped:
            jobs.popleft()
        return bool(jobs)

    def _is_full(self, kind: str) -> bool:
        return sum(len(job.rows) - job.taken for job in self._waiting[kind] if not job.dropped) >= self._max_batch

    def _take(self, kind: str) -> list[_Piece]:
        jobs, pieces, space = self._waiting[kind], [], self._max_batch
        while space and self._drop_from(jobs):
            job = jobs[0]
            rows = job.rows[job.taken : job.taken + space]
            job.taken += len(rows)
            space -= len(rows)
            pieces.append(_Piece(job, rows))
            if job.taken == len(job.rows):
                jobs.popleft()
        return pieces

    def _run_batch(self, kind: str, pieces: list[_Piece]) -> None:
        began = time.monotonic()
        rows = [row for piece in pieces for row in piece.rows]
        try:
            results = iter(self._checked_results(kind, rows))
        except Exception as error:  # noqa: BLE001 - whatever it is, it belongs to the callers, who get it
            if len(pieces) == 1:
                _fail(pieces[0].job, error)
                return
            for piece in pieces:  # the rows of one caller must not cost others their results
                self._run_batch(kind, [piece])
            return
        if self._observe is not None:
            self._observe(kind, len(rows), time.monotonic() - began)
        for piece in pieces:
            job = piece.job
            job.results += [next(results) for _ in piece.rows]
            if len(job.results) == len(job.rows) and job.future.set_running_or_notify_cancel():
                job.future.set_result(job.results)

    def _checked_results(self, kind: str, rows: list[Any]) -> Sequence[Any] | ndarray:
        results = self._calls[kind](rows)
        if len(results) != len(rows):
            raise RuntimeError(f"{kind}: {len(rows)} rows gave {len(results)} results")
        return results


def _fail(job: _Job, error: Exception) -> None:
    if job.future.set_running_or_notify_cancel():
        job.future.set_exception(error)


class Places:
    """A bounded number of requests that are let in at a time; used from one event loop.

    Args:
        number: How many.
        observe: Told how many are taken, whenever that changes.
    """

    def __init__(self, number: int, *, observe: Callable[[int], None] | None = None) -> None:
        self._number, self._observe, self._taken = number, observe, 0

    @contextmanager
    def take(self) -> Iterator[None]:
        """Holds a place.

        Raises:
            BusyError: None is free.
        """
        if self._taken >= self._number:
            raise BusyError
        self._change(1)
        try:
            yield
        finally:
            self._change(-1)

    def _change(self, by: int) -> None:
        self._taken += by
        if self._observe is not None:
            self._observe(self._taken)
