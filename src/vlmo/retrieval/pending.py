"""Rows on their way into an index: on the disk as soon as they are made, in the table a few thousand at a time.

A process that is killed loses the batch in the model and no other. The table takes many batches at once, because each
of its commits costs more than the last.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from vlmo.retrieval.embedding import Batch, Encoded
from vlmo.retrieval.store import Store, encoded_schema

PENDING_FILE = "pending.arrows"
"""A stream of Arrow for each batch, one behind the other."""
_ROWS, _BYTES = 4096, 128 << 20
"""Pending rows and bytes from which on they go into the table."""


class Pending:
    """Takes rows for a store. Rows that an earlier process left behind are put into the table first."""

    def __init__(self, store: Store) -> None:
        self._store, self._path = store, store.folder / PENDING_FILE
        self._tables: list[pa.Table] = []
        self._encoded: dict[str, Encoded] = {}
        if self._path.is_file():
            data = pa.BufferReader(self._path.read_bytes())
            try:
                while data.tell() < data.size():
                    self._tables.append(pa.ipc.open_stream(data).read_all())
            except (pa.ArrowInvalid, OSError, EOFError):
                pass  # the batch that was being written
            self.flush()

    def encoded(self, hashes: Sequence[str]) -> dict[str, Encoded]:
        """Vectors and thumbnails of images with these bytes, as far as there are any."""
        found = {digest: self._encoded[digest] for digest in hashes if digest in self._encoded}
        missing = sorted({digest for digest in hashes if digest not in found})
        for row in self._store.rows("hash", missing, columns=["hash", "vector", "thumbnail", "width", "height"]):
            vector = np.array(row["vector"], dtype=np.float32)
            found[row["hash"]] = Encoded(vector, row["thumbnail"], row["width"], row["height"])
        return found

    def add(self, batch: Batch) -> None:
        """Take the rows of a batch; when this returns, a killed process does not lose them."""
        if not batch.records:
            return
        table, sink = as_rows(batch), pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema) as stream:
            stream.write_table(table)
        try:
            with self._path.open("ab") as file:
                file.write(sink.getvalue())
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:  # a full disk has no name
            raise OSError(error.errno, error.strerror, str(self._path)) from error
        self._tables.append(table)
        self._encoded |= {record.hash: each for record, each in zip(batch.records, batch.encoded, strict=True) if each}
        if sum(map(len, self._tables)) >= _ROWS or sum(each.nbytes for each in self._tables) >= _BYTES:
            self.flush()

    def flush(self) -> None:
        """Put everything into the table."""
        if self._tables:
            self._store.write(pa.concat_tables(self._tables))
        self._tables, self._encoded = [], {}
        self._path.unlink(missing_ok=True)


def as_rows(batch: Batch) -> pa.Table:
    """Rows of a batch as `Store.write` takes them."""
    encoded = [each for each in batch.encoded if each is not None]
    vectors = np.stack([each.vector for each in encoded])
    same = ("id", "place", "origin", "shard", "stamp", "hash", "path")
    columns = {name: [getattr(record, name) for record in batch.records] for name in same} | {
        "bytes": [record.data if record.keep_bytes else None for record in batch.records],
        "captions": [list(record.captions) for record in batch.records],
        "thumbnail": [each.thumbnail for each in encoded],
        "width": [each.width for each in encoded],
        "height": [each.height for each in encoded],
        "metadata": [json.dumps(record.metadata, ensure_ascii=False) for record in batch.records],
        "vector": pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), vectors.shape[1]),
        "caption_vectors": [each.astype(np.float32).tobytes() for each in batch.captions],
    }
    return pa.table(columns, schema=encoded_schema(vectors.shape[1]))
