"""Batches rows of many callers into calls of the model."""

from __future__ import annotations

import collections
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from numpy import ndarray

from vlmo.serving.schemas import StoppingError

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
    def waiting(self) -> int:
        """Number of rows that are still to be run; none if the caller has gone, or has got an error."""
        return 0 if self.future.done() else len(self.rows) - self.taken


class Batcher:
    """Runs rows of the same kind together, on one thread of its own; no two calls run at a time.

    A call starts when `max_batch` rows of its kind wait, or the first of them has waited for `max_wait`. Callers come
    from any thread and any event loop; `asyncio.wrap_future` awaits the result of `submit`, and cancelling it drops the
    rows that have not been given to the model.

    Args:
        calls: For each kind a function from rows to as many results.
        max_wait: Seconds.
        observe: Called with kind, rows and seconds of each call.
    """

    def __init__(
        self, calls: Mapping[str, Call], *, max_batch: int, max_wait: float, observe: Observer | None = None
    ) -> None:
        self._calls, self._max_batch, self._max_wait, self._observe = dict(calls), max_batch, max_wait, observe
        self._queues: dict[str, collections.deque[_Job]] = {kind: collections.deque() for kind in calls}
        self._changed = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="vlmo-batcher", daemon=True)
        self._thread.start()

    def submit(self, kind: str, rows: Sequence[Any]) -> Future[list[Any]]:
        """Queue rows; the future has their results. StoppingError after `close`."""
        job = _Job(rows, due=time.monotonic() + self._max_wait)
        if not rows:
            job.future.set_result([])
            return job.future
        with self._changed:
            if self._closing:
                raise StoppingError
            self._queues[kind].append(job)
            self._changed.notify()
        return job.future

    def close(self) -> None:
        """Finish the queued rows, without waiting for more, and accept no new ones."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while (batch := self._next_batch()) is not None:
            self._run_batch(*batch)

    def _next_batch(self) -> tuple[str, list[tuple[_Job, Sequence[Any]]]] | None:
        """Wait for the next rows to run; None when the batcher is closed and all is done."""
        with self._changed:
            while True:
                for jobs in self._queues.values():
                    while jobs and not jobs[0].waiting:
                        jobs.popleft()
                due = {kind: jobs[0].due for kind, jobs in self._queues.items() if jobs}
                now = time.monotonic()
                waiting = {kind: sum(job.waiting for job in self._queues[kind]) for kind in due}
                full = {kind for kind, rows in waiting.items() if rows >= self._max_batch}
                ready = [kind for kind in due if self._closing or due[kind] <= now or kind in full]
                if ready:
                    kind = min(ready, key=due.__getitem__)
                    return kind, self._take(kind)
                if not due and self._closing:
                    return None
                self._changed.wait(min(due.values()) - now if due else None)

    def _take(self, kind: str) -> list[tuple[_Job, Sequence[Any]]]:
        """Take up to `max_batch` rows off the queue, the oldest first."""
        pieces, space = [], self._max_batch
        for job in self._queues[kind]:
            if space and job.waiting:
                rows = job.rows[job.taken : job.taken + space]
                job.taken += len(rows)
                space -= len(rows)
                pieces.append((job, rows))
        return pieces

    def _run_batch(self, kind: str, pieces: list[tuple[_Job, Sequence[Any]]]) -> None:
        began = time.monotonic()
        rows = [row for _, part in pieces for row in part]
        try:
            results = list(self._calls[kind](rows))
            if len(results) != len(rows):
                raise RuntimeError(f"{kind}: {len(rows)} rows gave {len(results)} results")
        except Exception as error:  # noqa: BLE001 - any error belongs to the callers, who get it
            if len(pieces) > 1:  # the rows of one caller must not cost others their results
                for piece in pieces:
                    self._run_batch(kind, [piece])
            elif pieces[0][0].future.set_running_or_notify_cancel():
                pieces[0][0].future.set_exception(error)
            return
        if self._observe is not None:
            self._observe(kind, len(rows), time.monotonic() - began)
        for job, part in pieces:
            job.results += results[: len(part)]
            results = results[len(part) :]
            if len(job.results) == len(job.rows) and job.future.set_running_or_notify_cancel():
                job.future.set_result(job.results)
