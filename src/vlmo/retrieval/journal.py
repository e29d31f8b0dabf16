"""Rows on their way into an index: on the disk as soon as they are made, in the table a few thousand at a time.

Each batch that the model has embedded becomes a small file, so that a process that is killed loses the batch in the
model and no other. The table takes many batches at once, because each of its commits costs more than the last.
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from vlmo.retrieval.pictures import Looks
from vlmo.retrieval.store import Known, Store

FOLDER = "pending"
_ROWS, _BYTES = 4096, 128 << 20
"""When the table takes what is pending."""
_SHARED = ["hash", "vector", "thumbnail", "width", "height"]


class Journal:
    """Takes rows for a store. What an earlier process left behind is put into the table first."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._folder = store.folder / FOLDER
        self._folder.mkdir(exist_ok=True)
        self._known: dict[str, Known] = {}
        self._looks: dict[str, Looks] = {}
        self._files: list[Path] = []
        self._rows = self._bytes = 0
        self._fresh = False
        for aside in self._folder.glob("*.aside"):
            aside.unlink()
        if left := sorted(self._folder.glob("*.arrow")):
            self._files = left
            self.flush()
        self._fresh = True

    def known(self, ids: Sequence[str]) -> dict[str, Known]:
        """Those of these pictures that the table has or will have."""
        waiting = {id: self._known[id] for id in ids if id in self._known}  # noqa: A001
        return {**self._store.known([id for id in ids if id not in waiting]), **waiting}  # noqa: A001

    def looks(self, hashes: Sequence[str]) -> dict[str, Looks]:
        """Vectors and thumbnails of pictures with these bytes, as far as there are any."""
        found = {hash: self._looks[hash] for hash in hashes if hash in self._looks}  # noqa: A001
        missing = sorted({hash for hash in hashes if hash not in found})  # noqa: A001
        for row in self._store.rows("hash", missing, columns=_SHARED):
            vector = np.array(row["vector"], dtype=np.float32)
            found[row["hash"]] = Looks(vector, row["thumbnail"], row["width"], row["height"])
        return found

    def add(self, rows: pa.Table, *, looks: Sequence[Looks], fresh: bool) -> None:
        """Takes rows as `as_table` makes them; when this returns, a killed process does not lose them.

        Args:
            looks: Of the rows.
            fresh: None of them is in the table.
        """
        path = self._folder / f"{len(self._files):06d}-{uuid.uuid4().hex}.arrow"
        aside = path.with_suffix(".aside")
        try:
            with pa.ipc.new_file(str(aside), rows.schema) as file:
                file.write_table(rows)
            aside.replace(path)
        finally:
            aside.unlink(missing_ok=True)
        self._files.append(path)
        columns = [rows[name].to_pylist() for name in ("id", "stamp", "hash")]
        for (id, stamp, hash), look in zip(zip(*columns, strict=True), looks, strict=True):  # noqa: A001
            self._known[id] = Known(stamp, hash)
            self._looks[hash] = look
        self._fresh = self._fresh and fresh
        self._rows, self._bytes = self._rows + len(rows), self._bytes + rows.nbytes
        if self._rows >= _ROWS or self._bytes >= _BYTES:
            self.flush()

    def flush(self) -> None:
        """Puts everything into the table."""
        if self._files:
            rows = pa.concat_tables([_read(path) for path in self._files])
            self._store.write(_last_of_each(rows), fresh=self._fresh)
        for path in self._files:
            path.unlink()
        self._known, self._looks, self._files = {}, {}, []
        self._rows, self._bytes, self._fresh = 0, 0, True

    def close(self) -> None:
        """Puts everything into the table and leaves nothing beside it."""
        self.flush()
        with contextlib.suppress(OSError):  # somebody else's file in it
            self._folder.rmdir()


def _read(path: Path) -> pa.Table:
    with pa.OSFile(str(path)) as file:  # not by memory map: the file is removed before the rows are
        return pa.ipc.open_file(file).read_all()


def _last_of_each(rows: pa.Table) -> pa.Table:
    """Without older rows of the same picture."""
    last = {id: row for row, id in enumerate(rows["id"].to_pylist())}  # noqa: A001
    return rows if len(last) == len(rows) else rows.take(sorted(last.values()))
