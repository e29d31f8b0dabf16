"""What many searches of one index keep in memory: its vectors, and pixels of the images that they rerank.

An exact search of vectors in memory costs a fifth of one by LanceDB, and half of an approximate one (docs/search.md).
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, UInt64

from vlmo.export.sessions import Pixels
from vlmo.retrieval.store import Store

MAX_BYTES = 2**29
"""Vectors that take more stay on the disk: a million of 128 dimensions, 175,000 of 768."""
_PIXEL_BYTES = 2**28


@dataclass(frozen=True)
class _Snapshot:
    """Vectors of one version of the table, with the rows that hold them."""

    version: int
    rows: UInt64[np.ndarray, "image"]
    vectors: Float32[np.ndarray, "image dim"]


class VectorMemory:
    """Copy of an index's image vectors, read again when the table has changed. Threads may share one."""

    def __init__(self, store: Store) -> None:
        self._store, self._snapshot, self._reading = store, _read(store), threading.Lock()

    def nearest(
        self, vector: Float32[np.ndarray, " dim"], *, top: int, columns: Sequence[str]
    ) -> list[dict[str, Any]] | None:
        """Columns, "_rowid" and "_distance" of the images with the most similar vectors, best first.

        None where the table must be asked: there are too many vectors, or rows have moved since they were read.
        """
        if self._snapshot.version != self._store.version() and self._reading.acquire(blocking=False):
            try:
                self._snapshot = _read(self._store)
            finally:
                self._reading.release()
        known = self._snapshot
        if not len(known.vectors):
            return None
        # One thread: a matrix product takes several, which then spin while the model could use their cores.
        similar = np.vecdot(known.vectors, np.asarray(vector, np.float32))
        top = min(top, len(similar))
        best = np.argpartition(similar, -top)[-top:]
        best = best[np.argsort(-similar[best], kind="stable")]
        found = self._store.take(known.rows[best].tolist(), columns=columns)
        if found is None:
            return None
        return [
            {**found[row], "_rowid": row, "_distance": 1 - score}
            for row, score in zip(known.rows[best].tolist(), similar[best].tolist(), strict=True)
        ]


def _read(store: Store) -> _Snapshot:
    version, (rows, vectors) = store.version(), store.vectors(max_bytes=MAX_BYTES)
    return _Snapshot(version, rows, vectors)


class PixelMemory:
    """Pixels of the images that were reranked last. Threads may share one.

    An image is known by its id and by what changes with its file, or with the index where that holds the file.
    """

    def __init__(self, max_bytes: int = _PIXEL_BYTES) -> None:
        self._max_bytes, self._lock = max_bytes, threading.Lock()
        self._pixels: OrderedDict[tuple[Any, ...], Pixels] = OrderedDict()

    def key(self, id: str, path: str | None, *, version: int) -> tuple[Any, ...] | None:  # noqa: A002
        """Return what an image is known by; None for one that is gone or lies elsewhere, which is read anew."""
        if path is None:
            return id, version
        try:
            status = Path(path).stat()
        except OSError:
            return None
        return id, status.st_mtime_ns, status.st_size

    def get(self, key: tuple[Any, ...] | None) -> Pixels | None:
        """Return the pixels of an image; None if they are not known."""
        with self._lock:
            if key not in self._pixels:
                return None
            self._pixels.move_to_end(key)
            return self._pixels[key]

    def add(self, key: tuple[Any, ...] | None, pixels: Pixels | None) -> None:
        """Take the pixels of an image, and let go of those that were used least lately."""
        if key is None or pixels is None:
            return
        with self._lock:
            self._pixels[key] = pixels
            while len(self._pixels) * pixels.nbytes > self._max_bytes:
                self._pixels.popitem(last=False)
