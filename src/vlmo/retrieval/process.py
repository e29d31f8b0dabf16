"""The tables of an index in a process of their own, for commands that would else wait for LanceDB's imports."""

from __future__ import annotations

import functools
import multiprocessing
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

_METHOD = "fork" if sys.platform == "linux" else "spawn"
_FAILURES = (ValueError, RuntimeError, OSError, ImportError, LookupError, TypeError)  # of LanceDB, pyarrow and `Store`


class StoreProcess:
    """A `Store` for reading whose imports and opening overlap with the work of this process, with which it ends.

    Made before torch is imported: a process with threads shall not fork. Has the methods of `Store` that read; the
    first of them raises what went wrong in opening, and any of them EOFError if the process has been ended.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        context = multiprocessing.get_context(_METHOD)
        self._pipe, theirs = context.Pipe()
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # it inherits this: Ctrl-C is for this process alone
        context.Process(target=_serve, args=(folder, self._pipe, theirs), daemon=True).start()
        signal.signal(signal.SIGINT, before)
        theirs.close()

    def __getattr__(self, method: str) -> Callable[..., Any]:
        return functools.partial(self._ask, method)

    def _ask(self, name: str, *arguments: Any, **options: Any) -> Any:
        try:
            self._pipe.send((name, arguments, options))
            answer = self._pipe.recv()
        except (EOFError, ConnectionError) as error:
            raise EOFError(f"{self._folder}: the process that reads the index has been ended; try again") from error
        if isinstance(answer, Exception):
            raise answer
        return answer


def _serve(folder: Path, other: Connection, pipe: Connection) -> None:
    """Answer what a `StoreProcess` asks until its end of the pipe is closed."""
    other.close()
    store, failure = None, None
    try:
        from vlmo.retrieval.store import Store

        store = Store(folder)
    except _FAILURES as error:
        failure = error
    with suppress(EOFError):
        while True:
            name, arguments, options = pipe.recv()
            try:
                if failure is not None:
                    raise failure
                found = getattr(store, name)
                pipe.send(found(*arguments, **options) if callable(found) else found)
            except _FAILURES as error:
                pipe.send(error)
