"""The tables of an index: what is in them, and how rows get in and out."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import lancedb
import numpy as np
import pyarrow as pa
from lancedb.index import BTree
from lancedb.table import Table

from vlmo.retrieval.columns import WIDER, Kind, arrow_type, converted, kind_of_type, merged_kind

PICTURES, CAPTIONS = "pictures", "captions"
DISTANCE = "cosine"
"""LanceDB's word for 1 - cosine."""

_OWN = {
    "id": pa.string(),
    "place": pa.string(),
    "origin": pa.string(),
    "shard": pa.string(),
    "stamp": pa.string(),
    "hash": pa.string(),
    "path": pa.string(),
    "bytes": pa.large_binary(),
    "captions": pa.list_(pa.string()),
    "thumbnail": pa.binary(),
    "width": pa.int32(),
    "height": pa.int32(),
}
RESERVED = frozenset((*_OWN, "vector", "metadata", "caption_vectors"))
"""Names that no column of metadata has."""

_READ_EVERY = timedelta(seconds=2)  # how soon a reader sees what a writer has done
_OLD = timedelta(seconds=10)  # what no reader looks at any more
_ANY_AGE = timedelta(milliseconds=1)


class Known(NamedTuple):
    """What the table says of a picture: enough to tell whether it has changed."""

    stamp: str
    hash: str


def encoded_schema(dim: int) -> pa.Schema:
    """Pictures on their way to the table: metadata as JSON, vectors of captions as bytes of float32."""
    more = {"metadata": pa.string(), "vector": _vector(dim), "caption_vectors": pa.large_binary()}
    return pa.schema([pa.field(name, kind) for name, kind in {**_OWN, **more}.items()])


def _vector(dim: int) -> pa.DataType:
    return pa.list_(pa.float32(), dim)


@contextmanager
def one_line(folder: Path) -> Iterator[None]:
    """Turns what LanceDB raises inside into one line that names the index.

    Raises:
        ValueError: Something inside failed.
    """
    try:
        yield
    except (ValueError, RuntimeError, OSError, pa.ArrowException) as error:
        raise ValueError(f"{folder}: the index is damaged, or no index ({plain(error)}); build it anew") from error


def plain(error: Exception) -> str:
    """LanceDB's message in one line, without places in its source."""
    text = " ".join(str(error).split()).removeprefix("Invalid input, ")
    return re.sub(r",? ?\S*/src/\S+\.rs:\d+:\d+", "", text)[:300].rstrip(". ")


class Store:
    """The tables in the folder of an index.

    Args:
        folder: Of the index.
        dim: Numbers in a vector; the tables are made if they are missing. None opens what is there.

    Raises:
        ValueError: The tables are missing or cannot be read.
    """

    def __init__(self, folder: Path, *, dim: int | None = None) -> None:
        self.folder = folder
        with one_line(folder):
            interval = _READ_EVERY if dim is None else timedelta(0)
            self._connection = lancedb.connect(folder, read_consistency_interval=interval)
            if dim is not None:
                self._make(dim)
            self.pictures: Table = self._connection.open_table(PICTURES)
            self.captions: Table = self._connection.open_table(CAPTIONS)
            self.dim: int = self.pictures.schema.field("vector").type.list_size

    def _make(self, dim: int) -> None:
        own = [pa.field(name, kind) for name, kind in _OWN.items()]
        pictures = pa.schema([*own, pa.field("vector", _vector(dim))])
        captions = pa.schema(
            [
                pa.field("id", pa.string()),
                pa.field("picture", pa.string()),
                pa.field("caption", pa.string()),
                pa.field("vector", _vector(dim)),
            ]
        )
        there = set(self._connection.list_tables().tables)
        if PICTURES not in there:  # it comes last: where it is, the other one must be
            for name, schema in ((CAPTIONS, captions), (PICTURES, pictures)):
                if name in there:
                    self._connection.drop_table(name)
                self._connection.create_table(name, schema=schema)
        self._finish_widening()

    # ------------------------------------------------------------------------------------------------------- reading

    def kinds(self) -> dict[str, Kind]:
        """Columns of metadata."""
        schema = self.pictures.schema
        return {field.name: kind_of_type(field.type) for field in schema if field.name not in RESERVED}

    def known(self, ids: Sequence[str]) -> dict[str, Known]:
        """Those of these pictures that are in the table."""
        rows = self.rows("id", ids, columns=["id", "stamp", "hash"])
        return {row["id"]: Known(row["stamp"], row["hash"]) for row in rows}

    def rows(self, column: str, values: Sequence[str], *, columns: list[str]) -> list[dict[str, Any]]:
        """These columns of the rows that have one of the values, in no order."""
        if not values:
            return []
        with one_line(self.folder):
            return self.pictures.search().where(_among(column, values)).select(columns).to_arrow().to_pylist()

    def scan(self, columns: list[str], *, where: str | None = None, batch: int = 8192) -> Iterator[pa.RecordBatch]:
        """All rows, or those that `where` takes."""
        with one_line(self.folder):
            query = self.pictures.search().select(columns)
            yield from (query if where is None else query.where(where)).to_batches(batch)

    # ------------------------------------------------------------------------------------------------------- writing

    def write(self, encoded: pa.Table, *, fresh: bool) -> None:
        """Puts pictures and their captions into the tables, in the place of older rows of the same pictures.

        Captions go first, and doing it twice changes nothing: a crash between leaves nothing that is not repaired.

        Args:
            fresh: No older rows are there, which is faster.
        """
        metadata = [json.loads(text) for text in encoded["metadata"].to_pylist()]
        self._write_captions(encoded, fresh=fresh)
        columns = self._metadata_columns(metadata)
        names = [*_OWN, "vector"]
        table = encoded.select(names)
        for name, column in columns.items():
            table = table.append_column(name, column)
        with one_line(self.folder):
            if fresh:
                self.pictures.add(table)
            else:
                merge = self.pictures.merge_insert("id").when_matched_update_all().when_not_matched_insert_all()
                merge.execute(table)

    def _write_captions(self, encoded: pa.Table, *, fresh: bool) -> None:
        ids, texts = encoded["id"].to_pylist(), encoded["captions"].to_pylist()
        owners = [owner for owner, captions in zip(ids, texts, strict=True) for _ in captions]
        numbers = [number for captions in texts for number in range(len(captions))]
        data = b"".join(encoded["caption_vectors"].to_pylist())
        rows = {
            "id": pa.array([f"{owner}-{number}" for owner, number in zip(owners, numbers, strict=True)], pa.string()),
            "picture": pa.array(owners, pa.string()),
            "caption": pa.array([caption for captions in texts for caption in captions], pa.string()),
            "vector": pa.FixedSizeListArray.from_arrays(pa.array(np.frombuffer(data, np.float32)), self.dim),
        }
        with one_line(self.folder):
            if not fresh:
                self.captions.delete(_among("picture", ids))
            if owners:
                self.captions.add(pa.table(rows))

    def delete(self, ids: Sequence[str]) -> None:
        """Takes pictures and their captions out."""
        with one_line(self.folder):
            self.captions.delete(_among("picture", ids))
            self.pictures.delete(_among("id", ids))

    def tidy(self, *, lookups: bool, alone: bool) -> None:
        """Joins small files, brings the vector indexes up to date and removes what no reader needs any more.

        Args:
            lookups: Also index ids and hashes, which is worth it for large tables.
            alone: Nobody reads the index yet, so that everything older than the newest version may go.
        """
        with one_line(self.folder):
            if lookups:
                for table, columns in ((self.pictures, ("id", "hash")), (self.captions, ("picture",))):
                    there = {column for index in table.list_indices() for column in index.columns}
                    for column in columns:
                        if column not in there:
                            table.create_index(column, config=BTree())
            for table in (self.pictures, self.captions):
                table.optimize(cleanup_older_than=_ANY_AGE if alone else _OLD)

    # ------------------------------------------------------------------------------------------- columns of metadata

    def _metadata_columns(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, pa.Array]:
        """A column of values for each column of metadata that the table has, or gets now."""
        names = sorted({name for row in rows for name in row})
        wanted = {name: merged_kind(row.get(name) for row in rows) for name in names}
        with one_line(self.folder):
            self._fit({name: kind for name, kind in wanted.items() if kind is not None})
        return {
            name: pa.array([converted(row.get(name), kind) for row in rows], arrow_type(kind))
            for name, kind in self.kinds().items()
        }

    def _fit(self, wanted: Mapping[str, Kind]) -> None:
        """Adds columns that are missing, and widens those whose kind is too narrow."""
        there = self.kinds()
        if new := [pa.field(name, arrow_type(kind)) for name, kind in wanted.items() if name not in there]:
            self.pictures.add_columns(pa.schema(new))
        for name, kind in wanted.items():
            wider = there.get(name, kind).joined(kind)
            if wider is not there.get(name, wider):
                self.pictures.add_columns({f"{name}{WIDER}": f"cast(`{name}` as {wider.sql})"})
                self._finish_widening()

    def _finish_widening(self) -> None:
        """A column gets another type by way of a new column that takes its name; a crash may come between."""
        table = self._connection.open_table(PICTURES)
        for wider in [name for name in table.schema.names if name.endswith(WIDER)]:
            name = wider.removesuffix(WIDER)
            if name in table.schema.names:
                table.drop_columns([name])
            renaming: Any = {"path": wider, "rename": name}  # LanceDB annotates each as a table of tables
            table.alter_columns(renaming)


def _among(column: str, values: Iterable[str]) -> str:
    """SQL; the values are hexadecimal or hold no quotes."""
    listed = "', '".join(values)
    return f"{column} in ('{listed}')"
