"""Memory of many searches of one index: what they compare and show, and pixels of the images that they rerank.

An exact search in memory costs an eighth of one by LanceDB, and a third of an approximate one (docs/search.md).
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Float32

from vlmo.export.sessions import Pixels
from vlmo.retrieval.store import Store

MAX_BYTES = 2**29
"""If the vectors take more, or the columns, both stay on the disk. A million of 128 dimensions fit, 174,762 of 768."""
_PIXEL_BYTES = 2**28


class ImageMemory:
    """Copy of an index's image vectors and of `columns`; a thread reads it again when the index has changed.

    Threads may share one.
    """

    def __init__(self, store: Store, *, columns: Callable[[], list[str]], version: tuple[int, ...]) -> None:
        self._store, self._columns, self._lock = store, columns, threading.Lock()
        self._copy: tuple[tuple[int, ...] | None, tuple[pa.Table, Float32[np.ndarray, "image dim"]] | None] = None, None
        self.read(version)

    def nearest(
        self, vector: Float32[np.ndarray, " dim"], *, top: int, version: tuple[int, ...]
    ) -> list[dict[str, Any]] | None:
        """Columns, "_rowid" and "_distance" of the images with the most similar vectors, best first.

        None where the table must be asked: the copy is of another version than this one, or holds no images.
        """
        known, images = self._copy
        if known != version:
            if self._lock.acquire(blocking=False):
                threading.Thread(target=self._read_locked, args=(version,), daemon=True).start()
            return None
        if images is None:
            return None
        table, vectors = images
        # One thread: a matrix product takes several, which then spin while the model could use their cores.
        similar = np.vecdot(vectors, np.asarray(vector, np.float32))
        top = min(top, len(similar))
        best = np.argpartition(similar, -top)[-top:]
        best = best[np.argsort(-similar[best], kind="stable")]
        return table.take(best).append_column("_distance", pa.array(1 - similar[best])).to_pylist()

    def _read_locked(self, version: tuple[int, ...]) -> None:
        try:
            self.read(version)
        finally:
            self._lock.release()

    def read(self, version: tuple[int, ...]) -> None:
        """Copy the images, none if there are too many."""
        # A writer may have removed the version that was being read, or the index; the table tells what is wrong.
        with suppress(ValueError):
            self._copy = version, self._store.all_images(self._columns(), max_bytes=MAX_BYTES)


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
        """Take the pixels of an image, but for a key that is None, and drop those that were used least lately."""
        if key is None:
            return
        with self._lock:
            self._pixels[key] = pixels
            while len(self._pixels) * pixels.nbytes > self._max_bytes:
                self._pixels.popitem(last=False)
