"""Watchdog of several processes: names one that hangs or has gone, so that the others end instead of waiting for ever.

Each process reports twice a second that it lives, and where it stands, in the key-value store of the process group.
Ages are taken by each reader's own monotonic clock from the moment that it sees a report change, so clocks need not
agree.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import os
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from typing import Any, Self, cast

import torch.distributed as dist

from vlmo.distributed import barrier, rank, world_size

HANG_SECONDS = 1800.0
"""Long enough for a first step that compiles and for slow storage; a hang of this length wastes little of days."""
LONG_FACTOR = 4
"""Work that may take long (reading the data, an evaluation, a save) hangs after this many times the time of a step."""
_BEAT_S = 0.5
_GRACE_S = 6 * _BEAT_S  # in which a living process says something, also on a busy machine
_READS = 20  # of all processes' reports, in the time after which one counts as hanging
_MAX_READ_S = 15.0  # between them; a thousand processes that read a thousand reports each are then a light load
_MAX_WAIT_S = 30 * 86_400.0  # the most that process groups are asked to wait
_EXIT_CODE = 1
_STACK_LINES = 6


@dataclass(frozen=True)
class Report:
    """Last report of a process.

    Attributes:
        beat: Counts while the process lives.
        progress: Counts the work that it has begun.
        place: Name of that work ("in step 6").
        timed: It should not take long: a step.
        ended: The process left the training loop, in whatever way.
        lost: It has noticed itself that another process is missing.
    """

    beat: int = 0
    progress: int = 0
    place: str = "starting"
    timed: bool = False
    ended: bool = False
    lost: bool = False


@dataclass(frozen=True)
class Sighting:
    """A process's report, and when (seconds) its beat and its progress last changed."""

    report: Report
    beat_at: float
    progress_at: float

    def then(self, report: Report, *, now: float) -> Sighting:
        """Return the sighting after a new report."""
        beat_at = self.beat_at if report.beat == self.report.beat else now
        return Sighting(report, beat_at, self.progress_at if report.progress == self.report.progress else now)


def find_hung(sightings: Mapping[int, Sighting], *, now: float, hang_seconds: float) -> dict[int, str]:
    """Return which processes hang, and how; empty if all is well.

    A process that reports nothing hangs. Where all live and none gets on, those hang that are furthest behind, as the
    others wait for them; after `LONG_FACTOR` times as long if what they are at may take long (an evaluation, a save).
    If others have ended by then, it is these that are waited for.
    """
    living = {number: each for number, each in sightings.items() if not each.report.ended}
    silent = {
        number: f"hangs (no sign of life for {now - each.beat_at:.0f} s, last seen {each.report.place})"
        for number, each in living.items()
        if now - each.beat_at > hang_seconds
    }
    if silent or not living:
        return silent
    last = min(each.report.progress for each in living.values())
    behind = {number: each for number, each in living.items() if each.report.progress == last}
    patience = hang_seconds * (1 if all(each.report.timed for each in behind.values()) else LONG_FACTOR)
    if any(now - each.progress_at <= patience for each in living.values()):
        return {}
    if len(living) < len(sightings):
        return dict.fromkeys(sightings.keys() - living.keys(), "has ended, and the others wait for it")
    return {
        number: f"hangs (no progress for {now - each.progress_at:.0f} s, {each.report.place})"
        for number, each in behind.items()
    }


class Watchdog:
    """Watchdog of the processes of a group, in threads of its own; a context, used once. One process is not watched.

    When a process hangs, each living one prints a line that names it, and where it stands itself, and exits with 1.

    Args:
        hang_seconds: Longest time without a sign of life of a process, or without progress of all in a step.

    Raises:
        ValueError: `hang_seconds` is not a number above 0.
    """

    def __init__(self, hang_seconds: float = HANG_SECONDS) -> None:
        if not 0 < hang_seconds < math.inf:
            raise ValueError(f"hang_seconds is {hang_seconds}; give a number of seconds above 0")
        self._hang_seconds = hang_seconds
        self._beat_every = min(_BEAT_S, hang_seconds / 4)
        self._read_every = min(max(self._beat_every, hang_seconds / _READS), _MAX_READ_S)
        self._report = Report()
        self._sightings: dict[int, Sighting] = {}
        self._read_at = time.monotonic()
        self._wake, self._was_read, self._stop = threading.Event(), threading.Event(), threading.Event()
        self._threads: list[threading.Thread] = []

    @property
    def longest_wait(self) -> timedelta:
        """Timeout for the group's collectives: long enough that this watchdog, which knows who hangs, reports first."""
        return timedelta(seconds=min(2 * LONG_FACTOR * self._hang_seconds, _MAX_WAIT_S))

    def __enter__(self) -> Self:
        if world_size() > 1:
            # A connection of its own: the main thread may be waiting on the group's. PyTorch has no public name for it.
            store = cast(Any, dist.distributed_c10d)._get_default_store().clone()
            store = dist.PrefixStore("vlmo/watchdog", store)
            store.set_timeout(timedelta(seconds=self._hang_seconds))
            store.set(str(rank()), json.dumps(asdict(self._report)))
            barrier()  # from here on every process has reported
            self._read_at = time.monotonic()
            for work in (lambda: self._send(store), self._watch):
                self._threads.append(threading.Thread(target=work, daemon=True, name="vlmo-watchdog"))
            for thread in self._threads:
                thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._report = replace(self._report, ended=True)
        self._stop.set()
        self._wake.set()
        for thread in self._threads:
            thread.join(timeout=2 * _BEAT_S)  # not for ever: the store's keeper may be what hangs

    def at(self, place: str, *, timed: bool = True) -> None:
        """Report that this process now begins `place` ("in step 6"). `timed` work should not take long."""
        self._report = replace(self._report, place=place, timed=timed, progress=self._report.progress + 1)

    def missing(self) -> list[int]:
        """Return the other processes that have gone, after a collective has failed. Takes some seconds."""
        self._report = replace(self._report, lost=True)
        if not self._threads:
            return []
        if not self._read_now():
            return [0]  # it, or its node, keeps the store
        asked = self._read_at
        time.sleep(_GRACE_S)
        if not self._read_now():
            return [0]
        return sorted(
            number
            for number, each in self._sightings.items()
            if number != rank() and not each.report.lost and (each.report.ended or each.beat_at <= asked)
        )

    def _read_now(self) -> bool:
        """Return True if the others' reports could be read."""
        self._was_read.clear()
        self._wake.set()
        return self._was_read.wait(_GRACE_S)

    def _send(self, store: dist.Store) -> None:
        """Report that this process lives, and read the reports of the others, until told to stop."""
        names = [str(number) for number in range(world_size())]
        read_at, beats = float("-inf"), itertools.count(1)
        with contextlib.suppress(RuntimeError):  # the keeper of the store has gone; `_watch` sees that nothing is read
            while True:
                last = self._stop.is_set()
                store.set(str(rank()), json.dumps(asdict(replace(self._report, beat=next(beats)))))
                if last:
                    return
                if self._wake.is_set() or time.monotonic() - read_at >= self._read_every:
                    self._wake.clear()
                    reports = [Report(**json.loads(text)) for text in store.multi_get(names)]
                    read_at = now = time.monotonic()
                    # After a time away (stopped, no CPU) this process cannot judge by what it saw before.
                    known = {} if now - self._read_at > self._hang_seconds / 2 else self._sightings
                    self._sightings = {
                        number: known.get(number, Sighting(report, now, now)).then(report, now=now)
                        for number, report in enumerate(reports)
                    }
                    self._read_at = now
                    self._was_read.set()
                self._wake.wait(self._beat_every)

    def _watch(self) -> None:
        """End this process when another one hangs."""
        looked_at = time.monotonic()
        while not self._stop.wait(self._read_every):
            now = time.monotonic()
            was_away, looked_at = now - looked_at > self._hang_seconds / 2, now
            if was_away or self._report.lost:
                continue
            if now - self._read_at > 1.5 * self._hang_seconds:
                hung = {0: f"hangs (it, or its node, has not answered for {now - self._read_at:.0f} s)"}
            else:
                hung = find_hung(self._sightings, now=self._read_at, hang_seconds=self._hang_seconds)
            if hung:
                told = "; ".join(f"process {number} {how}" for number, how in hung.items())
                place = f"Process {rank()} of {world_size()}, {self._report.place}, ends"
                frame = sys._current_frames().get(threading.main_thread().ident or 0)
                stack = "".join(traceback.format_stack(frame)[-_STACK_LINES:])
                # Past sys.stderr, whose lock the thread that hangs may hold.
                line = f"vlmo: {told}. {place}; the same command goes on.\nProcess {rank()} stands at:\n{stack}"
                os.write(2, line.encode())
                # The others should see the same, rather than miss this one.
                time.sleep(2 * self._read_every + 2 * _BEAT_S)
                os._exit(_EXIT_CODE)


def is_lost_contact(error: BaseException) -> bool:
    """Return True if an error means that another process could not be reached."""
    words = ("gloo", "Connection closed by peer", "Connection reset by peer", "NCCL")
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and any(word in str(error) for word in words)
    )
