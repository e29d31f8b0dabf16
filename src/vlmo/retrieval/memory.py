"""Memory of many searches of one index: its vectors, and pixels of the images that they rerank.

An exact search of vectors in memory costs a fifth of one by LanceDB, and half of an approximate one (docs/search.md).
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float32, UInt64

from vlmo.export.sessions import Pixels
from vlmo.retrieval.store import Store

MAX_BYTES = 2**29
"""Vectors that take more stay on the disk: more than a million of 128 dimensions, or 174,762 of 768."""
_PIXEL_BYTES = 2**28
_READ_SHARE = 0.1
"""Share of a thread's time that reading may take while a writer changes the index again and again."""


@dataclass(frozen=True)
class _Snapshot:
    """Vectors of one version of the index, with the rows of the table that hold them."""

    version: tuple[int, ...]
    rows: UInt64[np.ndarray, "image"]
    vectors: Float32[np.ndarray, "image dim"]


class VectorMemory:
    """Copy of an index's image vectors; a thread reads them again when the index has changed. Threads may share one."""

    def __init__(self, store: Store, *, version: tuple[int, ...]) -> None:
        self._store, self._lock, self._next_read = store, threading.Lock(), 0.0
        self._snapshot: _Snapshot | None = None
        self._read(version)

    def nearest(
        self, vector: Float32[np.ndarray, " dim"], *, top: int, columns: Sequence[str], version: tuple[int, ...]
    ) -> list[dict[str, Any]] | None:
        """Columns, "_rowid" and "_distance" of the images with the most similar vectors, best first.

        None where the table must be asked: the vectors are of another version than this one or too many, or rows have
        moved since.
        """
        known = self._snapshot
        if known is None or known.version != version:
            self._read_aside(version)
            return None
        if not len(known.vectors):
            return None
        # One thread: a matrix product takes several, which then spin while the model could use their cores.
        similar = np.vecdot(known.vectors, np.asarray(vector, np.float32))
        top = min(top, len(similar))
        best = np.argpartition(similar, -top)[-top:]
        best = best[np.argsort(-similar[best], kind="stable")]
        rows = known.rows[best].tolist()
        found = self._store.take(rows, columns=columns)
        if found is None:
            return None
        return [
            {**found[row], "_rowid": row, "_distance": 1 - score}
            for row, score in zip(rows, similar[best].tolist(), strict=True)
        ]

    def _read_aside(self, version: tuple[int, ...]) -> None:
        if time.monotonic() >= self._next_read and self._lock.acquire(blocking=False):
            threading.Thread(target=self._read_locked, args=(version,), daemon=True).start()

    def _read_locked(self, version: tuple[int, ...]) -> None:
        try:
            self._read(version)
        finally:
            self._lock.release()

    def _read(self, version: tuple[int, ...]) -> None:
        began = time.monotonic()
        with suppress(
            ValueError
        ):  # a writer has removed the version that was being read; the table tells what is wrong
            self._snapshot = _Snapshot(version, *self._store.vectors(max_bytes=MAX_BYTES))
        self._next_read = time.monotonic() + (time.monotonic() - began) / _READ_SHARE


class PixelMemory:
    """Pixels of the images that were reranked last, all of one size. Threads may share one."""

    def __init__(self, max_bytes: int = _PIXEL_BYTES) -> None:
        self._max_bytes, self._lock = max_bytes, threading.Lock()
        self._pixels: OrderedDict[tuple[Any, ...], Pixels] = OrderedDict()

    def get(self, key: tuple[Any, ...] | None) -> Pixels | None:
        """Return the pixels of an image; None if they are not known."""
        with self._lock:
            if key not in self._pixels:
                return None
            self._pixels.move_to_end(key)
            return self._pixels[key]

    def add(self, key: tuple[Any, ...] | None, pixels: Pixels) -> None:
        """Take the pixels of an image, but for a key that is None, and let go of those that were used least lately."""
        if key is None:
            return
        with self._lock:
            self._pixels[key] = pixels
            while len(self._pixels) * pixels.nbytes > self._max_bytes:
                self._pixels.popitem(last=False)
