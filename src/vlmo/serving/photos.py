"""A folder of photographs as a service: it is indexed, followed as it changes, and searched meanwhile."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import socket
import threading
import time
import webbrowser
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console

from vlmo.data.listing import IMAGE_SUFFIXES, SHARD_SUFFIXES, is_visible
from vlmo.data.tables import TABLE_SUFFIXES
from vlmo.lazy import need_package
from vlmo.retrieval import Encoder, Index, Searcher, build_index
from vlmo.retrieval.building import MissingInputError, StoppedError
from vlmo.retrieval.sources import folder_identity
from vlmo.serving.parts import Parts
from vlmo.serving.server import serve
from vlmo.serving.settings import Settings

_READ = frozenset((*IMAGE_SUFFIXES, *SHARD_SUFFIXES, *TABLE_SUFFIXES, ".json"))
_SETTLED_S = 2.0  # after a change, until the index is updated
_AGAIN_S = 60.0  # after an error, until it is tried again
_UNWATCHED_S = 600.0  # between two updates for a folder that cannot be watched
_STEP_MS = 100  # between two looks at what has changed
_BATCH = 8  # images that a search on the same processor has to wait for
_LOGGER = logging.getLogger(__name__)


def serve_photos(
    encoder: Encoder,
    folder: Path,
    *,
    index: Path,
    bound: socket.socket,
    settings: Settings,
    ocr: bool = False,
    console: Console | None = None,
    open_page: bool = False,
) -> None:
    """Index a folder and serve it, from its first images on, until SIGTERM or SIGINT.

    Args:
        ocr: Find images by text in them too.

    Raises:
        ValueError: There is nothing to index, or the index is of another model.
        ModuleNotFoundError: watchfiles is missing, or with `ocr` rapidocr.
    """
    need_package("watchfiles", extra="photos", user="vlmo photos")
    updates = _Updates(encoder, folder, index, ocr=ocr, console=console)
    updates.start()
    try:
        opened = updates.open_index()
        Searcher(encoder, opened)  # checks that they belong together
        if open_page:
            bound.listen()  # the browser may come before the server, which answers then
            host, port = bound.getsockname()[:2]
            name = (
                "localhost" if host in {"0.0.0.0", "::"} else f"[{host}]" if ":" in host else host
            )
            threading.Thread(
                target=webbrowser.open, args=[f"http://{name}:{port}/"], daemon=True
            ).start()
        serve(bound, Parts(encoder, opened, is_behind=lambda: bool(updates.problem)), settings)
    finally:
        updates.stop()


class _Updates(threading.Thread):
    def __init__(
        self, encoder: Encoder, folder: Path, index: Path, *, ocr: bool, console: Console | None
    ) -> None:
        super().__init__(name="vlmo-index", daemon=True)
        self._encoder = encoder
        self._folder = folder
        self._index = index
        self._console = console
        self._ocr = ocr
        self._stopped = threading.Event()
        self._has_run = threading.Event()
        self._error: BaseException | None = None
        self.problem = ""  # error of the last update

    def open_index(self) -> Index:
        """Open the index once it has images, or the first run has ended; raise the error that ended this."""
        while not self._has_run.wait(0.1):
            with contextlib.suppress(ValueError):
                opened = Index(self._index, in_memory=True, growing=True)
                if opened.num_images:
                    self._has_run.set()  # from now on errors are logged
                    return opened
        if self._error is not None:
            raise self._error
        return Index(self._index, in_memory=True)

    def stop(self) -> None:
        self._stopped.set()
        self.join()

    def run(self) -> None:
        due = 0.0  # when the index is updated: once the folder is watched, then a while after a change
        with contextlib.ExitStack() as stack:
            stack.callback(self._has_run.set)
            for has_changed in self._watch():
                due = min(due, time.monotonic() + _SETTLED_S) if has_changed else due
                if time.monotonic() >= due:
                    due = math.inf
                    try:
                        with contextlib.suppress(StoppedError):
                            self._update()
                        self.problem = ""
                    except BaseException as error:  # noqa: BLE001 - also panics of Rust, which no Exception is
                        if not self._has_run.is_set():
                            self._error = error
                            break
                        if str(error) != self.problem:
                            _LOGGER.warning("the index stays as it is: %s", error)
                        self.problem = str(error)
                        due = time.monotonic() + _AGAIN_S
                    self._has_run.set()

    def _watch(self) -> Iterator[bool]:
        """Yield several times a second whether anything has changed that an index reads, until this is stopped."""
        from watchfiles import watch

        folder = self._folder.resolve()
        index = self._index.resolve()
        logging.getLogger("watchfiles").setLevel(logging.WARNING)  # it tells of each change

        def is_read(name: str) -> bool:
            path = Path(name)  # of what may be gone, so that a folder is known by not being a file
            is_shown = is_visible(path, folder) and not path.is_relative_to(index)
            return is_shown and (path.suffix.lower() in _READ or not os.path.isfile(name))  # noqa: PTH113 (never raises)

        # A filter would also hold back what tells that time has passed.
        how: dict[str, Any] = {
            "watch_filter": None,
            "yield_on_timeout": True,
            "ignore_permission_denied": True,
        }
        how |= dict.fromkeys(("step", "debounce", "rust_timeout"), _STEP_MS)
        while True:
            identity = folder_identity(
                str(folder)
            )  # changes when its disk comes or goes, which no watch tells
            try:
                for changes in watch(folder, stop_event=self._stopped, **how):
                    yield any(is_read(name) for _, name in changes)
                    if folder_identity(str(folder)) != identity:
                        break
            except Exception as error:  # noqa: BLE001 - such as too many folders for the system
                pause = f"changes are looked for every {_UNWATCHED_S / 60:.0f} minutes"
                _LOGGER.warning("%s is not watched, %s: %s", self._folder, pause, error)
                until = time.monotonic() + _UNWATCHED_S
                while time.monotonic() < until and folder_identity(str(folder)) == identity:
                    yield False
                    if self._stopped.wait(_SETTLED_S):
                        break
            if self._stopped.is_set():
                return
            yield True

    def _update(self) -> None:
        batch = _BATCH if self._encoder.device == "cpu" else 8 * _BATCH
        how = {
            "batch": batch,
            "ocr": self._ocr,
            "console": self._console,
            "stop": self._stopped.is_set,
        }
        try:
            report = build_index(self._encoder, [self._folder], out=self._index, **how)
        except MissingInputError as error:
            kept = f"its images stay in the index; if they are gone for good, remove {self._index}"
            raise ValueError(f"{error.reason.partition(';')[0]}; {kept}") from error
        counts = f"{report.encoded + report.reused} new, {report.deleted} gone"
        bad = (
            f", {report.bad} unusable (reasons: {self._index / 'quarantine.jsonl'})"
            if report.bad
            else ""
        )
        _LOGGER.info("%s images are indexed: %s%s", f"{report.images:,}", counts, bad)
