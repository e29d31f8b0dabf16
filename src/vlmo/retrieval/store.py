"""The LanceDB table of an index: its columns, and how rows get in and out."""

from __future__ import annotations

import logging
import math
import os
import re
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
import pyarrow as pa
from jaxtyping import Float32

from vlmo.retrieval.words import ImageRow, Metadata, image_words

if TYPE_CHECKING:
    from lancedb.query import LanceVectorQueryBuilder
    from lancedb.table import Table

TABLE = "images"
"""Name of the table on the disk."""
DISTANCE = "cosine"
"""LanceDB's word for 1 - cosine."""

_OWN = {
    "id": pa.string(),
    "path": pa.string(),
    "shard": pa.string(),
    "stamp": pa.string(),
    "hash": pa.string(),
    "bytes": pa.large_binary(),
    "captions": pa.list_(pa.string()),
    "full_text": pa.string(),
    "thumbnail": pa.binary(),
    "width": pa.int32(),
    "height": pa.int32(),
}
FILTERED = tuple(name for name in _OWN if name not in {"bytes", "full_text", "thumbnail"})
"""Columns of every index that a filter may name."""
RESERVED = frozenset((*_OWN, "vector", "metadata"))
"""Names that no column of metadata has."""
# Types of columns of metadata, with their names for people.
_TYPES = {pa.bool_(): "true or false", pa.float64(): "number", pa.string(): "text"}

_LOGGER = logging.getLogger(__name__)
# Of metadata; each makes every later write slower.
_MAX_COLUMNS = 500
# EFBIG, ENOSPC, EDQUOT: a file may not grow, a disk or a quota is full.
_FULL = r"\(os error (27|28|122)\)"
# LanceDB's folder, where it sorts; Python's would be another one with room.
_TEMPORARY = os.environ.get("TMPDIR", "/tmp")
# How soon a reader sees the writes of others; `Store.version` a quarter later.
_READ_EVERY = timedelta(seconds=1.6)
# Versions that no reader uses any more.
_OLD = timedelta(seconds=10)


@dataclass(frozen=True)
class Approximate:
    """Search of `nprobes` of an index's `partitions`; the best `candidates` are compared again, by whole vectors."""

    partitions: int
    nprobes: int
    candidates: int = 200


class DamagedError(ValueError):
    """An index that cannot be read: it is damaged, or gone."""


@contextmanager
def one_line(folder: Path) -> Iterator[None]:
    """Turn LanceDB's exceptions into one line that names the index.

    Raises:
        DamagedError: The code inside failed.
        ValueError: It failed because the disk is full.
    """
    try:
        yield
    except (ValueError, RuntimeError, OSError, pa.ArrowException) as error:
        if re.search(_FULL, str(error)):
            where = f"the disk is full, or that of temporary files, {_TEMPORARY}"
            raise ValueError(
                f"{folder}: {where} ({plain(error)}); free some space and run again"
            ) from error
        raise DamagedError(
            f"{folder}: the index is damaged, or no index ({plain(error)}); build it anew"
        ) from error


def plain(error: Exception) -> str:
    """LanceDB's message in one line, without file names of its source."""
    text = " ".join(str(error).split()).removeprefix("Invalid input, ")
    return re.sub(r",? ?\S*/src/\S+\.rs:\d+:\d+", "", text)[:300].rstrip(". ")


class Store:
    """The table in the folder of an index.

    Args:
        dim: Size of a vector; the table is created if it is missing. None opens an existing one.

    Raises:
        ValueError: The table is missing or cannot be read.
    """

    def __init__(self, folder: Path, *, dim: int | None = None) -> None:
        # Brings pandas and clients of services, and takes a second.
        import lancedb

        self.folder = folder
        self._has_warned = set[str]()
        self._version = 0
        self._read_at = -math.inf
        interval = _READ_EVERY if dim is None else timedelta(0)
        with one_line(folder):
            connection = lancedb.connect(folder, read_consistency_interval=interval)
            if dim is not None:
                has_table = TABLE in connection.list_tables().tables
                files = folder / f"{TABLE}.lance"
                # A creation ends with a manifest, and a table that has held rows has data: neither
                # is there if it was cut off.
                has_manifest = any(files.glob("_versions/*.manifest"))
                is_cut_off = not has_manifest and not (files / "data").exists()
                if has_table and is_cut_off:
                    connection.drop_table(TABLE)
                if not has_table or is_cut_off:
                    schema = pa.schema({**_OWN, "vector": pa.list_(pa.float32(), dim)})
                    connection.create_table(TABLE, schema=schema)
            self.table: Table = connection.open_table(TABLE)
            if dim is not None:
                self._index_words()
            self.dim: int = self.table.schema.field("vector").type.list_size

    @property
    def version(self) -> int:
        """Number of the table's state, asked for at most a few times a second: the answer comes from another thread."""
        if time.monotonic() - self._read_at >= _READ_EVERY.total_seconds() / 4:
            self._version = self.table.version
            self._read_at = time.monotonic()
        return self._version

    def nearest(
        self,
        vector: Float32[np.ndarray, " dim"],
        *,
        top: int,
        columns: Sequence[str],
        search: Approximate | None = None,
        where: str | None = None,
    ) -> pa.Table:
        """Return columns and "_distance" of the `top` rows whose vectors are most similar, best first.

        Args:
            vector: L2-normalized.
            search: Parameters of the approximate index; None compares with every vector.
            where: A filter in SQL; only rows that pass it are compared.
        """
        asked = self.table.search(
            np.asarray(vector, np.float32), vector_column_name="vector", query_type="vector"
        )
        query = cast("LanceVectorQueryBuilder", asked).distance_type(DISTANCE).limit(top)
        if search is None:
            # Exact, also where there is an approximate index.
            query = query.bypass_vector_index()
        else:
            # LanceDB compares top x factor candidates again, by their whole vectors.
            factor = max(2, math.ceil(search.candidates / top))
            query = query.nprobes(search.nprobes).refine_factor(factor)
        if where is not None:
            query = query.where(where, prefilter=True)
        return query.select([*columns, "_distance"]).to_arrow()

    def _index_words(self) -> None:
        """Make the full-text index, whose words `split_words` has prepared."""
        from lancedb.index import FTS

        # An earlier version made the table.
        if not self.has_words:
            self.table.add_columns(pa.schema({"full_text": pa.string()}))
        if not any("full_text" in index.columns for index in self.table.list_indices()):
            config = FTS(
                # `split_words` has lower-cased, split and folded the words already.
                base_tokenizer="whitespace",
                lower_case=False,
                remove_stop_words=False,
                ascii_folding=False,
            )
            self.table.create_index("full_text", config=config)

    @property
    def has_words(self) -> bool:
        """True if there is a full-text index, as in all that this version has made or updated."""
        with one_line(self.folder):
            return "full_text" in self.table.schema.names

    def matching(
        self,
        words: Sequence[str],
        *,
        every: bool,
        most: int,
        columns: list[str],
        where: str | None = None,
    ) -> pa.Table:
        """Return columns, "_rowid" and "_score" (BM25) of the `most` images that match any word, or every one, best."""
        from lancedb.query import FullTextOperator, MatchQuery

        match = MatchQuery(
            " ".join(words), "full_text", operator=FullTextOperator["AND" if every else "OR"]
        )
        query = self.table.search(match).limit(most).select([*columns, "_score"]).with_row_id(True)
        if where is not None:
            query = query.where(where, prefilter=True)
        return query.to_arrow()

    def columns(self) -> dict[str, str]:
        """Return the columns of metadata with their types, in words."""
        return {name: _TYPES[kind] for name, kind in self._types().items()}

    def _types(self) -> dict[str, pa.DataType]:
        with one_line(self.folder):
            schema = self.table.schema
        return {field.name: field.type for field in schema if field.name not in RESERVED}

    def stamps(self, column: str, values: Sequence[str]) -> dict[str, tuple[str, str]]:
        """Return stamps and hashes, by their ids, of the images that have one of the values in a column."""
        rows = self.rows(column, values, columns=["id", "stamp", "hash"])
        return {row["id"]: (row["stamp"], row["hash"]) for row in rows}

    def rows(self, column: str, values: Sequence[str], *, columns: list[str]) -> list[ImageRow]:
        """Return columns of the images that have one of the values, in no order."""
        if not values:
            return []
        return self.select(column, values, columns=columns).to_pylist()

    def select(self, column: str, values: Sequence[str], *, columns: list[str]) -> pa.Table:
        """`rows` as a table; there must be a value, or more."""
        with one_line(self.folder):
            return self.table.search().where(_among(column, values)).select(columns).to_arrow()

    def ids(self, where: str, *, most: int | None = None) -> pa.Array:
        """Return the ids of (at most so many) images that pass a filter; LanceDB's own exceptions."""
        rows = self.table.search().where(where).limit(most).select(["id"]).to_arrow()
        return rows["id"].combine_chunks()

    def scan(self, columns: list[str], *, with_row_id: bool = False) -> Iterator[pa.RecordBatch]:
        """Yield all images, with `with_row_id` also "_rowid" of this version of the table."""
        with one_line(self.folder):
            yield from self.table.search().select(columns).with_row_id(with_row_id).to_batches(8192)

    def write(self, rows: Sequence[ImageRow]) -> None:
        """Put images into the table at once, in place of older rows of the same ids.

        Args:
            rows: Own columns of images by their names, "vector", and a dictionary "metadata". No id stands twice.
        """
        types = self._types()
        num_types = len(types)
        complete_rows = []
        for row in rows:
            metadata = self._fit(row["metadata"], types)
            complete_rows.append({**row, **metadata, "full_text": image_words(row)})
        with one_line(self.folder):
            if len(types) > num_types:
                self.table.add_columns(pa.schema([*types.items()][num_types:]))
            schema = self.table.schema
            # One write: a reader sees either the old row of an image or the new one.
            merge = self.table.merge_insert("id").when_matched_update_all()
            merge = merge.when_not_matched_insert_all()
            merge.execute(pa.Table.from_pylist(complete_rows, schema=schema))

    def _fit(self, metadata: Metadata, types: dict[str, pa.DataType]) -> Metadata:
        """Return metadata as the columns take it: the first value decides the type, others are left out.

        Args:
            types: Types of the columns, to which new ones are added.
        """
        fitting = {}
        for name, value in metadata.items():
            # Booleans first by type: in Python they are integers too.
            value_type = {bool: pa.bool_(), str: pa.string()}.get(type(value), pa.float64())
            if len(types) < _MAX_COLUMNS:
                types.setdefault(name, value_type)
            column_type = types.get(name)
            if column_type == value_type:
                fitting[name] = value
            elif column_type == pa.string():
                fitting[name] = str(value)
            elif name not in self._has_warned:
                self._has_warned.add(name)
                content = f"nothing: there are {_MAX_COLUMNS} columns"
                if column_type is not None:
                    content = _TYPES[column_type]
                message = "left out is %s = %.80r, and maybe more: its column holds %s"
                _LOGGER.warning(message, name, value, content)
        return fitting

    def delete(self, ids: Sequence[str]) -> None:
        """Remove images."""
        with one_line(self.folder):
            self.table.delete(_among("id", ids))

    def optimize(self, *, lookups: bool) -> None:
        """Compact files, update the vector index and remove versions that no reader uses any more.

        With `lookups`, ids and hashes are indexed too, which pays off for large tables.
        """
        from lancedb.index import BTree

        with one_line(self.folder):
            if lookups:
                indices = self.table.list_indices()
                for column in ("id", "hash"):
                    if not any(column in index.columns for index in indices):
                        self.table.create_index(column, config=BTree())
            self.table.optimize(cleanup_older_than=_OLD)


def _among(column: str, values: Iterable[str]) -> str:
    literals = []
    for value in values:
        # No row's name is not UTF-8.
        text = value.encode(errors="backslashreplace").decode()
        # A quote within a text of SQL is written twice.
        literals.append("'" + text.replace("'", "''") + "'")
    return f"{column} in ({', '.join(literals)})"
