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

_READ = {*IMAGE_SUFFIXES, *SHARD_SUFFIXES, *TABLE_SUFFIXES, ".json"}
# Seconds after a change, until the index is updated.
_SETTLED_S = 2.0
# Seconds after an error, until it is tried again.
_AGAIN_S = 60.0
# Seconds between two updates for a folder that cannot be watched.
_UNWATCHED_S = 600.0
# Milliseconds between two looks at what has changed.
_STEP_MS = 100
# Images that a search on the same processor has to wait for.
_BATCH = 8
_LOGGER = logging.getLogger(__name__)


def serve_photos(
    encoder: Encoder,
    folder: Path,
    *,
    index: Path,
    bound: socket.socket,
    settings: Settings,
    ocr: bool,
    open_page: bool,
) -> None:
    """Index a folder and serve it, from its first images on, until SIGTERM or SIGINT.

    Args:
        ocr: Find images by text in them too.

    Raises:
        ValueError: There is nothing to index, or the index is of another model.
        ModuleNotFoundError: watchfiles is missing, or with `ocr` rapidocr.
    """
    need_package("watchfiles", extra="photos", user="vlmo photos")
    updates = _Updates(encoder, folder, index, ocr=ocr)
    updates.start()
    try:
        opened = updates.open_index()
        # It checks that they belong together.
        Searcher(encoder, opened)
        if open_page:
            # The browser may come before the server, which answers then.
            bound.listen()
            page = threading.Thread(
                target=webbrowser.open, args=[_page_address(bound)], daemon=True
            )
            page.start()
        serve(bound, Parts(encoder, opened, is_behind=lambda: bool(updates.problem)), settings)
    finally:
        updates.stop()


def _page_address(bound: socket.socket) -> str:
    host, port = bound.getsockname()[:2]
    if host in {"0.0.0.0", "::"}:
        host = "localhost"
    elif ":" in host:
        host = f"[{host}]"
    return f"http://{host}:{port}/"


class _Updates(threading.Thread):
    """Thread that updates the index after changes of the folder."""

    def __init__(self, encoder: Encoder, folder: Path, index: Path, *, ocr: bool) -> None:
        super().__init__(name="vlmo-index", daemon=True)
        self._encoder = encoder
        self._folder = folder
        self._index = index
        self._ocr = ocr
        self._stopped = threading.Event()
        self._has_run = threading.Event()
        self._error: BaseException | None = None
        # Error of the last update.
        self.problem = ""

    def open_index(self) -> Index:
        """Open the index once it has images, or the first run has ended; raise the error that ended this."""
        while not self._has_run.wait(0.1):
            with contextlib.suppress(ValueError):
                index = Index(self._index, in_memory=True, growing=True)
                if index.num_images:
                    # From now on errors are logged.
                    self._has_run.set()
                    return index
        if self._error is not None:
            raise self._error
        return Index(self._index, in_memory=True)

    def stop(self) -> None:
        self._stopped.set()
        self.join()

    def run(self) -> None:
        # The first update begins as soon as the folder is watched, later ones a while after a change.
        due_at = 0.0
        try:
            for has_changed in self._watch():
                if has_changed:
                    due_at = min(due_at, time.monotonic() + _SETTLED_S)
                if time.monotonic() >= due_at:
                    due_at = time.monotonic() + self._update_or_log()
                if self._error is not None:
                    return
        finally:
            self._has_run.set()

    def _update_or_log(self) -> float:
        """Update the index, and return the seconds until it is tried again; an error of the first run is kept."""
        try:
            with contextlib.suppress(StoppedError):
                self._update()
        except BaseException as error:  # noqa: BLE001 - also panics of Rust, which no Exception is
            if not self._has_run.is_set():
                self._error = error
            elif str(error) != self.problem:
                _LOGGER.warning("the index stays as it is: %s", error)
            self.problem = str(error)
            return _AGAIN_S
        self.problem = ""
        self._has_run.set()
        return math.inf

    def _watch(self) -> Iterator[bool]:
        """Yield several times a second whether anything has changed that an index reads, until this is stopped."""
        from watchfiles import watch

        folder = self._folder.resolve()
        # It logs all changes otherwise.
        logging.getLogger("watchfiles").setLevel(logging.WARNING)
        while True:
            # It changes when a disk comes or goes, which no watch reports.
            identity = folder_identity(str(folder))
            try:
                for changes in watch(
                    folder,
                    # A filter would hold back the empty sets of time-outs too.
                    watch_filter=None,
                    yield_on_timeout=True,
                    ignore_permission_denied=True,
                    step=_STEP_MS,
                    debounce=_STEP_MS,
                    rust_timeout=_STEP_MS,
                    stop_event=self._stopped,
                ):
                    yield any(self._is_read(name, folder) for _, name in changes)
                    if folder_identity(str(folder)) != identity:
                        break
            except Exception as error:  # noqa: BLE001 - such as too many folders for the system
                _LOGGER.warning(
                    "%s is not watched, changes are looked for every %.0f minutes: %s",
                    self._folder,
                    _UNWATCHED_S / 60,
                    error,
                )
                until = time.monotonic() + _UNWATCHED_S
                while time.monotonic() < until and folder_identity(str(folder)) == identity:
                    yield False
                    if self._stopped.wait(_SETTLED_S):
                        break
            if self._stopped.is_set():
                return
            yield True

    def _is_read(self, name: str, folder: Path) -> bool:
        """Return True for a file that an index reads, and for what is no file, such as a folder that is gone."""
        path = Path(name)
        if path.is_relative_to(self._index.resolve()) or not is_visible(path, folder):
            return False
        return path.suffix.lower() in _READ or not os.path.isfile(name)  # noqa: PTH113 (never raises)

    def _update(self) -> None:
        batch = _BATCH if self._encoder.device == "cpu" else 8 * _BATCH
        try:
            report = build_index(
                self._encoder,
                [self._folder],
                out=self._index,
                batch=batch,
                ocr=self._ocr,
                console=Console(stderr=True),
                stop=self._stopped.is_set,
            )
        except MissingInputError as error:
            reason = error.reason.partition(";")[0]
            raise ValueError(
                f"{reason}; its images stay in the index; if they are gone for good, remove {self._index}"
            ) from error
        counts = f"{report.encoded + report.reused} new, {report.deleted} gone"
        if report.bad:
            counts += f", {report.bad} unusable (reasons: {self._index / 'quarantine.jsonl'})"
        _LOGGER.info("%s images are indexed: %s", f"{report.images:,}", counts)
