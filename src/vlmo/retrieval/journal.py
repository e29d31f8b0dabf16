"""Rows on their way into an index: on the disk as soon as they are made, in the table a few thousand at a time.

Each batch that the model has embedded becomes a small file, so that a process that is killed loses the batch in the
model and no other. The table takes many batches at once, because each of its commits costs more than the last.
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from vlmo.folder.atomic import atomic_file
from vlmo.retrieval.executor import Encoded, Rows
from vlmo.retrieval.store import Known, Store

_ROWS, _BYTES = 4096, 128 << 20
"""Pending rows and bytes from which on they go into the table."""
_SHARED = ["hash", "vector", "thumbnail", "width", "height"]


class Journal:
    """Takes rows for a store. Rows that an earlier process left behind are put into the table first."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._folder = store.folder / "pending"
        self._folder.mkdir(exist_ok=True)
        for aside in self._folder.glob("*.aside"):
            aside.unlink()
        self._known: dict[str, Known] = {}
        self._encoded: dict[str, Encoded] = {}
        self._files = sorted(self._folder.glob("*.arrow"))
        self._rows = self._bytes = 0
        self._fresh = False
        self.flush()

    def known(self, ids: Sequence[str]) -> dict[str, Known]:
        """Return those of these images that the table has or will have."""
        waiting = {id: self._known[id] for id in ids if id in self._known}  # noqa: A001
        return {**self._store.known([id for id in ids if id not in waiting]), **waiting}  # noqa: A001

    def encoded(self, hashes: Sequence[str]) -> dict[str, Encoded]:
        """Vectors and thumbnails of images with these bytes, as far as there are any."""
        found = {digest: self._encoded[digest] for digest in hashes if digest in self._encoded}
        missing = sorted({digest for digest in hashes if digest not in found})
        for row in self._store.rows("hash", missing, columns=_SHARED):
            vector = np.array(row["vector"], dtype=np.float32)
            found[row["hash"]] = Encoded(vector, row["thumbnail"], row["width"], row["height"])
        return found

    def add(self, rows: Rows) -> None:
        """Take rows; when this returns, a killed process does not lose them."""
        path = self._folder / f"{len(self._files):06d}-{uuid.uuid4().hex}.arrow"
        table = rows.as_table()
        with atomic_file(path) as aside, pa.ipc.new_file(str(aside), table.schema) as file:
            file.write_table(table)
        self._files.append(path)
        for record, encoded in zip(rows.records, rows.encoded, strict=True):
            self._known[record.id] = Known(record.stamp, record.hash)
            self._encoded[record.hash] = encoded
            self._fresh = self._fresh and not record.replaces
        self._rows, self._bytes = self._rows + len(table), self._bytes + table.nbytes
        if self._rows >= _ROWS or self._bytes >= _BYTES:
            self.flush()

    def flush(self) -> None:
        """Put everything into the table."""
        if self._files:
            tables = []
            for path in self._files:
                with pa.OSFile(str(path)) as file:  # not by memory map: the file is removed before the rows are
                    tables.append(pa.ipc.open_file(file).read_all())
            rows = pa.concat_tables(tables)
            last = {id: row for row, id in enumerate(rows["id"].to_pylist())}  # noqa: A001
            # Without older rows of the same image.
            rows = rows if len(last) == len(rows) else rows.take(sorted(last.values()))
            self._store.write(rows, fresh=self._fresh)
        for path in self._files:
            path.unlink()
        self._known, self._encoded, self._files = {}, {}, []
        self._rows, self._bytes, self._fresh = 0, 0, True

    def close(self) -> None:
        """Put everything into the table and remove the folder of pending rows."""
        self.flush()
        with contextlib.suppress(OSError):  # somebody else's file in it
            self._folder.rmdir()
