"""Progress of long work with the time that is left: bars on a terminal, a line now and then in a log."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import Self

from rich.console import Console
from rich.filesize import decimal
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bars
from rich.table import Column
from rich.text import Text

LINE_EVERY_S = 10.0


class _Note(TextColumn):
    def __init__(self, text: str) -> None:
        super().__init__(text, table_column=Column())

    def render(self, task: Task) -> Text:
        text = super().render(task)
        text.no_wrap = True
        text.overflow = "ellipsis"
        return text


class Progress:
    """Bars, one for each title; used as a context.

    Args:
        console: A terminal gets bars, anything else a line every `line_every_s` seconds; None shows nothing.
        in_bytes: Counts are numbers of bytes.
    """

    def __init__(
        self, console: Console | None, *, in_bytes: bool = False, line_every_s: float | None = None
    ) -> None:
        self._lines = None if console is None or console.is_terminal else console
        self._in_bytes = in_bytes
        self._line_every_s = LINE_EVERY_S if line_every_s is None else line_every_s
        # The first line comes after the interval: short work prints none.
        self._line_at = time.monotonic()
        # Columns are kept on one line; only the note may be cut off.
        self._bars = Bars(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20, table_column=Column(no_wrap=True)),
            (DownloadColumn if in_bytes else MofNCompleteColumn)(table_column=Column(no_wrap=True)),
            _Note("{task.fields[note]}"),
            TimeRemainingColumn(table_column=Column(no_wrap=True)),
            console=console,
            disable=console is None or not console.is_terminal,
            transient=True,
            get_time=time.monotonic,
        )
        self._tasks: dict[str, TaskID] = {}

    @classmethod
    def on_stderr(cls) -> Self:
        """Return bars on standard error, or lines where that is no terminal."""
        return cls(Console(stderr=True))

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def update(self, title: str, done: int, total: int | None, *, note: str = "") -> None:
        """Show that `done` of `total` (None: unknown) are done; the first call for a title sets where it begins."""
        if title not in self._tasks:
            self._tasks[title] = self._bars.add_task(title, completed=done, total=total, note=note)
        self._bars.update(self._tasks[title], completed=done, total=total, note=note)
        now = time.monotonic()
        if self._lines is None or now - self._line_at < self._line_every_s:
            return
        self._line_at = now
        shown = decimal if self._in_bytes else str
        words = [f"{title}: {shown(done)}" + (f" of {shown(total)}" if total is not None else "")]
        if note:
            words.append(note)
        # By the speed of late.
        left = self._bars.tasks[self._tasks[title]].time_remaining
        if left is not None:
            words.append(f"{timedelta(seconds=left)} left")
        self._lines.print(", ".join(words), markup=False, highlight=False, soft_wrap=True)
