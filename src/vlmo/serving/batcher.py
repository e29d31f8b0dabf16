"""Batches rows of many callers into calls of the model."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, TypeAlias

from numpy import ndarray
from torch import Tensor

from vlmo.serving.schemas import StoppingError

Call: TypeAlias = Callable[[list[Any]], Sequence[Any] | ndarray | Tensor]
Observer: TypeAlias = Callable[[str, int, float], None]


@dataclass(eq=False)
class _Job:
    kind: str
    rows: Sequence[Any]
    future: Future[list[Any]] = field(default_factory=Future)


class Batcher:
    """Runs rows of the same kind together, on one thread of its own; no two calls run at a time.

    What comes while a call runs waits. The next call takes the oldest rows, and others of their kind with them, up to
    `max_batch`; those of one caller stay together. Callers come from any thread and any event loop;
    `asyncio.wrap_future` awaits the result of `submit`, and cancelling it drops rows that wait.

    Args:
        calls: For each kind a function from rows to as many results.
        observe: Called with kind, rows and seconds of each call.
    """

    def __init__(
        self, calls: Mapping[str, Call], *, max_batch: int, observe: Observer | None = None
    ) -> None:
        self._calls = calls
        self._max_batch = max_batch
        self._observe = observe
        self._jobs = list[_Job]()
        self._changed = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="vlmo-batcher", daemon=True)
        self._thread.start()

    def submit(self, kind: str, rows: Sequence[Any]) -> Future[list[Any]]:
        """Queue rows; the future has their results. StoppingError after `close`."""
        job = _Job(kind, rows)
        with self._changed:
            if self._closing:
                raise StoppingError
            self._jobs.append(job)
            self._changed.notify()
        return job.future

    def close(self) -> None:
        """Finish the queued rows, and accept no new ones."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._jobs or self._closing)
                if not self._jobs:
                    return
                jobs = self._take()
            if jobs:
                self._run_jobs(jobs)

    def _take(self) -> list[_Job]:
        """Return the jobs of the next call, with the lock held; none if they were cancelled."""
        taken = list[_Job]()
        space = self._max_batch
        for job in list(self._jobs):
            # The oldest job goes in any case, even one of more rows than a batch.
            if not taken or (job.kind == taken[0].kind and len(job.rows) <= space):
                self._jobs.remove(job)
                # From here on the client cannot cancel it.
                if job.future.set_running_or_notify_cancel():
                    taken.append(job)
                    space -= len(job.rows)
        return taken

    def _run_jobs(self, jobs: list[_Job]) -> None:
        kind = jobs[0].kind
        rows = [row for job in jobs for row in job.rows]
        # The lock is not held: callers submit while the model runs.
        started_at = time.monotonic()
        try:
            results = list(self._calls[kind](rows))
            if len(results) != len(rows):
                raise RuntimeError(f"{kind}: {len(rows)} rows gave {len(results)} results")
        except Exception as error:  # noqa: BLE001 - any error belongs to the callers, who get it
            if len(jobs) == 1:
                jobs[0].future.set_exception(error)
            else:
                # The rows of one caller must not cost others their results.
                for job in jobs:
                    self._run_jobs([job])
            return
        if self._observe is not None:
            self._observe(kind, len(rows), time.monotonic() - started_at)
        remaining = iter(results)
        for job in jobs:
            job.future.set_result(list(islice(remaining, len(job.rows))))
