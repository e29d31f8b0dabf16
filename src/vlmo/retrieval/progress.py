"""How far a long run has come: a bar on a terminal, and a line now and then in a log."""

from __future__ import annotations

import time
from collections import deque
from datetime import timedelta
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

EVERY = 10.0
"""Seconds between two lines."""
_REMEMBERED = 6


class Lines:
    """Says something on a console that is no terminal, at most every few seconds.

    Args:
        console: None, or a terminal, hears nothing.
    """

    def __init__(self, console: Console | None) -> None:
        self._console = None if console is None or console.is_terminal else console
        self._last = time.monotonic()

    def due(self) -> bool:
        """Whether it is time for another line."""
        return self._console is not None and time.monotonic() - self._last >= EVERY

    def say(self, line: str) -> None:
        """Prints it."""
        if self._console is not None:
            self._console.print(line, markup=False, highlight=False, soft_wrap=True)
            self._last = time.monotonic()


class ByteProgress:
    """Progress in bytes, with the time that is left; used as a context.

    Args:
        console: Where it goes; None shows nothing.
        total: Bytes in all.
    """

    def __init__(self, console: Console | None, *, total: int) -> None:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        hidden = console is None or not console.is_terminal
        self._bar = Progress(*columns, console=console, disable=hidden, transient=True)
        self._task = self._bar.add_task("", total=total)
        self._lines, self._total, self._done = Lines(console), total, 0
        # What was done when; the oldest ones are forgotten, as what is unchanged goes much faster than the rest.
        self._marks: deque[tuple[float, int]] = deque([(time.monotonic(), 0)], maxlen=_REMEMBERED)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def advance(self, size: int, *, text: str) -> None:
        """So many bytes more are done; `text` says what that makes."""
        self._done += size
        self._bar.update(self._task, advance=size, description=text)
        if self._lines.due():
            self._lines.say(f"{text}, {decimal(self._done)} of {decimal(self._total)}{self._left()}")

    def _left(self) -> str:
        now = time.monotonic()
        then, before = self._marks[0]
        self._marks.append((now, self._done))
        if self._done <= before or now <= then:
            return ""
        seconds = round((self._total - self._done) * (now - then) / (self._done - before))
        return f", {timedelta(seconds=max(0, seconds))} left"
